"""Where in a prompt a token stands, as the label that edits of latents choose their positions by."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_lm_eval.dictionaries.latent_edits import AFTER_HEADER, ALL, LatentEdits

IN_HEADER, IS_LAST = 1, 2  # added up


def prompt_labels(tokens: range, *, header: int, prompt: int) -> Int[np.ndarray, " tokens"]:
    """The labels of the tokens numbered `tokens` of a text, whose first `prompt` are the prompt and first `header` its
    few-shot header. The last of a prompt is the one that predicts the first token behind it.
    """
    numbers = np.arange(tokens.start, tokens.stop)
    return (numbers < header) * IN_HEADER + (numbers == prompt - 1) * IS_LAST


def edited_positions(
    edits: LatentEdits, positions: Int[Tensor, "batch positions"], labels: Int[Tensor, "batch positions"] | None
) -> Bool[Tensor, "batch positions"] | None:
    """Where edits of latents hold, None standing for all positions; without labels there is no prompt."""
    if edits.positions == ALL:
        return None
    if edits.first is not None:
        return positions < edits.first
    labels = torch.zeros_like(positions) if labels is None else labels
    return labels & IN_HEADER == 0 if edits.positions == AFTER_HEADER else labels & IS_LAST != 0
