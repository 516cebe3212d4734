"""Zero and mean ablation of a variant's sites, and what of a text they leave."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sae_lm_eval.fidelity.source import TextSource
from sae_lm_eval.scoring.request import Query
from sae_lm_eval.scoring.spliced_model import SplicedModel
from sae_lm_eval.splicing.activations import mean_activations, record_of_windows
from sae_lm_eval.splicing.attach import attached
from sae_lm_eval.splicing.splice import Variant
from sae_lm_eval.splicing.variants import with_means

TRIED = 8  # tokens of the texts that an ablation is tried on


def ablations(model: SplicedModel, source: TextSource) -> tuple[list[Variant], dict[str, Any] | None]:
    """Zero and mean ablation of the sites of the model's variant; where the mean was taken from.

    The baseline and edits of the model have no site to ablate, and a text without further documents has no mean.
    """
    variant = model.variant
    if not variant.splices:  # the baseline, or an edit of the model, which has no site
        return [], None
    # What is recovered is told against the model's own activations, whatever adapter the variant has.
    variant = replace(variant, edits=(), adapter=None)
    zero = variant.in_mode("zero")
    windows = model.windows(source.held_out, model.wanted.mean_tokens)
    if not windows:
        return [zero], None
    means = mean_activations(model.model, variant, windows, model.tokens.special_ids)
    taken = {
        "text": source.name,
        "split": source.held_out_split,
        "documents": "outside the scored ones",
        **record_of_windows(windows),
    }
    return [zero, with_means(variant, means).in_mode("mean")], taken


@torch.no_grad()
def leave_no_text(model: Any, variants: Sequence[Variant]) -> bool:
    """Whether the model says the same, to the bit, whatever it reads, as where its residual stream is ablated.

    Found by trying two random texts without special tokens, which are alike where positions are never spliced.
    """
    special = frozenset[int]().union(*(variant.special_ids for variant in variants))
    first = max(variant.first_position for variant in variants)
    texts = np.random.default_rng(0).choice(_ordinary(model, special), size=(2, 1, first + TRIED))
    texts[1, :, :first] = texts[0, :, :first]
    device = next(model.parameters()).device
    for variant in variants:
        with attached(model, variant):
            a, b = (model(input_ids=torch.from_numpy(ids).to(device), use_cache=False).logits for ids in texts)
        if not torch.equal(a, b):
            return False
    return True


def without_text(
    queries: Sequence[Query], model: Any, special_ids: Collection[int], first_position: int = 0
) -> list[Query]:
    """Queries that ask the same of ablations that leave no text, and share what they read.

    What is behind the last special token, and behind the positions below `first_position`, which keep what they have
    seen, becomes one and the same token.
    """
    filler = int(_ordinary(model, special_ids)[0])
    special = list(special_ids)
    out = []
    for query in queries:
        places = np.flatnonzero(np.isin(query.ids, special))
        kept = min(len(query.ids), max(first_position, int(places[-1]) + 1 if len(places) else 0))
        out.append(Query([*query.ids[:kept], *[filler] * (len(query.ids) - kept)], query.targets))
    return out


def _ordinary(model: Any, special_ids: Collection[int]) -> np.ndarray:
    return np.setdiff1d(np.arange(model.config.get_text_config().vocab_size), list(special_ids))
