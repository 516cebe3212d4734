"""Whether several models that write in one batch are as they are by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from jaxtyping import Float

from sae_lm_eval.errors import UserError
from sae_lm_eval.scoring.attention_kernels import attention_without_plans
from sae_lm_eval.scoring.decoding import Decoder, Writing
from sae_lm_eval.scoring.drafts import Ending
from sae_lm_eval.scoring.rounding import is_rounding, rounded_otherwise
from sae_lm_eval.scoring.token_sampler import TokenSampler
from sae_lm_eval.splicing.attach import attached

# Between log-probabilities, in nats, whatever the model; beyond it, as `is_rounding` says.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
PROMPTS, LENGTH = 4, 4  # and how many tokens are written behind each


@attention_without_plans()
def check_decoding(decoder: Decoder) -> None:
    """Raise `ValueError` where texts behind shared prompts are not as likely as behind each by itself.

    Where they are with a copy of the shared beginning for each row, `decoder` makes copies from now on.
    """
    if decoder.attention is not None:
        try:
            _compare(decoder)
            if not decoder.attention.layers:
                raise ValueError("no layer looks up how attention is implemented")
            return
        except UserError:
            raise
        except ValueError as error:
            decoder.copy_prefixes(error)
    _compare(decoder)


def _compare(decoder: Decoder) -> None:
    model = decoder.model
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    stem, *ends = (torch.randint(vocabulary, (n,), generator=generator).tolist() for n in (20, 9, 1, 14, 5))
    prompts = [stem + end for end in ends]
    texts: dict[tuple[int, int], list[int]] = {}
    scores: dict[tuple[int, int], list[float]] = {}

    def done(number: int, place: int, ids: list[int] | None) -> None:
        if ids is not None:  # else the one who asks for that model is told
            texts[number, place] = ids

    writing = Writing(decoder, prompts, Ending(LENGTH), TokenSampler(), [b""] * PROMPTS, done)
    writing.likelihoods, writing.capacity = scores, 1
    try:
        with torch.no_grad():
            writing.write({(i, place) for i in range(len(prompts)) for place in range(len(decoder.models))})
            continuations = [(prompts[i], ids, place) for (i, place), ids in texts.items()]
            alone = [_plainly(decoder, *each) for each in continuations]
            together = [scores[key] for key in texts]
    except UserError:
        raise
    except Exception as error:  # whatever an architecture does not bear
        raise ValueError(f"{type(model).__name__} cannot decode several models at once: {error!r}") from error

    @torch.no_grad()
    def moved() -> Float[np.ndarray, "prompts models tokens"]:
        with rounded_otherwise(model):
            return _apart(texts, [_plainly(decoder, *each) for each in continuations], alone)

    if not texts:
        raise ValueError(f"the logits of {type(model).__name__} are nan")
    off = _apart(texts, together, alone)
    if not is_rounding(off, TOLERANCE[model.dtype], moved):
        raise ValueError(f"{type(model).__name__} is {np.nanmax(off):.2g} nats off where several models decode at once")


def _apart(
    texts: Mapping[tuple[int, int], Sequence[int]], some: Sequence[Sequence[float]], others: Sequence[Sequence[float]]
) -> Float[np.ndarray, "prompts models tokens"]:
    """How far log-probabilities of texts are from others, by prompt and model; nan where no token was written."""
    table = np.full((PROMPTS, max((place for _, place in texts), default=0) + 1, LENGTH), np.nan)
    for (number, place), logprobs, reference in zip(texts, some, others, strict=True):
        table[number, place, : len(logprobs)] = np.nan_to_num(
            np.abs(np.subtract(logprobs, reference)), nan=np.inf, posinf=np.inf
        )
    return table


def _plainly(decoder: Decoder, prompt: Sequence[int], ids: Sequence[int], place: int) -> list[float]:
    """Log-probabilities of a text behind a prompt, by one model by itself and without a cache."""
    whole = torch.tensor([[*prompt, *ids]], device=decoder.device)
    with ExitStack() as scope:
        if (variant := decoder.models[place]) is not None:
            scope.enter_context(attached(decoder.model, variant, len(prompt)))
        logits = decoder.model(input_ids=whole, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.to(decoder.dtype).log_softmax(-1)[range(len(ids)), list(ids)].tolist()
