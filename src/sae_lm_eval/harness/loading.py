"""lm_eval's loading of Hugging Face models, whose failures are told in a sentence; what it gives is a `LoadedModel`."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Unpack

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import configure_pad_token, resolve_max_length

from sae_lm_eval import world
from sae_lm_eval.errors import UserError, error_sentence, first_line
from sae_lm_eval.harness import chat_template
from sae_lm_eval.harness.context_length import check_length
from sae_lm_eval.runtime.content import contents
from sae_lm_eval.runtime.devices import check_placement
from sae_lm_eval.runtime.host_memory import raise_if_out_of_memory
from sae_lm_eval.scaling import Original
from sae_lm_eval.scaling.original_model import OriginalNumbers
from sae_lm_eval.scaling.which_original import original_of
from sae_lm_eval.scoring.identity import evaluating
from sae_lm_eval.scoring.loaded_model import LoadedModel, Settings
from sae_lm_eval.scoring.tokenization import copied
from sae_lm_eval.splicing.choices import whole

# Rows to run at once. On a GPU it is what `batch_size=auto` begins with, and is halved where memory does not suffice;
# on a CPU there are never more, since more do not stay in its cache.
ROWS_ON_GPU, ROWS_ON_CPU = 64, 2
PATHS = ("tokenizer", "peft", "delta", "offload_folder")  # besides `pretrained`, where `~` is the user's folder


def batch_rows(batch_size: int | str, device: str) -> int:
    """The rows of a batch on that kind of device, for a batch size of lm_eval's."""
    rows = batch_size if isinstance(batch_size, int) else ROWS_ON_GPU
    return min(rows, ROWS_ON_CPU) if device == "cpu" else rows


_HFLM: Any = HFLM  # a decorator of lm_eval's hides the class from type checkers


class CausalHFLM(_HFLM):
    """lm_eval's `HFLM` for a causal model, given by name, as an object, or as the embedded `world`.

    `loaded` is the model for sae_hf's purposes. What the user handed over stays as it is.

    Raises:
        UserError: for whatever the user can mend.
    """

    def __init__(self, pretrained: Any, own_arguments: tuple[str, ...], **kwargs: Any) -> None:
        self._own_arguments = own_arguments
        if kwargs.get("max_length") is not None:
            whole(kwargs["max_length"], "max_length", least=1)  # lm_eval takes 0 for the model's own
        if isinstance(pretrained, str):  # a model that is loaded has a device
            check_placement(kwargs.get("device"), kwargs.get("parallelize"))
            pretrained = os.path.expanduser(pretrained)
        kwargs |= {name: os.path.expanduser(kwargs[name]) for name in PATHS if isinstance(kwargs.get(name), str)}
        if kwargs.get("device") is None:
            # lm_eval's default is "cuda" on every machine.
            kwargs["device"] = "cuda" if torch.cuda.is_available() else "cpu"
        given = kwargs.get("tokenizer")
        given = None if isinstance(given, str) else given
        if given is not None:
            kwargs["tokenizer"] = copied(given)  # since lm_eval gives it a padding token
        self._is_embedded = world.is_meant_by(pretrained)
        with evaluating(pretrained) if isinstance(pretrained, torch.nn.Module) else contextlib.nullcontext():
            super().__init__(str(world.model_path()) if self._is_embedded else pretrained, **kwargs)
        if self._is_embedded:
            self.model.config._name_or_path = world.NAME
        name = pretrained if isinstance(pretrained, str) else self.model.name_or_path or "the model"
        check_length({**kwargs, "pretrained": name}, self.model.config.to_dict())
        if self.prefix_token_id is None:
            raise UserError(f"The tokenizer of '{name}' has no BOS or EOS token: name one, as in prefix_token_id=0.")
        self._join_other_processes()
        self._max_length = self.max_length  # which lm_eval finds anew each time it is asked: for every request
        self.loaded = LoadedModel(
            self.model,
            self.tokenizer,
            self._settings(),
            pad_is_lent=self._pad_is_lent,
            given=given,
            configured=functools.partial(configure_pad_token, model_config=self.config),
            computed_as_loaded=contents({"": self.model})[""].computed if isinstance(pretrained, str) else None,
        )

    @property
    def own_max_length(self) -> int:
        """The most tokens that the model reads, whatever the user chose."""
        return resolve_max_length(self.model.config, self.tokenizer, default=self._DEFAULT_MAX_LENGTH)

    def _settings(self) -> Settings:
        return Settings(
            self.max_length,
            batch_rows(self.batch_size, self.device.type),
            self.batch_size if isinstance(self.batch_size, int) else ROWS_ON_GPU,
            self.add_bos_token,
            self.custom_prefix_token_id,
            self.softmax_dtype,
            self.mixed_precision_dtype,
            {name: str(getattr(self, name)) for name in ("truncation", "think_end_token")},
        )

    def original_model(self, **numbers: Unpack[OriginalNumbers]) -> Original:
        """What is known of the model that was named, by its configuration where nobody says; `numbers` are the user's.

        Parameters that are not known are counted.
        """
        model = self.loaded.model
        name = self.pretrained if isinstance(self.pretrained, str) else model.name_or_path
        name = world.NAME if self._is_embedded else name
        tuned = f"{name}, tuned" if self.peft or self.delta else name
        original = original_of(tuned, str(self.revision or "main"), **numbers)
        if original.vocabulary is None:
            original = replace(original, vocabulary=getattr(model.config, "vocab_size", None))
        if original.params is not None:
            return original
        count = sum(weights.numel() for weights in model.parameters())
        return replace(original, params=float(count), params_source="counted in the loaded model")

    def _get_config(self, pretrained: str, **kwargs: Any) -> None:
        try:
            super()._get_config(pretrained, **kwargs)
        except Exception as error:  # whatever a configuration of somebody else's makes transformers raise
            raise_if_out_of_memory(error)
            raise UserError(f"There is no model '{pretrained}' to load: {first_line(error)}") from error

    def _get_backend(self, *args: Any, **kwargs: Any) -> None:
        super()._get_backend(*args, **kwargs)
        if self.backend != "causal":
            raise UserError(
                f"{kwargs['config'].model_type} is a sequence-to-sequence model; "
                f"sae_hf splices into causal language models."
            )

    def _create_model(self, pretrained: str, **kwargs: Any) -> None:
        try:
            super()._create_model(pretrained, **kwargs)
        except Exception as error:  # whatever weights of somebody else's make transformers raise
            raise_if_out_of_memory(error)
            raise UserError(self._why_not_loaded(pretrained, kwargs, error)) from error

    def _why_not_loaded(self, pretrained: str, kwargs: Mapping[str, Any], error: Exception) -> str:
        if isinstance(error, AttributeError) and "module 'torch' has no attribute" in str(error):
            return f"dtype={kwargs.get('dtype')} is none of torch's: {error}."
        if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
            own = ", ".join(self._own_arguments)
            return f"The model does not take that argument: {error}. sae_hf's own are {own}."
        if isinstance(error, ValueError) and "attn_implementation" in str(error):
            return f"The model does not take that argument: {first_line(error)}"
        why = first_line(error) if isinstance(error, OSError) else error_sentence(error)
        return f"The weights of '{pretrained}' cannot be loaded: {why}"

    def _create_tokenizer(self, pretrained: Any, tokenizer: Any, **kwargs: Any) -> None:
        try:
            super()._create_tokenizer(pretrained, tokenizer, **kwargs)
        except Exception as error:  # whatever files of somebody else's make transformers raise
            raise_if_out_of_memory(error)
            name = next((source for source in (tokenizer, pretrained) if isinstance(source, str)), "the model")
            raise UserError(f"The tokenizer of '{name}' cannot be loaded: {error_sentence(error)}") from error
        self._pad_is_lent = self.tokenizer.pad_token_id is None

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> str:
        try:
            return super().apply_chat_template(*args, **kwargs)
        except ValueError as error:
            if "chat_template is not set" not in str(error):
                raise
            raise UserError(chat_template.MISSING) from error

    def _join_other_processes(self) -> None:
        # lm_eval divides the work of `accelerate launch` over GPUs of one machine only.
        accelerator = getattr(self, "accelerator", None)
        if accelerator is not None:
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes
