"""Which tokens are special, so that their positions keep the original activation, and which of these look ordinary."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

NAMES = ("bos_token_id", "eos_token_id", "pad_token_id")
# <s>, </s>, <|endoftext|>, [PAD]: what a vocabulary sets apart from text.
MARKER = re.compile(r"\s*(<[^<>\s]+>|\[[A-Za-z_]+\])\s*")


def special_ids(tokenizer: Any, model: Any) -> frozenset[int]:
    """The ids of the tokenizer's own bos, eos and pad; where it has none of them, those of the model's configuration
    and its generation defaults, which may be no more than what their classes begin with."""
    own = _ids_of(tokenizer)
    return own or _ids_of(model.config) | _ids_of(getattr(model, "generation_config", None))


def _ids_of(source: Any) -> frozenset[int]:
    found: set[int] = set()
    for name in NAMES:
        ids = getattr(source, name, None)
        found.update(ids if isinstance(ids, (list, tuple)) else [] if ids is None else [ids])
    return frozenset(found)


def ordinary(tokenizer: Any, ids: Iterable[int]) -> dict[int, str]:
    """Those of `ids` that decode to ordinary text, with the text."""
    texts = {token: tokenizer.decode([token], skip_special_tokens=False) for token in sorted(ids)}
    return {token: text for token, text in texts.items() if text and not MARKER.fullmatch(text)}
