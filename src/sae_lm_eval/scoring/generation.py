"""Scopes in which transformers generates as it is meant to: without a cache where need be, and with finite logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sae_lm_eval.scoring.patching import instead


@contextmanager
def uncached(model: Any, wanted: bool) -> Iterator[None]:
    """Inside the scope, generation reads the whole text anew for every token, if `wanted`."""
    if not wanted:
        yield
        return

    def whole(input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        return {"input_ids": input_ids, "attention_mask": kwargs.get("attention_mask"), "use_cache": False}

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
    def found(self) -> bool:
        return bool(self._is_nan) and bool(torch.stack(self._is_nan).any())
