"""Delta CE: how far the loss rises when the dictionary is spliced in, nats/token, with its uncertainty."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from sae_lm_eval.comparison.resampling import document_counts
from sae_lm_eval.errors import UserError
from sae_lm_eval.files.reading import Foreign
from sae_lm_eval.scaling.data_files import Amount, Positive, read_rows

Ablation = Literal["zero", "mean"]
FEW_DOCUMENTS = 30
ABLATIONS: tuple[Ablation, ...] = ("zero", "mean")


@dataclass(frozen=True, kw_only=True, eq=False)
class DeltaCE:
    """Spliced minus baseline cross-entropy on the same tokens, nats/token.

    `per_document` holds (rise in nats, tokens) per document where it is known; otherwise `standard_error` may be
    given, and the number of `documents` that it is of. `vocabulary` is the number of tokens that the model chooses
    among. `origin` says in words where the number comes from.
    """

    value: float
    baseline: float | None = None
    spliced: float | None = None
    standard_error: float | None = None
    per_document: tuple[np.ndarray, np.ndarray] | None = None
    ablation: Ablation | None = None
    ablated: float | None = None
    loss_recovered: float | None = None
    vocabulary: int | None = None
    documents: int | None = None
    origin: str = "measured losses"

    @property
    def caveats(self) -> tuple[str, ...]:
        flags = []
        if self.value < 0:
            flags.append(f"delta CE is negative ({self.value:.4g}): the spliced model has the lower loss")
        number = self.documents if self.per_document is None else len(self.per_document[0])
        if self.uncertain and number is not None and number < FEW_DOCUMENTS:
            flags.append(f"fewer than {FEW_DOCUMENTS} documents: the interval covers less than it says")
        return tuple(flags)

    @property
    def unlearned(self) -> str | None:
        """Why the spliced loss is one that no training buys, where it is: above ln(vocabulary), all tokens alike."""
        if self.spliced is None or self.vocabulary is None or self.spliced <= math.log(self.vocabulary):
            return None
        return (
            f"the spliced CE {self.spliced:.4g} is above ln({self.vocabulary}) = {math.log(self.vocabulary):.4g}, "
            "the loss of a model that knows nothing: no amount of training buys so great a loss"
        )

    @property
    def uncertain(self) -> bool:
        return self.per_document is not None or self.standard_error is not None

    def draw(self, n: int, *, rng: np.random.Generator) -> np.ndarray:
        """n draws of Delta CE: documents resampled, or a normal with the given standard error.

        The spread of resampled documents is that of n-1 degrees of freedom, and a percentile of few
        documents covers too little; both are mended by scaling each draw as Student's t is scaled.
        """
        if self.per_document is not None:
            rise, tokens = self.per_document
            documents = len(rise)
            deviation = _resample(rise, tokens, n, rng) - self.value
            student = np.sqrt((documents - 1) / rng.chisquare(documents - 1, n))
            return self.value + deviation * math.sqrt(documents / (documents - 1)) * student
        if self.standard_error is not None:
            deviation = self.standard_error * rng.standard_normal(n)
            if self.documents is not None:  # as above; the standard error is the spread of resampled documents
                freedom = self.documents - 1
                deviation *= math.sqrt(self.documents / freedom) * np.sqrt(freedom / rng.chisquare(freedom, n))
            return self.value + deviation
        return np.full(n, self.value)


def delta_from_losses(
    *, ce_baseline: float, ce_spliced: float, standard_error: float | None = None, documents: int | None = None
) -> DeltaCE:
    """Delta CE from two mean losses of the same tokens, nats/token.

    `standard_error` is that of the difference, paired over documents, not of either loss; with the number of
    `documents`, at least two, its draws spread as Student's t with a degree of freedom less.
    """
    _check_loss("the baseline CE", ce_baseline)
    _check_loss("the spliced CE", ce_spliced)
    if standard_error is not None and not (math.isfinite(standard_error) and standard_error >= 0):
        raise UserError(f"The standard error of delta CE is {standard_error}; it must be 0 or more.")
    return DeltaCE(
        value=ce_spliced - ce_baseline,
        baseline=ce_baseline,
        spliced=ce_spliced,
        standard_error=standard_error,
        documents=None if documents is None or documents < 2 else documents,
    )


def delta_from_documents(*, baseline_nats: ArrayLike, spliced_nats: ArrayLike, tokens: ArrayLike) -> DeltaCE:
    """Delta CE from the summed loss (nats) and the token count of each document, in the same order.

    The value is sum(spliced - baseline) / sum(tokens): tokens weigh alike, documents are resampled whole.
    """
    base, spliced, count = (np.asarray(v, dtype=float) for v in (baseline_nats, spliced_nats, tokens))
    if not (base.ndim == 1 and base.shape == spliced.shape == count.shape):
        raise UserError(
            "Documents need three lists of one length: baseline nats, spliced nats and tokens; got lengths "
            f"{base.size}, {spliced.size} and {count.size}."
        )
    if len(base) < 2:
        raise UserError("One document cannot be resampled: give at least two, or two mean losses instead.")
    if not (np.isfinite(base).all() and np.isfinite(spliced).all() and np.isfinite(count).all()):
        raise UserError("A document's nats or tokens are not finite numbers.")
    if (count <= 0).any():
        raise UserError(f"Document {int(np.argmax(count <= 0))} has no tokens; leave it out.")
    total = count.sum()
    return DeltaCE(
        value=float((spliced - base).sum() / total),
        baseline=float(base.sum() / total),
        spliced=float(spliced.sum() / total),
        per_document=(spliced - base, count),
        origin=f"{len(base)} documents, {int(total)} tokens",
    )


class DocumentRow(Foreign):
    """A document's losses and tokens in a CSV of the user's."""

    baseline_nats: Amount
    spliced_nats: Amount
    tokens: Positive


def read_document_losses(path: str | Path) -> DeltaCE:
    """Delta CE from a CSV with columns baseline_nats, spliced_nats and tokens, one row per document."""
    columns = ("baseline_nats", "spliced_nats", "tokens")
    rows = read_rows(path, required=columns, kind=DocumentRow)
    baseline, spliced, tokens = ([row[column] for row in rows] for column in columns)
    return delta_from_documents(baseline_nats=baseline, spliced_nats=spliced, tokens=tokens)


def delta_from_loss_recovered(
    *,
    loss_recovered: float,
    ce_baseline: float | None = None,
    ce_ablated: float | None = None,
    ablation: str | None = None,
) -> DeltaCE:
    """Delta CE = (1 - loss recovered)(ablation CE - baseline CE), nats/token.

    Inverts loss recovered = (ablation CE - spliced CE)/(ablation CE - baseline CE). Raises UserError where
    either loss or the ablation's name is missing: without them the fraction is of an unknown whole.
    """
    if not math.isfinite(loss_recovered):
        raise UserError(f"Loss recovered is {loss_recovered}; it must be a fraction, such as 0.993.")
    if loss_recovered > 2:
        raise UserError(f"Loss recovered is {loss_recovered}; give a fraction (0.993), not per cent (99.3).")
    if ce_ablated is None:
        raise UserError(
            f"A loss recovered of {loss_recovered:g} cannot be read without its ablation CE: it is a share "
            "of (ablation CE - baseline CE), and what is missing of it may be 0.001 or 0.5 nats/token. "
            "Give the ablation CE (--ce-ablated) and its kind (--ablation zero or mean)."
        )
    if ce_baseline is None:
        raise UserError(
            f"A loss recovered of {loss_recovered:g} with ablation CE {ce_ablated:g} needs the baseline CE: "
            "delta CE is (1 - loss recovered)(ablation CE - baseline CE). Give it (--ce-baseline)."
        )
    if ablation not in ABLATIONS:
        got = "is not named" if ablation is None else f"is {ablation!r}"
        raise UserError(f"The ablation behind a loss recovered {got}; name it (--ablation zero or mean).")
    _check_loss("the baseline CE", ce_baseline)
    _check_loss("the ablation CE", ce_ablated)
    if ce_ablated <= ce_baseline:
        raise UserError(
            f"The ablation CE {ce_ablated:g} is not above the baseline CE {ce_baseline:g}, so a fraction of "
            "the gap between them means nothing. Check that both are nats/token on the same text."
        )
    value = (1 - loss_recovered) * (ce_ablated - ce_baseline)
    return DeltaCE(
        value=value,
        baseline=ce_baseline,
        spliced=ce_baseline + value,
        ablation=ablation,
        ablated=ce_ablated,
        loss_recovered=loss_recovered,
        origin=f"loss recovered {loss_recovered:g} of the {ablation}-ablation CE {ce_ablated:g}",
    )


def finite_or_none(value: object) -> float | None:
    """A finite number as it is; None for whatever stands where a metric is undefined."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _check_loss(what: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"{what[0].upper()}{what[1:]} is {value}; it must be a number of nats/token, 0 or more.")


def _resample(rise: np.ndarray, tokens: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    drawn = document_counts(len(rise), n, rng, most=2_000_000)
    return np.concatenate([(counts @ rise) / (counts @ tokens) for counts in drawn])
