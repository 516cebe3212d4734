"""Where a release's dictionaries were not trained: at the first positions of a text, and at tokens left out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

SPECIAL = "special"  # all that the tokenizer declares special


class Rule(NamedTuple):
    """Dictionaries whose spec without loader and revision has `spec` in it never saw positions below `first`.

    An object has no spec: of these it is those that SAELens converted for the base model `model`, with that `site`.
    """

    spec: str
    model: str
    site: str
    first: int
    text: str


RULES = (
    Rule(
        spec=r"gemma-scope-2-\w+-it(?!\w)[^@]*transcoder",
        model=r"gemma-3-\w+-it",
        site=r"blocks\.\d+\.hook_mlp_in -> blocks\.\d+\.hook_mlp_out",
        first=4,
        text="<bos><start_of_turn>user\\n",
    ),
)


def rule_of(source: str, id_: str | None) -> Rule | None:
    """The rule for the dictionary `id_` of a release or repository."""
    return next((rule for rule in RULES if re.search(rule.spec, f"{source}#{id_ or ''}")), None)


def rule_by_metadata(metadata: Mapping[str, Any]) -> Rule | None:
    """The rule for a SAELens object, which does not say what release it is of, by its metadata."""
    if metadata.get("sae_lens_training_version") is not None:  # trained by somebody else, by SAELens
        return None
    model = str(metadata.get("model_name") or "").rsplit("/", 1)[-1]
    site = f"{metadata.get('hook_name')} -> {metadata.get('hook_name_out')}"
    return next((rule for rule in RULES if re.fullmatch(rule.model, model) and re.fullmatch(rule.site, site)), None)


def first_of_slice(metadata: Mapping[str, Any]) -> int | None:
    """The first position that SAELens' `seqpos_slice` left in; None where it says nothing."""
    given, length = metadata.get("seqpos_slice"), metadata.get("context_size")
    if not given or not length or 0 in given[2:]:  # a step of 0 is none
        return None
    kept = range(int(length))[slice(*given)]
    return kept[0] if len(kept) and kept[0] > 0 else None


def tokens_left_out(metadata: Mapping[str, Any]) -> tuple[int, ...] | str:
    """What SAELens' `exclude_special_tokens` left out of training: ids, or `SPECIAL`."""
    given = metadata.get("exclude_special_tokens")
    if given is True:
        return SPECIAL
    return tuple(int(token) for token in given) if isinstance(given, list | tuple) else ()
