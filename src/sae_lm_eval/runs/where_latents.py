"""The latents that a variant's lost margins depend on: attributed by gradients, verified by ablating each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from sae_lm_eval.attribution.gradients import Contrast, TextGradient, margin_gradients
from sae_lm_eval.attribution.latents import (
    ActivatingToken,
    AttributedLatent,
    LatentAttributions,
    ablated,
    check_latents,
)
from sae_lm_eval.attribution.segments import PromptDocument
from sae_lm_eval.comparison.resampling import ratio_of_sums
from sae_lm_eval.comparison.restored import NO_MARGIN
from sae_lm_eval.comparison.subsets import Cut
from sae_lm_eval.errors import UserError
from sae_lm_eval.runs.inquiry import MOST_PARTS
from sae_lm_eval.scoring.detokenize import decoder, pieces
from sae_lm_eval.scoring.spliced_model import SplicedModel

OVERALL = "overall"
AROUND = 12  # tokens that are shown before a token, and behind it
# Scores some variants by key, and gives what each document lost of its margin (nats) with each.
Scored = Callable[[Mapping[str, Any]], Mapping[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class MarginLosses:
    """The documents that have a margin: their two answers, and by number what each lost (nats)."""

    contrasts: Sequence[Contrast]
    lost: Mapping[int, float]


def latents_record(
    spliced: SplicedModel,
    documents: Sequence[PromptDocument],
    margins: MarginLosses,
    cuts: Sequence[Cut],
    count: int,
    score: Scored,
    level: float,
    tell: Callable[[int, int], object] = lambda *_: None,
) -> dict[str, Any]:
    """The record of `count` latents of all tasks and of each part of them; of what has none the reason.

    `score` gives by key what each document of `margins` lost, in their order. `tell` is told how many documents of how
    many are differentiated.
    """
    reason = _why_none(spliced, margins)
    if reason is not None:
        return {"reason": reason, "documents": 0, "parts": [], "rows": []}
    parts = _parts(documents, margins, cuts)
    attributions = LatentAttributions(spliced.variant, margins.lost, {name: own for name, (_, own) in parts.items()})
    seen: set[int] = set()

    def add(text: TextGradient) -> None:
        attributions(text)
        seen.add(text.document)
        tell(len(seen), len(margins.contrasts))

    margin_gradients(spliced, margins.contrasts, add)
    listed = {name: attributions.top(name, count) for name in parts}
    places = dict.fromkeys((latent.splice, latent.latent) for latents in listed.values() for latent in latents)
    keys = {place: f"ablate {place[1]} of splice {place[0]}" for place in places}
    scored = score({key: ablated(spliced.variant, *place) for place, key in keys.items()})
    lost = np.array([margins.lost[contrast.document] for contrast in margins.contrasts])
    numbers = np.array([contrast.document for contrast in margins.contrasts])
    rows, totals = [], []
    for name, (section, own) in parts.items():
        inside = np.isin(numbers, own)
        head = {"section": section, "name": name, "n": int(inside.sum())}
        whole = _weighted(lost, lost, inside, level)
        totals.append({**head, "lost": whole[0], "error": attributions.error_attribution(name)})
        for latent in listed[name]:
            # Of the margin, less what it is without the latent.
            change = scored[keys[latent.splice, latent.latent]] - lost
            record = _latent_record(spliced, documents, attributions, latent)
            rows.append({**head, **record, **_bounds(_weighted(change, lost, inside, level))})
    return {"reason": None, "documents": len(lost), "parts": totals, "rows": rows}


def _bounds(ablated: tuple[float, float | None, float | None]) -> dict[str, float | None]:
    return dict(zip(("ablated", "ablated_low", "ablated_high"), ablated, strict=True))


def _latent_record(
    spliced: SplicedModel,
    documents: Sequence[PromptDocument],
    attributions: LatentAttributions,
    latent: AttributedLatent,
) -> dict[str, Any]:
    """Which latent it is, what is attributed to it, and where it is active."""
    splice = spliced.variant.splices[latent.splice]
    return {
        "hook": splice.site_out.hook,
        "latent": latent.latent,
        "attributed": latent.attributed,
        "active": int(attributions.active[latent.splice][latent.latent]),
        "neuronpedia": splice.dictionary.neuronpedia,
        "tokens": [
            _example(spliced, documents, token) for token in attributions.examples(latent.splice, latent.latent)
        ],
    }


def _why_none(spliced: SplicedModel, margins: MarginLosses) -> str | None:
    try:
        check_latents(spliced.variant)
    except UserError as error:
        return str(error)
    if not margins.contrasts:
        return f"Nothing is attributed to latents: {NO_MARGIN}."
    return None if any(margins.lost.values()) else "Nothing is attributed to latents: no margin changed."


def _parts(
    documents: Sequence[PromptDocument], margins: MarginLosses, cuts: Sequence[Cut]
) -> dict[str, tuple[str, list[int]]]:
    """Section and documents of all tasks together, and of each group, or each task where there is no group: of many,
    those that lost most margin.
    """
    inner = "group" if any(cut.section == "group" for cut in cuts) else "task"
    parts = {
        cut.name: (cut.section, [at for at in margins.lost if documents[at].task in cut.tasks])
        for cut in cuts
        if cut.section in (OVERALL, inner)
    }
    moved = {name: sum(margins.lost[at] for at in own) for name, (_, own) in parts.items()}
    kept = [name for name, (_, own) in parts.items() if any(margins.lost[at] for at in own)]
    most = sorted((name for name in kept if name != OVERALL), key=lambda name: -moved[name])[:MOST_PARTS]
    return {name: parts[name] for name in kept if name == OVERALL or name in most}


def _weighted(
    values: np.ndarray, lost: np.ndarray, inside: np.ndarray, level: float
) -> tuple[float, float | None, float | None]:
    """Mean of `values` weighted by `lost`, over the sum of its absolute values, with Student's interval."""
    numerators, sizes = (values * lost)[inside], np.abs(lost)[inside]
    if len(sizes) < 2:
        return float(numerators.sum() / sizes.sum()), None, None
    mean, variance = map(float, ratio_of_sums(numerators, sizes))
    half = float(stats.t.ppf(0.5 + level / 2, len(sizes) - 1) * np.sqrt(variance))
    return mean, mean - half, mean + half


def _example(spliced: SplicedModel, documents: Sequence[PromptDocument], token: ActivatingToken) -> dict[str, Any]:
    """A token in its text, of a character that has several tokens all of it."""
    tokenizer = spliced.tokens.tokenizer
    start = max(0, token.position - AROUND)
    texts = pieces(decoder(tokenizer), list(token.ids[: token.position + 1 + AROUND]), start)
    own = token.position - start
    end = next((at for at in range(own, len(texts)) if texts[at]), own)
    document = documents[token.document]
    return {
        "task": document.task,
        "doc_id": document.doc_id,
        "before": "".join(texts[:own]),
        "token": texts[end] or str(tokenizer.convert_ids_to_tokens(int(token.ids[token.position]))),
        "after": "".join(texts[end + 1 :]),
        "activation": token.activation,
    }
