"""The OLMo ladder: runs of known size and tokens, their losses on eleven texts, and a law for each text."""

from __future__ import annotations

import functools

from sae_lm_eval.errors import UserError
from sae_lm_eval.scaling.data_files import Row, data_path, read_rows
from sae_lm_eval.scaling.fit import fit_parametric_law
from sae_lm_eval.scaling.laws import ParametricLaw

LADDER = "olmo_ladder"  # the laws fitted to the ladder's runs on one text are LADDER_text
LADDER_SOURCE = (
    "Bhagia et al. 2024, Establishing Task Scaling Laws via Compute-Efficient Model Ladders, arXiv:2412.04403"
)


@functools.cache
def ladder_runs() -> tuple[Row, ...]:
    """The ladder's losses (nats/token of OLMo's tokenizer) on each of its texts."""
    return tuple(read_rows(data_path("olmo_ladder.csv"), required=["text", "model", "params", "tokens", "loss"]))


def ladder_texts() -> tuple[str, ...]:
    """Names of the texts that the ladder's losses are known on."""
    return tuple(dict.fromkeys(row["text"] for row in ladder_runs()))


@functools.cache
def ladder_law(text: str, without: str | None = None) -> ParametricLaw:
    """The law fitted to the ladder's 16 runs on a text, or to those of all sizes but one."""
    rows = [row for row in ladder_runs() if row["text"] == text and row["role"] == "fit" and run_size(row) != without]
    if not rows:
        raise UserError(f"The OLMo ladder has no losses on {text!r}. Known: {', '.join(ladder_texts())}.")
    columns = ([row[name] for row in rows] for name in ("params_non_embedding", "tokens", "loss"))
    return fit_parametric_law(
        *columns,
        name=f"{LADDER}_{text}",
        text=f"{text}, OLMo 2 tokenizer",
        counts="non-embedding",
        tokenizer="OLMo 2",
        source=f"fitted here (least squares on log L) to the runs of {LADDER_SOURCE}; losses in olmo_ladder.csv",
    )


def run_size(row: Row) -> str:
    """A run's size: "190M" of 190M-10xC."""
    return row["model"].partition("-")[0] if row.get("role") else row["model"]
