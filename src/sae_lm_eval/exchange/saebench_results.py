"""SAEBench's result files -> scores. Which of an eval's metrics are scores, and which way is better, is SAEBench's own.

The layout is that of `sae_bench` 0.6: a JSON file for each dictionary and eval, with `eval_type_id`, the dictionary as
`sae_lens_release_id` and `sae_lens_id`, and numbers in `eval_result_metrics` by category and metric.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sae_lm_eval.exchange.dictionary_names import DictionaryName
from sae_lm_eval.exchange.scores import DictionaryScore, ScoreKind
from sae_lm_eval.files.reading import Foreign, checked, shown

WHAT = "a result file of SAEBench's"
MARKS = ("eval_type_id", "eval_result_metrics")  # by which such a file is known
# Left out, by the eval's id.
UNRELIABLE = ("scr", "tpp")
LEFT_OUT = "SCR and TPP are left out: they fail audits of their reliability (arXiv 2605.18229)."
# By eval and metric, whether higher is better. Of other evals every number is taken, and higher is taken to be better.
PROBING = {f"sae_top_{k}_test_accuracy": True for k in (1, 2, 5)}
SCORES = {
    "absorption_first_letter": {
        "mean_absorption_fraction_score": False,
        "mean_full_absorption_score": False,
        "mean_num_split_features": False,
    },
    "autointerp": {"autointerp_score": True},
    "core": {"ce_loss_score": True, "kl_div_score": True, "explained_variance": True, "frac_alive": True},
    "ravel": {"disentanglement_score": True, "cause_score": True, "isolation_score": True},
    "sparse_probing": PROBING,
    "sparse_probing_sae_probes": PROBING,
    "unlearning": {"unlearning_score": True},
}
CORE, UNDEFINED_IN_CORE = "core", -1  # SAEBench writes this in the place of NaN


class SaeBenchFile(Foreign):
    """A result file, as far as scores are read from it."""

    eval_type_id: str
    eval_result_metrics: dict[str, dict[str, Any]]
    sae_lens_release_id: str | None = None
    sae_lens_id: str | None = None


def is_saebench(value: Any) -> bool:
    """Whether a file's content has the marks of a result of SAEBench's."""
    return isinstance(value, dict) and all(mark in value for mark in MARKS)


def is_unreliable(value: dict[str, Any]) -> bool:
    """Whether it is of an eval that is left out."""
    return value["eval_type_id"] in UNRELIABLE


def saebench_scores(value: Any, path: Path) -> list[DictionaryScore]:
    """The scores in a result's content; undefined ones are missing, and all of a dictionary without a name.

    Raises `UserError` where it is no result of SAEBench's.
    """
    where = f"'{shown(path, 200)}'"
    result = checked(SaeBenchFile, value, where, WHAT)
    if not (result.sae_lens_release_id or "").strip():
        return []
    dictionary = DictionaryName.of_parts(result.sae_lens_release_id or "", result.sae_lens_id)
    directions = SCORES.get(result.eval_type_id)
    scores = []
    for metrics in result.eval_result_metrics.values():
        for name, number in metrics.items():
            if (directions is not None and name not in directions) or not is_finite(number):
                continue
            if result.eval_type_id == CORE and number == UNDEFINED_IN_CORE:
                continue
            origin = f"SAEBench {result.eval_type_id}"
            direction = {"is_assumed": True} if directions is None else {"higher_is_better": directions[name]}
            kind = ScoreKind(name, origin, **direction)
            scores.append(DictionaryScore(kind, dictionary, float(number), str(path)))
    return scores


def is_finite(number: Any) -> bool:
    """Whether it is a number that a double holds, and no truth value."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        return False
    try:
        return math.isfinite(number)
    except OverflowError:
        return False
