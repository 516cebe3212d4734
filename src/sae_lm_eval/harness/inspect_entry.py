"""What the framework Inspect imports when it starts, by its entry point: the model provider's name, and no model."""

from __future__ import annotations

from typing import Any

from inspect_ai.model import modelapi  # pyright: ignore[reportMissingImports]


@modelapi(name="sae_hf")
def sae_hf() -> type[Any]:
    """`--model sae_hf/NAME` of Inspect's commands."""
    from sae_lm_eval.harness.inspect_provider import SaeHFAPI

    return SaeHFAPI
