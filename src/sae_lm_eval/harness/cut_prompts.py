"""Prompts that are longer than the model's context: how many of each task are cut, and how much of them is lost."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from lm_eval.models.utils import normalize_gen_kwargs

from sae_lm_eval.errors import UserError
from sae_lm_eval.harness.by_request import ByRequest
from sae_lm_eval.runtime.processes import rank
from sae_lm_eval.scoring.spliced_model import SplicedModel

# What lm_eval logs once for each of them, where it cuts them itself.
ITS_LOGGER = logging.getLogger("lm_eval.models.huggingface")
ITS_LINES = ("Combined length of context", "Left truncation applied")


class Length(NamedTuple):
    """Of a prompt in tokens, as far as the model would read it, and how many of them are cut off at its beginning."""

    tokens: int
    lost: int


class CutPrompts(ByRequest[Length]):
    """The lengths of the prompts of each task."""

    def by_task(self) -> dict[str, dict[str, Any]]:
        """For each task that has any the numbers of prompts and of cut ones, and of their tokens, with the shares."""
        out = {}
        for task, lengths in self._of.items():
            cut = [length for length in lengths.values() if length.lost]
            if cut:
                tokens, lost = (sum(counts) for counts in zip(*cut, strict=True))
                out[task] = {
                    "prompts": len(lengths),
                    "cut": len(cut),
                    "share_of_prompts": len(cut) / len(lengths),
                    "tokens_of_cut_prompts": tokens,
                    "tokens_lost": lost,
                    "share_of_their_tokens": lost / tokens,
                }
        return out


def scored(context: int, continuation: int, most: int) -> Length:
    """Of a context and its continuation, whose last token is not read, before a model that reads `most` tokens."""
    tokens = context + continuation - 1
    return Length(tokens, max(0, tokens - most))


def generated_from(tokens: int, settings: Any, most: int, default: int) -> Length:
    """Of a prompt before a model that reads `most` tokens, those that `settings` let it write among them.

    `default` is how many it writes where they do not say. Raises `UserError` where no room is left for a prompt.
    """
    normal: Any = normalize_gen_kwargs(settings, default)
    room = most - normal["max_gen_toks"]
    if room < 1:
        raise UserError(
            f"{most - room} tokens are to be generated, and the model reads {most}: nothing is left for the prompt. "
            f"Give a smaller max_gen_toks in --gen_kwargs."
        )
    return Length(tokens, max(0, tokens - room))


def sentence(lengths: Sequence[Length], most: int) -> str | None:
    """What is said of them; None where nothing is cut."""
    cut = [length for length in lengths if length.lost]
    if not cut:
        return None
    tokens, lost = (sum(counts) for counts in zip(*cut, strict=True))
    return (
        f"{len(cut):,} of {len(lengths):,} prompts ({len(cut) / len(lengths):.0%}) do not fit into the model's context "
        f"of {most:,} tokens: their beginnings are cut off, {lost / tokens:.0%} of their tokens."
    )


def tell_of_cut(model: SplicedModel, lengths: Sequence[Length], what: str) -> None:
    """Warn once of the prompts that are scored, and once of those that are generated from."""
    words = sentence(lengths, model.max_length)
    if words is not None and rank() == 0:
        model.loaded.say_once(f"prompts {what} are cut", words)


def tell_of_context(model: SplicedModel, lengths: Iterable[int]) -> None:
    """Warn once of prompts that are longer than dictionaries have seen, of all models that are answered together.

    `lengths`, in tokens, are not looked at, nor tokenised for, where there is nothing to tell.
    """
    trained = model.trained_context
    if trained is None or model.loaded.has_said(key := f"prompts are longer than a context of {trained}"):
        return
    longer = [length > trained for length in lengths]
    if any(longer):
        names = [each.name for each in model.group.members if each.trained_context == trained]
        others = {1: "", 2: " and of 1 other variant"}.get(len(names), f" and of {len(names) - 1} other variants")
        model.loaded.say_once(
            key,
            f"{sum(longer)} of {len(longer)} prompts ({100 * sum(longer) / len(longer):.0f}%) are longer than the "
            f"{trained} tokens that the dictionary of {names[0]}{others} was trained on.",
        )


@contextmanager
def without_a_line_each() -> Iterator[None]:
    """Inside the scope, lm_eval does not log each prompt that it cuts."""

    def other(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(ITS_LINES)

    ITS_LOGGER.addFilter(other)
    try:
        yield
    finally:
        ITS_LOGGER.removeFilter(other)
