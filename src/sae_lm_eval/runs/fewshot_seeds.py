"""The seeds that choose in-context examples, as text and beside lm_eval's others; told before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from sae_lm_eval.errors import UserError


def seeds_of(text: str) -> list[int]:
    """`1,2,3`. Raises `UserError` for what is no list of two different numbers or more."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--fewshot_seeds has '{text}': write numbers joined by commas, as in 1,2,3.") from None
    if len(set(seeds)) < 2 or len(set(seeds)) < len(seeds):
        raise UserError(f"--fewshot_seeds has '{text}': give two different numbers or more, each once.")
    return seeds


def with_seed(seed: object, fewshot: int) -> list[int | None]:
    """lm_eval's four seeds (random, numpy, torch, few-shot) with another one for the examples."""
    usual: Sequence[int | None] = (0, 1234, 1234, 1234)
    if isinstance(seed, int):
        usual = (seed,) * 4
    elif isinstance(seed, list | tuple) and len(seed) == 4:
        usual = tuple(seed)
    return [*usual[:3], fewshot]
