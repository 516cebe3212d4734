"""Passages -> one self-contained page: no network, no library, readable without its script."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import jinja2

from sae_lm_eval.report.formatting import nats, share
from sae_lm_eval.report.question_page import outer, shade, shades
from sae_lm_eval.report.render import LOADER, script_digest
from sae_lm_eval.scoring.detokenize import token_label, visible
from sae_lm_eval.talk.conversation import Model
from sae_lm_eval.talk.passages import Passage, tables


def render(model: Model, passages: Sequence[Passage]) -> str:
    """The page. Everything that a model or a user wrote is escaped, and its control characters are named."""
    provenances = {json.dumps(p.provenance, indent=1, ensure_ascii=False): None for p in passages}
    script = _environment().get_template("tokens.js").render()
    return (
        _environment()
        .get_template("page.html")
        .render(
            model=model.name,
            passages=passages,
            tables=tables(passages, model.tokens.special_ids),
            provenances=list(provenances),
            name=model.name_token,
            special=model.tokens.special_ids,
            ranges=shades(),
            script=script,
            script_hash=script_digest(script),
        )
    )


def inner(text: str) -> str:
    """A token's text within running text, without `outer`; line breaks break, and are seen."""
    return visible(text[len(outer(text)) :]).replace("\n", "⏎\n") or "▫"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader("sae_lm_eval.talk", ""), LOADER]),
        autoescape=lambda name: name == "page.html",
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {f.__name__: f for f in (token_label, visible, outer, inner, nats, share, shade)}
    environment.filters |= filters
    return environment
