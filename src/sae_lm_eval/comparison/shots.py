"""The same run with several choices of in-context examples -> drops whose intervals include that choice.

Neither torch nor lm_eval.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from sae_lm_eval.comparison.compare import Comparison
from sae_lm_eval.errors import UserError

COLUMNS = ["variant", "task", "seeds", "n", "drop", "low", "high", "between_seeds", "interval"]
INTERVAL = "two-way, questions and seeds"


def drop_over_seeds(lost: np.ndarray, *, level: float = 0.95) -> tuple[float, float, float, float]:
    """Drop, its bounds, and the standard deviation of the seeds' drops, all in pp.

    `lost` (seeds, questions) holds 1 where an answer went from right to wrong, -1 where it went from wrong to right,
    and else 0. Questions and seeds are both taken for samples: with the mean square V_q of the questions' means over
    their number, V_s of the seeds' likewise and V_qs of what neither explains over the number of answers, the variance
    of the mean is V_q + V_s - V_qs (Cameron, Gelbach and Miller 2011, Journal of Business and Economic Statistics
    29:238-249), and at least the greater of the first two. The quantile is Student's with Satterthwaite's degrees of
    freedom, which are few where the seeds differ much. One question lost and one gained by every seed are added for the
    interval, as in Bonett and Price's.

    Raises `ValueError` for fewer than two seeds, or no question.
    """
    answers = np.asarray(lost, dtype=float)
    if answers.ndim != 2 or len(answers) < 2 or not answers.shape[1]:
        raise ValueError(f"An interval over seeds needs two seeds or more and a question, not {answers.shape}.")
    seeds = len(answers)
    added = np.column_stack([answers, np.ones(seeds), -np.ones(seeds)])
    questions = added.shape[1]
    of_seed, of_question, centre = added.mean(1), added.mean(0), float(added.mean())
    rest = added - of_seed[:, None] - of_question + centre
    by_question = of_question.var(ddof=1) / questions
    by_seed = of_seed.var(ddof=1) / seeds
    both = (rest**2).sum() / ((seeds - 1) * (questions - 1)) / (seeds * questions)
    variance = max(by_question + by_seed - both, by_question, by_seed)
    freedom = variance**2 / (by_question**2 / (questions - 1) + by_seed**2 / (seeds - 1))
    half = float(stats.t.ppf(0.5 + level / 2, freedom) * np.sqrt(variance))
    between = 100 * float(answers.mean(1).std(ddof=1))
    return 100 * float(answers.mean()), 100 * max(-1.0, centre - half), 100 * min(1.0, centre + half), between


def over_seeds(comparisons: Mapping[int, Comparison], *, level: float = 0.95) -> pd.DataFrame:
    """A row for each variant and right-or-wrong task, and one over all of them, from the comparison of each seed.

    Drops and bounds are in pp, positive where the variant is worse; `between_seeds` is the standard deviation of the
    seeds' drops. Raises `UserError` for fewer than two seeds, and where the seeds asked other questions.
    """
    if len(comparisons) < 2:
        raise UserError("An interval that includes the choice of examples needs two seeds or more.")
    tables = {seed: _answers(comparison) for seed, comparison in comparisons.items()}
    first = next(iter(tables.values()))
    for seed, table in tables.items():
        if not table.index.equals(first.index):
            raise UserError(f"The run with the few-shot seed {seed} asked other questions than the first one.")
    joined = pd.concat(tables, axis=1)
    rows = []
    for variant, of_variant in joined.groupby(level="variant", sort=False):
        cuts = [("overall", of_variant), *of_variant.groupby(level="task", sort=False)]
        for task, losses in cuts:
            drop, low, high, between = drop_over_seeds(losses.to_numpy().T, level=level)
            rows.append((variant, task, len(tables), len(losses), drop, low, high, between, INTERVAL))
    return pd.DataFrame(rows, columns=COLUMNS)


def _answers(comparison: Comparison) -> pd.Series:
    """What each question lost, by variant, task and question, of the tasks that are right or wrong."""
    drops = comparison.drops
    accurate = set(drops.loc[(drops["section"] == "task") & (drops["kind"] == "accuracy") & drops["primary"], "name"])
    answers: Any = comparison.documents()  # pandas' types do not say what a selection is
    answers = answers[answers["task"].isin(accurate)]
    if answers.empty:
        raise UserError("None of the tasks is right or wrong by question, so there is no drop over seeds.")
    return answers.set_index(["variant", "task", "doc_id"])["score_lost"].sort_index()
