"""A causal language model of transformers as it was loaded: its tokenizer, and how it is run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from sae_lm_eval.dictionaries.model_names import official_name
from sae_lm_eval.files.logs import logger_of
from sae_lm_eval.scoring.identity import tokenizer_content
from sae_lm_eval.scoring.tokenization import Tokenization, copied
from sae_lm_eval.splicing.adapter_spec import AdapterSpec
from sae_lm_eval.splicing.adapters import Adapter, load_adapter
from sae_lm_eval.splicing.hook_names import model_name
from sae_lm_eval.splicing.special_tokens import special_ids

logger = logger_of(__name__)


@dataclass(frozen=True)
class Settings:
    """How a loaded model is run.

    Args:
        max_length: the most tokens that it reads.
        rows: the rows of a batch.
        texts_at_once: prompts behind which a model writes at once.
        add_bos_token, custom_prefix: see `Tokenization`.
        softmax_dtype: of log-softmax; float32 where it is None.
        mixed_precision_dtype: of autocast; None is none.
        further: what else answers depend on, as plain text.
    """

    max_length: int
    rows: int
    texts_at_once: int
    add_bos_token: bool | None = None
    custom_prefix: int | None = None
    softmax_dtype: torch.dtype | None = None
    mixed_precision_dtype: torch.dtype | None = None
    further: Mapping[str, str] = field(default_factory=dict)


class LoadedModel:
    """A model that was loaded once, for whatever variants are made of it.

    Args:
        wrapped: the model, or what is wrapped around it (an adapter of PEFT's).
        tokenizer: as it is used.
        settings: how the model is run.
        pad_is_lent: whether the tokenizer had no padding token of its own.
        given: the user's own tokenizer, of which `tokenizer` is a copy.
        configured: what a copy of the user's tokenizer becomes before it is used.
        computed_as_loaded: the content of the buffers that are made anew wherever the model is loaded, where it was
            loaded by its name.
    """

    def __init__(
        self,
        wrapped: Any,
        tokenizer: Any,
        settings: Settings,
        *,
        pad_is_lent: bool = False,
        given: Any = None,
        configured: Callable[[Any], Any] = lambda tokenizer: tokenizer,
        computed_as_loaded: str | None = None,
    ) -> None:
        self.wrapped, self.tokenizer, self.settings = wrapped, tokenizer, settings
        self.computed_as_loaded = computed_as_loaded
        self._pad_is_lent, self._given, self._configured = pad_is_lent, given, configured
        self._given_content = None if given is None else tokenizer_content(given)
        self._said: set[str] = set()
        self._adapters: dict[AdapterSpec, tuple[Any, Adapter]] = {}  # with their files then
        self.layer_costs: dict[str, list[float]] = {}  # by all that they depend on: see `best_layers`

    @property
    def model(self) -> Any:
        """The model that dictionaries are spliced into."""
        return innermost(self.wrapped)

    @property
    def is_prompt_tuned(self) -> bool:
        return bool(getattr(getattr(self.wrapped, "active_peft_config", None), "is_prompt_learning", False))

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def adapter(self, spec: AdapterSpec) -> Adapter:
        """An adapter of variants, loaded once, and again when its files have changed.

        Raises `UserError` as `load_adapter` does.
        """
        files = spec.files
        if spec in self._adapters and self._adapters[spec][0] == files:
            return self._adapters[spec][1]
        self._adapters.pop(spec, None)
        adapter = load_adapter(self.model, self.wrapped, spec)
        self._adapters[spec] = files, adapter
        trained, name = adapter.record["trained_on"], model_name(self.model)
        if trained and not Path(trained).is_absolute() and official_name(trained) != official_name(name):
            self.say_once(str(spec), f"peft={spec} was trained on {trained}, and the model is {name}.")
        return adapter

    def forget_adapters(self) -> None:
        """Let go of the adapters; variants that have one keep it."""
        self._adapters.clear()

    def with_rows(self, rows: int) -> LoadedModel:
        """The same model, run in batches of so many rows."""
        other = copy.copy(self)
        other._run_by(replace(self.settings, rows=rows))
        return other

    def _run_by(self, settings: Settings) -> None:
        self.settings = settings

    def renew_tokenizer(self) -> None:
        """Take over what the user has changed in the tokenizer since it was copied."""
        if self._given is None or (content := tokenizer_content(self._given)) == self._given_content:
            return
        self._given_content, self._pad_is_lent = content, self._given.pad_token_id is None
        self.tokenizer = self._configured(copied(self._given))

    def tokenization(self, *, wants_bos: bool) -> Tokenization:
        tokenizer = self.tokenizer
        special = special_ids(tokenizer, self.wrapped)
        if self._pad_is_lent:
            special -= {tokenizer.pad_token_id} - {tokenizer.bos_token_id, tokenizer.eos_token_id}
        settings = self.settings
        return Tokenization(tokenizer, special, settings.add_bos_token, settings.custom_prefix, wants_bos)

    def autocast(self, device_type: str | None = None) -> torch.autocast:
        dtype = self.settings.mixed_precision_dtype
        return torch.autocast(device_type or self.device.type, dtype=dtype, enabled=dtype is not None)

    def has_said(self, key: str) -> bool:
        return key in self._said

    def say_once(self, key: str, words: str) -> None:
        """Warn, unless it was said before of this model or a variant of it."""
        if key not in self._said:
            self._said.add(key)
            logger.warning("%s", words)


def innermost(model: Any) -> Any:
    """The model itself where adapters (LoRA) are wrapped around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
