"""Many tests at once: Holm's adjustment, and enough draws for it. Neither torch nor lm_eval."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from sae_lm_eval.comparison.pairs import AGAIN, IntervalOptions

# A permutation test that fewer draws exceeded has a p that more draws would tell better.
FEW_EXCEEDED = 10
SECTIONS = {"overall": "overall", "group": "groups", "category": "categories", "task": "tasks", "length": "lengths"}


def sharpen(rows: Sequence[dict[str, Any]], options: IntervalOptions) -> list[str]:
    """More draws for tests by permutation that hardly any draw exceeded, where so many tests are made that the least
    p there is could not pass Holm's adjustment; a note of that.

    New draws are made, and enough that the least p, times the number of tests, is a tenth of 1 - level.
    """
    notes = []
    for section, primary in dict.fromkeys((row["section"], row["primary"]) for row in rows):
        family = [row for row in rows if (row["section"], row["primary"]) == (section, primary)]
        if len(family) / (options.draws + 1) < 1 - options.level:
            continue
        draws = math.ceil(10 * len(family) / (1 - options.level))
        low = [row for row in family if row["test"] == "permutation" and row["p"] * (options.draws + 1) < FEW_EXCEEDED]
        for row in low:
            row["p"] = row[AGAIN](draws)
        if low:
            notes.append(
                f"{len(low)} of {len(family)} tests of {SECTIONS[section]} had {draws:,} permutations in place of "
                f"{options.draws:,}, with which none could have passed Holm's adjustment."
            )
    return notes


def adjust(drops: pd.DataFrame) -> str:
    """Holm's p into `drops`, and the sentence that says over which tests.

    What is primary is adjusted apart from the rest, so that to show more metrics changes none of its numbers.
    """
    for _, rows in drops.groupby(["section", "primary"]):
        drops.loc[rows.index, "p_adjusted"] = _holm(rows["p"])
    counts = Counter(drops.loc[drops["primary"], "section"])
    labels = {section: plural if section == "overall" else f"for {plural}" for section, plural in SECTIONS.items()}
    tests = ", ".join(f"{counts[section]} {name}" for section, name in labels.items() if section in counts)
    variants = len(set(drops["variant"]))
    across = f", over the {variants} variants at once" if variants > 1 else ""
    more = "" if all(drops["primary"]) else " The metrics beside the primary ones are adjusted apart from them."
    return f"Holm's adjustment is made separately for each table{across} (tests: {tests}).{more}"


def has_star(p_adjusted: float, level: float) -> bool:
    """Whether a test passes at 1 - level."""
    return p_adjusted < 1 - level - 1e-12


def _holm(p: Any) -> Any:
    from statsmodels.stats.multitest import multipletests

    return multipletests(p, method="holm")[1]


def stars_changed(drops: pd.DataFrame, added: Sequence[str], level: float) -> str | None:
    """Which rows of the other variants pass the test at 1 - level with the variants `added` later, and not without.

    A sentence; None where nothing was added, or all that is there.
    """
    before = drops[drops["primary"] & ~drops["variant"].isin(list(added))]
    if before.empty or len(before) == len(drops[drops["primary"]]):
        return None
    changed: dict[str, list[str]] = {"lost": [], "got": []}
    for _, rows in before.groupby("section", sort=False):
        for p, now, alias, variant in zip(
            _holm(rows["p"]), rows["p_adjusted"], rows["alias"], rows["variant"], strict=True
        ):
            had, has = (has_star(value, level) for value in (p, now))
            if had != has:
                changed["lost" if had else "got"].append(f"{alias} of {variant}")
    changes = [f"{verb} its star: {', '.join(names)}" for verb, names in changed.items() if names]
    return (
        f"{', '.join(dict.fromkeys(name for name in added if name in set(drops['variant'])))} came later: p is "
        f"adjusted anew, over all variants. {'; '.join(changes).capitalize() if changes else 'No star changed'}."
    )
