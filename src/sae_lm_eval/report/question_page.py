"""Questions of `where` as a page of its own: each token shaded by what its error is worth; no network, no library."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import jinja2

from sae_lm_eval.files.escaping import printable
from sae_lm_eval.report.formatting import fixed_decimals, is_number, share
from sae_lm_eval.report.render import LOADER, script_digest

EXACT, GRADIENT = "exact", "gradient"
PROMPT, RIGHT, WRONG = "prompt", "right", "wrong"  # parts of a question's text
EDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # of the shades, in nats


def question_page(record: Mapping[str, Any]) -> str:
    """The page of a record's questions. Everything that a model or a user wrote is escaped."""
    environment = jinja2.Environment(
        loader=LOADER,
        autoescape=lambda name: name == "questions.html",
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "outer": outer,
        "inner": _inner,
        "shade": shade,
        "printable": printable,
        "nats": signed_nats,
    }
    script = environment.get_template("tokens.js").render()
    return environment.get_template("questions.html").render(
        variant=record["variant"],
        model=record["model_args"].get("pretrained", ""),
        questions=record["questions"],
        worth=_worth,
        gradient=GRADIENT,
        ranges=shades(),
        script=script,
        script_hash=script_digest(script),
    )


def shade(nats: float) -> int:
    """The index of the shade of a size, from 0 below the first of `EDGES` to their number above the last."""
    return sum(abs(nats) >= edge for edge in EDGES)


def shades() -> list[str]:
    """What each shade stands for, in nats."""
    between = [f"{low:g} to {high:g}" for low, high in pairwise(EDGES)]
    return [f"below {EDGES[0]:g}", *between, f"{EDGES[-1]:g} and more"]


def outer(text: str) -> str:
    """The spaces before a token's text, which are not shaded with it."""
    return text[: len(text) - len(text.lstrip(" "))] if text.strip(" ") else ""


def _inner(text: str) -> str:
    """A token's text within running text, without `outer`."""
    return printable(text[len(outer(text)) :])


def signed_nats(value: Any) -> str:
    return fixed_decimals(value, 3)


def _worth(question: Mapping[str, Any], value: Any, is_last: bool) -> str:
    """What a token's error is worth, and what share of the lost margin that is; `is_last` of an answer."""
    if not is_number(value):
        return "only predicted: the model never reads it" if is_last else "nothing is spliced in here"
    lost = question["margin_baseline"] - question["margin_variant"]
    part = f", {share(value / lost, 0)} of what was lost" if lost > 0 and value > 0 else ""
    return f"{signed_nats(value)} nats{part}"
