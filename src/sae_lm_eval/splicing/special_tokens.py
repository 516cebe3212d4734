"""Where a dictionary is spliced in: which tokens are special, so that their positions keep the original activation."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

NAMES = ("bos_token_id", "eos_token_id", "pad_token_id")
# <s>, </s>, <|endoftext|>, [PAD]: what a vocabulary sets apart from text.
MARKER = re.compile(r"\s*(<[^<>\s]+>|\[[A-Za-z_]+\])\s*")


def special_ids(tokenizer: Any, model: Any) -> frozenset[int]:
    """The ids of the tokenizer's own bos, eos and pad; where it has none of them, those of the model's configuration
    and its generation defaults, which may be no more than what their classes begin with."""
    own = _ids_of(tokenizer)
    return own or _ids_of(model.config) | _ids_of(getattr(model, "generation_config", None))


def spliced_positions(
    input_ids: Int[Tensor, "*batch"],
    positions: Int[Tensor, "*batch"],
    special_ids: Collection[int],
    first_position: int,
) -> Bool[Tensor, "*batch"]:
    """Where a dictionary is spliced in: neither at special tokens, nor before its first position in the text."""
    spliced = positions >= first_position
    if special_ids:
        special = torch.tensor(sorted(special_ids), device=input_ids.device)
        spliced = spliced & torch.isin(input_ids, special, invert=True).to(spliced.device)
    return spliced


def _ids_of(source: Any) -> frozenset[int]:
    special_ids: set[int] = set()
    for name in NAMES:
        ids = getattr(source, name, None)
        special_ids.update(ids if isinstance(ids, (list, tuple)) else [] if ids is None else [ids])
    return frozenset(special_ids)


def ordinary(tokenizer: Any, ids: Iterable[int]) -> dict[int, str]:
    """Those of `ids` that decode to ordinary text, with the text."""
    texts = {token: tokenizer.decode([token], skip_special_tokens=False) for token in sorted(ids)}
    return {token: text for token, text in texts.items() if text and not MARKER.fullmatch(text)}
