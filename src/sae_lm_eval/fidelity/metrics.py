"""Sums over documents -> metrics of fidelity, each with a standard error. Neither torch nor lm_eval.

docs/metrics.md holds the formulas with their units, their sources, and where other tools differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt16

from sae_lm_eval.comparison.resampling import document_counts

SEED = 1234
RESAMPLES = 1000  # at most: more move a standard error by less than 2%
CHUNK = 64  # resamples whose weights are widened to float64 at a time

Values = np.ndarray | np.floating  # totals of one sample, or of many
Formula = Callable[..., Values]


@dataclass(frozen=True)
class Metric:
    """`formula` of totals of `sums` over documents; it takes arrays of one shape, and gives nan where undefined.

    `spread`, where it is given, is the standard error from the documents' sums (documents, sums), in place of the
    bootstrap's. `undefined` is why the value may be missing.
    """

    sums: tuple[str, ...]
    formula: Formula
    higher_is_better: bool
    undefined: str = "no position was scored"
    spread: Callable[[np.ndarray], float] | None = None

    def value(self, rows: Float64[np.ndarray, "documents sums"]) -> float | None:
        """From sums by document."""
        return _defined(self.formula(*rows.sum(0)))

    def stderr(self, rows: Float64[np.ndarray, "documents sums"], resamples: int = RESAMPLES) -> float | None:
        """The spread of `value` when the documents are drawn anew with replacement (Efron 1979).

        Every metric of as many documents sees the same draws. None for a single document, for no draws, and where
        the value is undefined for some draw.
        """
        if len(rows) < 2 or resamples < 2:
            return None
        if self.spread is not None:
            return self.spread(rows)
        weights = same_counts(len(rows), min(resamples, RESAMPLES))
        totals = np.concatenate([weights[i : i + CHUNK] @ rows for i in range(0, len(weights), CHUNK)])
        return _defined(self.formula(*totals.T).std(ddof=1))


def positive_ratio(top: Values, bottom: Values) -> Values:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.asarray(bottom) > 0, np.divide(top, bottom), np.nan)


def difference(spliced: Values, baseline: Values, tokens: Values) -> Values:
    return positive_ratio(spliced - baseline, tokens)


def recovered(baseline: Values, spliced: Values, ablated: Values) -> Values:
    """(CE_ablated - CE_spliced) / (CE_ablated - CE_baseline)."""
    return positive_ratio(ablated - spliced, ablated - baseline)


def bits(nats: Values, bytes_: Values) -> Values:
    return positive_ratio(nats / math.log(2), bytes_)


def explained_fraction(error: Values, deviation: Values) -> Values:
    return 1 - positive_ratio(error, deviation)


def fired(first: Values, _only: Values) -> Values:
    return np.asarray(first)


def jackknife(rows: Float64[np.ndarray, "documents 2"]) -> float:
    """Of the fraction that fired: without a document, the latents that fired in no other are missing (Tukey 1958)."""
    _, only = rows.T
    n = len(rows)
    return math.sqrt((n - 1) / n * ((only - only.mean()) ** 2).sum())


NO_HARM = "{} ablation does not raise the cross-entropy, so there is no loss to recover"
NO_MEAN = "the text has no documents outside the scored ones to take the mean activation from"

# By task; cross-entropies and divergences in nats per token.
METRICS = {
    "ce_baseline": Metric(("nll_baseline", "tokens"), positive_ratio, False),
    "ce_spliced": Metric(("nll_spliced", "tokens"), positive_ratio, False),
    "ce_delta": Metric(("nll_spliced", "nll_baseline", "tokens"), difference, False),
    "ce_zero": Metric(("nll_zero", "tokens"), positive_ratio, False),
    "ce_mean": Metric(("nll_mean", "tokens"), positive_ratio, False, NO_MEAN),
    "loss_recovered_zero": Metric(("nll_baseline", "nll_spliced", "nll_zero"), recovered, True, NO_HARM.format("zero")),
    "loss_recovered_mean": Metric(
        ("nll_baseline", "nll_spliced", "nll_mean"), recovered, True, f"{NO_HARM.format('mean')}, or {NO_MEAN}"
    ),
    "kl": Metric(("kl", "tokens"), positive_ratio, False),
    "kl_reverse": Metric(("kl_reverse", "tokens"), positive_ratio, False),
    "top1_agreement": Metric(("agreement", "tokens"), positive_ratio, True),
    "bits_per_byte_baseline": Metric(("nats_baseline", "bytes"), bits, False),
    "bits_per_byte_spliced": Metric(("nats_spliced", "bytes"), bits, False),
}
# By dictionary, over the positions where it was spliced in.
CONSTANT = "what passes the site is the same at every position"
DICTIONARY_METRICS = {
    "l0": Metric(("l0", "positions"), positive_ratio, False),
    "fvu": Metric(("squared_error", "squared_deviation"), positive_ratio, False, CONSTANT),
    "explained_variance": Metric(("squared_error", "squared_deviation"), explained_fraction, True, CONSTANT),
    "cosine": Metric(("cosine", "positions"), positive_ratio, True),
    "norm_ratio": Metric(("norm_ratio", "positions"), positive_ratio, True),
    "fraction_fired": Metric(("fired_first", "fired_only"), fired, True, spread=jackknife),
}
# What is counted from the whole text, and from a category's documents alone.
WITHIN = ("squared_deviation", "fired_first", "fired_only")


def metrics_of(record: Mapping[str, Any]) -> Iterator[tuple[str, Metric, str | None]]:
    """The names and metrics that a document's record has the sums of, with the dictionary's site where it has one.

    Where there are several dictionaries, a name ends on `/` and the site.
    """
    for name, metric in METRICS.items():
        if all(key in record for key in metric.sums):
            yield name, metric, None
    sites = list(record.get("dictionaries", {}))
    for site in sites:
        for name, metric in DICTIONARY_METRICS.items():
            yield name if len(sites) == 1 else f"{name}/{site}", metric, site


def row(record: Mapping[str, Any], metric: Metric, site: str | None, *, within: str = "text") -> list[float | None]:
    """A document's sums, as `metric` takes them; `within` is "text" or "category"."""
    sums = record if site is None else record["dictionaries"][site]
    return [sums[f"{key}_{within}" if key in WITHIN else key] for key in metric.sums]


def array(rows: Sequence[Sequence[float | None]]) -> Float64[np.ndarray, "documents sums"]:
    """Sums by document, nan where one is None."""
    return np.array(rows, dtype=np.float64)


def metric_values(records: Sequence[Mapping[str, Any]], *, within: str = "text") -> dict[str, float | None]:
    """Every metric of these documents, and `_stderr` beside each."""
    out: dict[str, float | None] = {}
    for name, metric, site in metrics_of(records[0]):
        rows = array([row(record, metric, site, within=within) for record in records])
        out[name], out[f"{name}_stderr"] = metric.value(rows), metric.stderr(rows)
    return out


@lru_cache(maxsize=2)
def same_counts(documents: int, resamples: int, seed: int = SEED) -> UInt16[np.ndarray, "resamples documents"]:
    """How often each document is drawn, whatever the metric."""
    draws = document_counts(documents, resamples, np.random.default_rng(seed))
    return np.concatenate([counts.astype(np.uint16) for counts in draws])


def _defined(value: Values) -> float | None:
    return float(value) if np.isfinite(value) else None
