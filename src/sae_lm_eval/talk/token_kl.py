"""What baseline and variants predict at each token of a text that all of them read (teacher forcing)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sae_lm_eval.errors import UserError
from sae_lm_eval.scoring.divergences import Predicted, kl
from sae_lm_eval.splicing.module_io import keeping_last
from sae_lm_eval.splicing.splice import Variant
from sae_lm_eval.talk.sampling import BASELINE, AnswerColumn, running_as

TOP = 5
PIECE = 128  # positions whose distributions are held in float32 at a time


@dataclass(frozen=True)
class Prediction:
    """A model's distribution where a token stands: its probability, and the `TOP` likeliest (id, probability)."""

    probability: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Place:
    """A token, what the baseline and each variant predict in its place, and KL(baseline || variant) there in nats."""

    token: int
    baseline: Prediction
    variants: tuple[Prediction, ...]
    kl: tuple[float, ...]


@torch.no_grad()
def token_view(model: nn.Module, variants: Sequence[AnswerColumn], ids: Sequence[int], start: int) -> list[Place]:
    """The places of `ids[start:]`, each predicted from all before it; `start` is at least 1.

    Raises `UserError` where a model's logits are nan.
    """
    if not 1 <= start <= len(ids):
        raise ValueError(f"start={start} is not between 1 and {len(ids)}: the first token is not predicted.")
    if start == len(ids):
        return []
    baseline = _logits(model, AnswerColumn(BASELINE), ids, start)
    tokens = torch.tensor(list(ids[start:]), device=baseline.device)
    of_baseline, of_variants, kls = _predictions(baseline, tokens), [], []
    for column in variants:
        logits = _logits(model, column, ids, start)
        of_variants.append(_predictions(logits, tokens))
        kls.append(kl_divergence(baseline, logits))
    return [
        Place(token, of_baseline[i], tuple(p[i] for p in of_variants), tuple(variant_kls[i] for variant_kls in kls))
        for i, token in enumerate(ids[start:])
    ]


def kl_divergence(baseline: Tensor, variant: Tensor) -> list[float]:
    """`scoring.divergences.kl` at each position, from logits (positions, vocabulary).

    Log-softmax in float32; what rounding leaves below zero is zero.
    """
    out: list[float] = []
    for ours, theirs in zip(baseline.split(PIECE), variant.split(PIECE), strict=True):
        p, q = ours.float().log_softmax(-1), theirs.to(ours.device).float().log_softmax(-1)
        out += kl(Predicted(q, Predicted(p))).clamp(min=0).tolist()
    return out


def _logits(model: nn.Module, column: AnswerColumn, ids: Sequence[int], start: int) -> Tensor:
    """(len(ids) - start, vocabulary), from the position before each of `ids[start:]`."""
    variant: Variant | None = column.variant
    device = next(model.parameters()).device
    kept = len(ids) - start + 1
    with running_as(model, variant, start):
        out = model(input_ids=torch.tensor([list(ids)], device=device), use_cache=False, **keeping_last(model, kept))
    logits = out.logits[0, -kept:-1]
    if bool(logits.isnan().any()):
        raise UserError(f"The logits of '{column.name}' are nan in a text of {len(ids):,} tokens.")
    return logits


def _predictions(logits: Tensor, tokens: Tensor) -> list[Prediction]:
    out = []
    for piece, here in zip(logits.split(PIECE), tokens.split(PIECE), strict=True):
        p = piece.float().softmax(-1)
        values, ids = p.topk(min(TOP, p.shape[-1]))
        at_token = p.gather(-1, here.to(p.device)[:, None])[:, 0]
        out += [
            Prediction(own, tuple(zip(row_ids, row_values, strict=True)))
            for own, row_ids, row_values in zip(at_token.tolist(), ids.tolist(), values.tolist(), strict=True)
        ]
    return out
