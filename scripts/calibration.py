"""How far estimators are off where the answer is known: data/calibration.csv, and the tables of docs/calibration.md.

python scripts/calibration.py           # about half a minute
python scripts/calibration.py --check   # changes nothing, and fails where the table or the page is out of date
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
from generated_parts import rewritten
from held_out_pairs import (
    Calibrated,
    Estimator,
    by_law,
    by_the_ladder,
    centre,
    half_width,
    least_width,
    missed,
)
from known_pairs import KnownPair, compute_pairs, parameter_pairs, sizes

from sae_lm_eval.report.text_tables import markdown_table
from sae_lm_eval.scaling import effective_compute, laws
from sae_lm_eval.scaling.calibration import ANY
from sae_lm_eval.scaling.data_files import data_path, read_rows
from sae_lm_eval.scaling.family import Family, family_of, monotone_curve
from sae_lm_eval.scaling.ladder import ladder_runs
from sae_lm_eval.scaling.law_estimates import COMPUTE
from sae_lm_eval.scaling.laws import DEFAULT_LAW, ComputeLaw, get_law

PAGE = Path(__file__).parents[1] / "docs" / "calibration.md"
TABLE = data_path("calibration.csv")
DIGITS = 6  # of the table's numbers: the same on every machine
PYTHIA = ("pythia_pile_validation", "pythia_pile_test")


@dataclass(frozen=True)
class Measured:
    """An estimator on known pairs, and its least interval that holds what it has not seen."""

    estimator: Estimator
    pairs: tuple[KnownPair, ...]
    known_text: bool
    calibrated: Calibrated

    @property
    def text(self) -> str:
        return "known" if self.known_text else "not known"

    @property
    def name(self) -> str:
        return "the ladder's fit of the text" if self.estimator.fitted else f"`{self.estimator.name}`"


def remembered(estimator: Estimator) -> Estimator:
    """The same, that works out each pair once."""
    values: dict[tuple[int, str | None], float] = {}

    def bias(pair: KnownPair, size: str | None) -> float:
        key = id(pair), size if estimator.fitted else None
        if key not in values:
            values[key] = estimator.bias(pair, size)
        return values[key]

    return Estimator(estimator.name, bias, estimator.fitted)


def estimators() -> Iterator[tuple[Estimator, tuple[KnownPair, ...], bool]]:
    """Each estimator with the pairs it is measured on, and whether it is told their text."""
    for law in laws().values():
        if law.superseded:
            continue
        borrowed = remembered(by_law(law))
        if not law.name.startswith("olmo_ladder"):  # which has seen the ladder's runs
            yield borrowed, compute_pairs(), True
            yield borrowed, compute_pairs(), False
        if not isinstance(law, ComputeLaw):
            yield borrowed, parameter_pairs(), True
    yield remembered(by_the_ladder()), compute_pairs(), True


def table_rows(measurement: Measured) -> Iterator[dict[str, object]]:
    """The shipped table's rows of an estimator: one for each text and number of tokens per parameter."""
    errors = missed(measurement.pairs, measurement.estimator, known_text=measurement.known_text)
    cells = {
        (pair.text if measurement.known_text else ANY, pair.tokens_per_parameter): pair for pair in measurement.pairs
    }
    for (text, ratio), first in cells.items():
        held = [h for h in measurement.calibrated.held if not measurement.known_text or h.pair.text == text]
        cell = [h for h in held if h.pair.tokens_per_parameter == ratio]
        yield {
            "law": f"{measurement.estimator.name}_{text}"
            if measurement.estimator.fitted
            else measurement.estimator.name,
            "quantity": first.quantity,
            "text": text,
            "tokens_per_parameter": ratio,
            "log_bias": centre(measurement.pairs, measurement.estimator, first, known_text=measurement.known_text),
            "half_width": half_width(errors, text if measurement.known_text else None, measurement.calibrated.level),
            "off": np.exp(np.mean([log_off(measurement.estimator, h.pair, h.size) for h in cell])),
            "pairs": len({id(h.pair) for h in cell}),
            "coverage": np.mean([h.holds for h in held]),
            "width": np.median([h.width for h in held]),
            "params_low": min(pair.params for pair in measurement.pairs),
            "params_high": max(pair.original.params or 0 for pair in measurement.pairs),
            "tokens": None if ratio else measurement.pairs[0].original.tokens,
        }


def log_off(estimator: Estimator, pair: KnownPair, size: str | None) -> float:
    """log of the fraction as the estimator gives it over the truth."""
    return float(np.log(pair.truth) * np.expm1(estimator.bias(pair, size)))


def table_text(measured: Sequence[Measured]) -> str:
    frame = pd.DataFrame([row for measurement in measured for row in table_rows(measurement)])
    frame["tokens_per_parameter"] = frame["tokens_per_parameter"].astype("Int64")
    text = StringIO()
    frame.to_csv(text, index=False, float_format=f"%.{DIGITS}g", lineterminator="\n")
    return text.getvalue()


def coverage(measured: Sequence[Measured], quantity: str) -> str:
    """A line for each estimator: how far it is off, and what intervals hold that were made without a size."""
    lines = []
    for measurement in measured:
        if measurement.pairs[0].quantity != quantity:
            continue
        factors = np.exp(np.abs([log_off(measurement.estimator, h.pair, h.size) for h in measurement.calibrated.held]))
        lines.append(
            {
                "estimator": measurement.name,
                "text": measurement.text,
                "off by, median": f"{np.median(factors):.2f}",
                "off by, 90%": f"{np.quantile(factors, 0.9):.2f}",
                "held": f"{measurement.calibrated.coverage:.1%}",
                "upper / lower bound, median": f"{np.median([h.width for h in measurement.calibrated.held]):.2f}",
                "quantile": f"{measurement.calibrated.level:.3g}",
            }
        )
    return markdown_table(lines)


def split(measured: Sequence[Measured], key: Callable[[KnownPair, str], str], head: str) -> str:
    """What the intervals hold, and their median width; for the default law and the ladder's fits."""
    shown = [
        measurement
        for measurement in measured
        if measurement.estimator.fitted or measurement.estimator.name == DEFAULT_LAW
    ]
    lines = []
    for measurement in shown:
        for group in dict.fromkeys(key(h.pair, h.size) for h in measurement.calibrated.held):
            held = [h for h in measurement.calibrated.held if key(h.pair, h.size) == group]
            quantity = measurement.pairs[0].quantity.removeprefix("effective ")
            label = f"{measurement.name}, {quantity}, text {measurement.text}"
            cell = f"{np.mean([h.holds for h in held]):.0%} ({np.median([h.width for h in held]):.1f})"
            lines.append({head: group, "estimator": label, "cell": cell})
    wide = pd.DataFrame(lines).pivot(index="estimator", columns=head, values="cell")
    compute, rest = [], []
    for label in dict.fromkeys(line["estimator"] for line in lines):
        (rest if "parameters" in label else compute).append(label)
    tables = []
    for labels in (compute, rest):
        groups = dict.fromkeys(line[head] for line in lines if line["estimator"] in labels)
        tables.append(markdown_table([{head: g, **{label: wide.at[label, g] for label in labels}} for g in groups]))
    return "\n\n".join(tables)


def by_text_and_ratio() -> str:
    """The default law's fraction over the truth, by text and tokens per parameter."""
    law = remembered(by_law(get_law(DEFAULT_LAW)))
    own = {row["model"]: row["flops_per_token"] * row["tokens"] for row in ladder_runs()}
    cells: dict[str, dict[int, list[float]]] = {}
    for pair in compute_pairs():
        ratio = pair.tokens_per_parameter or 0
        cells.setdefault(pair.text, {}).setdefault(ratio, []).append(log_off(law, pair, None))
        run = pair.original.name.partition("-")[2]
        counted = np.log(own[f"{pair.smaller}-{run}"] / own[pair.original.name])
        cells[pair.text].setdefault(0, []).append(log_off(law, pair, None) + np.log(pair.truth) - counted)
    lines = []
    for text, by_ratio in cells.items():
        counted = by_ratio.pop(0)
        every = [value for values in by_ratio.values() for value in values]
        ratios = {
            f"{ratio} tokens per parameter": f"{np.exp(np.mean(values)):.2f}" for ratio, values in by_ratio.items()
        }
        lines.append({"text": text, **ratios, "all": f"{np.exp(np.mean(every)):.2f}"})
        lines[-1]["all, by the FLOPs that the ladder counts"] = f"{np.exp(np.mean(counted)):.2f}"
    return markdown_table(lines)


def within_the_law() -> str:
    """How often the interval within the default law holds the truth."""
    lines = []
    for pairs in (compute_pairs(), parameter_pairs()):
        held = 0
        for pair in pairs:
            result = effective_compute(ce_baseline=3, ce_spliced=3 + pair.rise, original=pair.original)
            estimate = next(e for e in result.estimates if e.quantity == pair.quantity and e.interval is not None)
            low, high = estimate.interval.low, estimate.interval.high  # type: ignore[union-attr]
            held += (low or 0.0) <= pair.truth <= (high or np.inf)
        lines.append({"pairs": pairs[0].quantity, "number": str(len(pairs)), "held": str(held)})
    return markdown_table(lines)


def order() -> str:
    """How far each estimator is off on the same pairs, a size being left out of what it is made from."""
    lines = []
    ladder, pythia = compute_pairs(), parameter_pairs()
    besiroglu, fitted = by_law(get_law(DEFAULT_LAW)), by_the_ladder()
    inner = [pair for pair in ladder if pair.smaller != sizes(ladder)[0]]
    lines += [
        line(
            "the same models on the same text, interpolated", inner, lambda pair: interpolated(ladder_curve(pair), pair)
        ),
        line("the ladder's fit of the text", inner, lambda pair: plain(fitted, pair)),
        line(f"`{DEFAULT_LAW}`", inner, lambda pair: plain(besiroglu, pair)),
    ]
    inner = [pair for pair in pythia if pair.smaller != sizes(pythia)[0]]
    crossed = {PYTHIA[0]: PYTHIA[1], PYTHIA[1]: PYTHIA[0]}
    lines += [
        line(
            "the same models on the same text, interpolated",
            inner,
            lambda p: by_pythia(p.source, p),
        ),
        line(
            "the same models on another set of documents, interpolated",
            inner,
            lambda p: by_pythia(crossed[p.source], p),
        ),
        line("the ladder's fit of the text", inner, lambda pair: plain(by_law(get_law("olmo_ladder_pile")), pair)),
        line(f"`{DEFAULT_LAW}`", inner, lambda pair: plain(besiroglu, pair)),
    ]
    return markdown_table(lines)


def line(name: str, pairs: Sequence[KnownPair], log_fraction: Callable[[KnownPair], float]) -> dict[str, str]:
    factors = np.exp([abs(log_fraction(pair) - np.log(pair.truth)) for pair in pairs])
    defined = factors[np.isfinite(factors)]
    return {
        "pairs": f"{pairs[0].quantity}, {len(pairs)}",
        "estimator": name,
        "defined": f"{len(defined)}",
        "off by, median": f"{np.median(defined):.2f}",
        "off by, 90%": f"{np.quantile(defined, 0.9):.2f}",
    }


def plain(estimator: Estimator, pair: KnownPair) -> float:
    return float(np.log(pair.truth)) + log_off(estimator, pair, pair.smaller)


def interpolated(curve: Family, pair: KnownPair) -> float:
    """log of the fraction by a curve that has the larger model and not the smaller one."""
    knots = monotone_curve(curve.compute, curve.loss)
    own = float(curve.loss[curve.models.index(pair.original.name)])
    return float(knots.log_compute_at(own + pair.rise) - knots.log_compute_at(own))


def ladder_curve(pair: KnownPair) -> Family:
    run = pair.original.name.partition("-")[2]
    rows = [
        {"model": row["model"], "flops": 6 * row["params"] * row["tokens"], "loss": row["loss"]}
        for row in ladder_runs()
        if row["text"] == pair.text
        and row["role"] == "fit"
        and row["model"].partition("-")[2] == run
        and row["model"].partition("-")[0] != pair.smaller
    ]
    return family_of(rows, name="ladder", kind="family", where="olmo_ladder.csv")


def by_pythia(family: str, pair: KnownPair) -> float:
    """log of the fraction by a set of losses of the Pythia models, without the smaller one."""
    rows = [
        {"model": row["model"], "flops": row["params"], "loss": row["loss"]}
        for row in read_rows(data_path("families.csv"), required=["family"])
        if row["family"] == family and row["model"] != pair.smaller
    ]
    return interpolated(family_of(rows, name=family, kind="family", where="families.csv"), pair)


def parts(measured: Sequence[Measured]) -> dict[str, str]:
    ladder = [measurement for measurement in measured if measurement.pairs[0].quantity == COMPUTE]
    assert ladder
    return {
        "within the law": within_the_law(),
        "by text and ratio": by_text_and_ratio(),
        "compute pairs": coverage(measured, COMPUTE),
        "parameter pairs": coverage(measured, "effective parameters"),
        "by size": split(measured, lambda _, size: size, "left out"),
        "by text": split(
            measured, lambda pair, _: pair.source if pair.tokens_per_parameter is None else pair.text, "text"
        ),
        "order": order(),
    }


def main(arguments: Sequence[str]) -> int:
    measured = [
        Measured(e, pairs, known_text, least_width(pairs, e, known_text=known_text))
        for e, pairs, known_text in estimators()
    ]
    new = {TABLE: table_text(measured), PAGE: rewritten(PAGE.read_text(encoding="utf-8"), parts(measured))}
    old = {path: path.read_text(encoding="utf-8") if path.is_file() else "" for path in new}
    if "--check" in arguments:
        for path in (path for path in new if new[path] != old[path]):
            print(f"{path} is out of date: run python {Path(__file__).name}", file=sys.stderr)
        return int(new != old)
    for path, text in new.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
