"""When two names mean one model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence


def official_name(model_name: str) -> str:
    """The name of a model without its organisation, lower case; TransformerLens' aliases ("gpt2-small") resolved."""
    from transformer_lens.loading_from_pretrained import get_official_model_name

    short = model_name.rstrip("/").split("/")[-1]
    for name in (model_name, short):
        with contextlib.suppress(ValueError):  # raised where TransformerLens has no such alias
            return get_official_model_name(name).split("/")[-1].lower()
    return short.lower()


def is_among(model_name: str, names: Iterable[str]) -> bool:
    """Whether a model is one of those that the names mean."""
    return official_name(model_name) in map(official_name, names)


def distinct_models(model_names: Sequence[str]) -> list[str]:
    """Those of `model_names` that mean different models, the first name of each."""
    short = dict.fromkeys(name.rstrip("/").split("/")[-1].lower() for name in model_names)
    if len(short) < 2:
        return list(model_names[:1])
    first_names: dict[str, str] = {}
    for name in model_names:
        first_names.setdefault(official_name(name), name)
    return list(first_names.values())
