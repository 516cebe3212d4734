"""What transformers is asked to generate, and scopes in which it does: without a cache, with finite logits."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sae_lm_eval.scoring.token_sampler import TokenSampler
from sae_lm_eval.splicing.patching import instead

# Of a configuration for generation what `TokenSampler` follows, and values that change nothing.
FOLLOWED = ("do_sample", "temperature", "top_k", "top_p", "min_p", "eos_token_id")
WITHOUT_EFFECT = ("bos_token_id", "pad_token_id", "decoder_start_token_id", "transformers_version", "max_length")
NEUTRAL = {
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "repetition_penalty": (1.0,),
    "length_penalty": (1.0,),
    "typical_p": (1.0,),
    "no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "early_stopping": (False,),
    "use_cache": (True,),
    "cache_implementation": ("hybrid", "dynamic"),
    "renormalize_logits": (False,),
    "remove_invalid_values": (False,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "output_scores": (False,),
    "output_logits": (False,),
    "return_dict_in_generate": (False,),
}
TOP_K = 50  # transformers' own, where sampling is asked for and nothing said of it


class UnsharedError(ValueError):
    """Texts are to be generated in a way that models cannot follow in one batch."""


def sampling_of(model: Any, arguments: Mapping[str, Any]) -> tuple[TokenSampler, frozenset[int]]:
    """How `model.generate(**arguments)` chooses tokens, and the ids at which it ends.

    Raises `UnsharedError` where it does anything besides taking the likeliest token or drawing one.
    """
    config = copy.deepcopy(model.generation_config)
    unknown = config.update(**arguments)
    for name, value in {**config.to_diff_dict(), **unknown}.items():
        is_neutral = value is None or name in (*FOLLOWED, *WITHOUT_EFFECT) or value in NEUTRAL.get(name, ())
        if not (is_neutral or name.startswith("_")):
            raise UnsharedError(f"{name}={value!r} is transformers' own")
    ids = end_ids(config)
    if not config.do_sample:
        return TokenSampler(), ids
    return TokenSampler(_warped(config), torch.initial_seed()), ids


def end_ids(config: Any) -> frozenset[int]:
    """The ids with which a text ends by a configuration for generation."""
    ends = config.eos_token_id
    return frozenset(() if ends is None else [ends] if isinstance(ends, int) else ends)


def _warped(config: Any) -> Callable[[Tensor], Tensor]:
    """What transformers makes of logits (rows, vocabulary) before it draws from their softmax."""
    top_k = TOP_K if config.top_k is None else config.top_k
    warpers = LogitsProcessorList()
    if config.temperature not in (None, 1.0):
        warpers.append(TemperatureLogitsWarper(float(config.temperature)))
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if config.top_p is not None and config.top_p < 1:
        warpers.append(TopPLogitsWarper(config.top_p))
    if config.min_p is not None:
        warpers.append(MinPLogitsWarper(config.min_p))
    no_ids: Any = torch.empty(0, 0, dtype=torch.long)  # these warpers look at the logits alone
    return lambda logits: warpers(no_ids, logits)


@contextmanager
def uncached(model: Any, wanted: bool) -> Iterator[None]:
    """Inside the scope, generation reads the whole text anew for every token, if `wanted`."""
    if not wanted:
        yield
        return

    takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def whole(input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        mask = kwargs.get("attention_mask")
        given = {"input_ids": input_ids, "attention_mask": mask, "use_cache": False}
        if mask is None or not takes_positions:
            return given
        # Prompts are padded on the left, and positions count from the first real token.
        return {**given, "position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)}

    with instead(model, "prepare_inputs_for_generation", whole):
        yield


class NanWatch:
    """A scope that watches whether some logits of a next token are nan.

    It is looked up behind the scope, so that a GPU is not waited for at each token.
    """

    def __init__(self, model: Any) -> None:
        self._model, self._is_nan = model, list[Tensor]()

    def __enter__(self) -> NanWatch:
        self._handle = self._model.register_forward_hook(self._look)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _look(self, _module: Any, _args: Any, output: Any) -> None:
        self._is_nan.append(output.logits[:, -1].isnan().any())

    @property
    def any_nan(self) -> bool:
        return bool(self._is_nan) and bool(torch.stack(self._is_nan).any())
