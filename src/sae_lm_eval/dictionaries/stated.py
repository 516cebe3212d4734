"""What a release says of its own numbers, and how it compares with what was measured: was the right thing loaded?"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

FACTOR = 2.0  # the release's text is another: within it, a number is as released
EARLY = 4  # positions of a text that are often unlike all others
# By the name in `Dictionary.stated`: what is compared, in words.
LABELS = {"l0": "L0", "fvu": "FVU", "norm_in": "the norm of what it reads", "norm_out": "the norm of what it writes"}
L0_IN_A_NAME = re.compile(r"(?:^|[/_-])l0[_=-](\d+)(?![\da-z])")


@dataclass(frozen=True)
class Check:
    """One number of a dictionary: as the release states it, as it was measured, and the measured over the stated.

    `later` is the measured without the first `EARLY` positions of each text, where that was taken.
    """

    name: str
    stated: float
    measured: float
    later: float | None = None

    @property
    def ratio(self) -> float:
        return self.measured / self.stated if self.stated else math.inf

    @property
    def agrees(self) -> bool:
        return _near(self.measured, self.stated)

    @property
    def agrees_later(self) -> bool:
        return self.later is not None and _near(self.later, self.stated)

    def __str__(self) -> str:
        label = LABELS[self.name]
        if self.agrees:
            return f"{label} {self.measured:.3g} (released: {self.stated:.3g})"
        return f"{label} is {_times(self.ratio)} what the release says ({self.measured:.3g} for {self.stated:.3g})"


def of_names(*names: str | None) -> dict[str, float]:
    """The L0 that ids and paths state, as `average_l0_82` does."""
    for name in names:
        if name and (match := L0_IN_A_NAME.search(name)):
            return {"l0": float(match[1])}
    return {}


def of_config(config: Mapping[str, Any], d_in: int, d_out: int) -> dict[str, float]:
    """What a configuration states: `l0`, `k`, `dataset_average_activation_norm`, `norm_scaling_factor`."""
    details = config.get("training_architecture_details") or {}
    values: dict[str, Any] = {"l0": config.get("l0") or config.get("k") or details.get("k")}
    norm = config.get("dataset_average_activation_norm")
    if isinstance(norm, Mapping):
        values |= {"norm_in": norm.get("in"), "norm_out": norm.get("out")}
    elif norm is not None:
        values["norm_in"] = norm
    if (factor := config.get("norm_scaling_factor")) is not None:
        values.setdefault("norm_in", math.sqrt(d_in) / factor)
    if (explained := config.get("variance_explained")) is not None:
        values["fvu"] = 1 - explained
    numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if math.isfinite(value) and value > 0}


def checks(stated: Mapping[str, float], measured: Mapping[str, float | None]) -> list[Check]:
    """Of every number that is both stated and measured; `measured` may have `l0_later` beside `l0`."""
    return [
        Check(name, stated[name], value, measured.get(f"{name}_later"))
        for name in LABELS
        if name in stated and (value := measured.get(name)) is not None and math.isfinite(value)
    ]


def verdict(checks: Iterable[Check], fits: str | None = None) -> str:
    """One sentence on whether a dictionary is as released; `fits` is what would make it so."""
    checks = list(checks)
    if not checks:
        return "the release states none of the numbers that are measured"
    wrong = [check for check in checks if not check.agrees]
    if not wrong:
        return f"as released: {', '.join(map(str, checks))}"
    differences = "; ".join(map(str, wrong))
    if all(check.agrees_later for check in wrong):
        return f"as released but for the first {EARLY} positions of a text: {differences}, {_later(wrong)} behind them"
    return f"{differences}: {fits or 'wrong hook, map, norm or positions?'}"


def checks_record(checks: Iterable[Check], sentence: str) -> dict[str, Any]:
    """As plain values for a results file; `agrees` is None where there is nothing to compare."""
    checks = list(checks)
    agrees = all(check.agrees or check.agrees_later for check in checks) if checks else None
    return {
        "verdict": sentence,
        "agrees": agrees,
        "numbers": [{**asdict(each), "ratio": each.ratio} for each in checks],
    }


def _near(measured: float, stated: float) -> bool:
    return stated / FACTOR <= measured <= stated * FACTOR


def _times(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio >= 10 else f"{ratio:.2g} times"


def _later(wrong: Iterable[Check]) -> str:
    return " and ".join(f"{check.later:.3g}" for check in wrong)
