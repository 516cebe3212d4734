"""Where in a prompt lm_eval's few-shot examples end and a document's own text begins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance

from sae_lm_eval.attribution.segments import start_of_own
from sae_lm_eval.attribution.token_kinds import first_letters
from sae_lm_eval.errors import UserError

RULE = "latent_positions=after_header"


def own_text(task: Any, doc: Any) -> str | None:
    """A document's own part of the prompt; None where it is another for each choice, as Winogrande's."""
    text = task.doc_to_text(doc)
    return text if isinstance(text, str) and not getattr(task, "multiple_input", 0) else None


def needs_headers(spliced: Any) -> bool:
    """Whether a spliced model, or one that it is answered with, depends on where headers end."""
    return any(member.variant.looks_at_header for member in spliced.group.members)


def header_lengths(
    spliced: Any, requests: Sequence[Instance], parts: Sequence[Sequence[str]], ids: Iterable[Any]
) -> list[int]:
    """How many of the `ids` of each request's text stand before its document's own part: BOS, instructions, examples.

    `parts` join to the texts. All are 0 where nothing depends on it. Raises `UserError` where the own part, or its
    tokens, cannot be told.
    """
    if not needs_headers(spliced):
        return [0] * len(requests)
    starts, texts = [_start(request) for request in requests], ["".join(each) for each in parts]
    out = []
    for request, text, start, spans in zip(requests, texts, starts, spliced.tokens.spans(texts, ids), strict=True):
        if spans is None:
            raise UserError(f"{RULE}: which tokens of {request.task_name} are the header's cannot be told of its text.")
        places = np.array(spans, dtype=int).reshape(-1, 2)
        own = (places[:, 1] > places[:, 0]) & (first_letters(text, places) >= start)
        out.append(int(own.argmax()) if own.any() else len(places))
    return out


def _start(request: Instance) -> int:
    task = getattr(request, "asked_by", None)
    own = None if task is None else own_text(task, request.doc)
    start = -1 if own is None else start_of_own(str(request.args[0]), own)
    if start < 0:
        raise UserError(
            f"{RULE} is not for {request.task_name}: its prompts do not hold the text of their documents, behind which "
            f"the header ends."
        )
    return start
