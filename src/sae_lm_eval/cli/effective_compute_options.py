"""The options of `sae-lm-eval effective-compute`: their types and help, and what they are together."""

from __future__ import annotations

import enum
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sae_lm_eval.errors import UserError

if TYPE_CHECKING:
    from sae_lm_eval.scaling import DeltaCE


class Format(enum.StrEnum):
    table = "table"
    markdown = "markdown"
    csv = "csv"
    json = "json"


Out = Annotated[Path | None, typer.Argument(help="Results of sae_fidelity tasks: a folder that lm_eval or run wrote.")]
CeBaseline = Annotated[float | None, typer.Option(help="CE of the original, nats/token.")]
CeSpliced = Annotated[float | None, typer.Option(help="CE with the dictionary spliced in, nats/token.")]
DeltaSe = Annotated[float | None, typer.Option(help="Standard error of delta CE, paired over documents.")]
Documents = Annotated[Path | None, typer.Option(help="CSV with baseline_nats, spliced_nats, tokens per document.")]
LossRecovered = Annotated[float | None, typer.Option(help="A fraction, in place of --ce-spliced; needs --ce-ablated.")]
CeAblated = Annotated[float | None, typer.Option(help="CE of the ablation that --loss-recovered refers to.")]
Ablation = Annotated[str | None, typer.Option(help="The ablation: zero or mean.")]
Model = Annotated[str | None, typer.Option(help="A known model, such as pythia-70m or google/gemma-7b.")]
Params = Annotated[float | None, typer.Option(help="Parameters with embeddings, such as 124e6.")]
Tokens = Annotated[float | None, typer.Option(help="Training tokens, such as 1e10.")]
Flops = Annotated[float | None, typer.Option(help="Training FLOPs; give --params or --tokens with it.")]
Vocabulary = Annotated[
    int | None, typer.Option(help="Size of the vocabulary; a spliced CE above its logarithm is not converted.")
]
LawName = Annotated[str, typer.Option(help="A law by name, a JSON file of constants, or a CSV of runs to fit.")]
AllLaws = Annotated[bool, typer.Option("--all-laws", help="Tabulate every law.")]
SameText = Annotated[
    bool, typer.Option("--same-text", help="The losses are on the law's own text and tokenizer: also use R = L - E.")
]
FamilyFile = Annotated[
    str | None, typer.Option(help="Losses of several models on the same text: a CSV, or a built-in family.")
]
CheckpointsFile = Annotated[
    Path | None, typer.Option(help="Losses of the original's own checkpoints on the same text: a CSV.")
]
TextName = Annotated[
    str | None, typer.Option(help="The text of the losses, for the calibration: pile, c4, wikitext, ...")
]
BytesPerToken = Annotated[
    float | None,
    typer.Option(help="Of the model's tokenizer: converts losses to the law's, if that is known."),
]
Fraction = Annotated[
    float | None, typer.Option(help="The inverse: the rise of the loss that leaves this fraction, such as 0.1.")
]
Literature = Annotated[bool, typer.Option("--literature", help="Convert published figures and list them.")]
Level = Annotated[float, typer.Option(help="Level of the intervals.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the resampling.")]
OutputFormat = Annotated[Format, typer.Option("--format", help="How to print.")]


@dataclass(frozen=True)
class Losses:
    """Baseline and spliced CE (nats/token), in one of three ways: themselves, by documents, by the loss recovered."""

    ce_baseline: float | None
    ce_spliced: float | None
    delta_se: float | None
    documents: Path | None
    loss_recovered: float | None
    ce_ablated: float | None
    ablation: str | None

    @property
    def given(self) -> bool:
        return any(value is not None for value in astuple(self))

    def delta(self) -> DeltaCE:
        """Raises `UserError` unless it is exactly one of the three ways, whole."""
        from sae_lm_eval import scaling

        ways = [self.documents is not None, self.loss_recovered is not None, self.ce_spliced is not None]
        if sum(ways) > 1:
            raise UserError("Give one of --documents, --loss-recovered and --ce-spliced, not several.")
        if self.loss_recovered is None and (self.ce_ablated is not None or self.ablation is not None):
            raise UserError("--ce-ablated and --ablation belong to --loss-recovered: give it, or leave them out.")
        if self.delta_se is not None and self.ce_spliced is None:
            raise UserError("--delta-se belongs to --ce-baseline and --ce-spliced; leave it out here.")
        if self.documents is not None:
            if self.ce_baseline is not None:
                raise UserError("--documents holds the baseline CE; leave --ce-baseline out.")
            return scaling.read_document_losses(self.documents)
        if self.loss_recovered is not None:
            return scaling.delta_from_loss_recovered(
                loss_recovered=self.loss_recovered,
                ce_baseline=self.ce_baseline,
                ce_ablated=self.ce_ablated,
                ablation=self.ablation,
            )
        if self.ce_baseline is None or self.ce_spliced is None:
            raise UserError(
                "Give two losses (--ce-baseline 3.139 --ce-spliced 3.283), or a loss recovered with its ablation "
                "CE (--loss-recovered 0.993 --ce-ablated 12.4 --ablation zero --ce-baseline 3.139), or documents "
                "(--documents FILE.csv)."
            )
        return scaling.delta_from_losses(
            ce_baseline=self.ce_baseline, ce_spliced=self.ce_spliced, standard_error=self.delta_se
        )


@dataclass(frozen=True)
class Curve:
    """What the losses are converted by, and how sure."""

    law: str
    all_laws: bool
    same_text: bool
    family: str | None
    checkpoints: Path | None
    text: str | None
    level: float
    seed: int

    def options(self) -> dict[str, Any]:
        """As `scaling.effective_compute` takes them."""
        return {
            "law": "all" if self.all_laws else self.law,
            "law_text": "same" if self.same_text else "other",
            "text": self.text,
            "family": self.family,
            "checkpoints": self.checkpoints,
            "level": self.level,
            "rng": self.seed,
        }
