"""Released dictionaries on their own models, beside what was published of them.

    python scripts/reproduce_released.py out/released                        # all: needs a GPU and a network
    python scripts/reproduce_released.py out/released --only gpt2 --limit 50    # whose model or dictionary has this

Prints a table of expected and found. Exits with 1 where a value is different from what was published, or where a model
or a dictionary could not be evaluated. What is expected, with its source and tolerance, stands in
released_dictionaries.yaml. A run that was cut short continues.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from sae_lm_eval.results.find import find_results

CASES = Path(__file__).with_name("released_dictionaries.yaml")
NOT_PUBLISHED, SAME, DIFFERENT = "no published value", "yes", "different"


@dataclass(frozen=True)
class Check:
    """A published value of a dictionary, None where none is known, and the run's own; `within` is relative."""

    sae: str
    metric: str
    expected: float | None
    within: float
    measured: float | None
    source: str

    @property
    def verdict(self) -> str:
        if self.expected is None:
            return ""
        near = self.measured is not None and abs(self.measured - self.expected) <= self.within * abs(self.expected)
        return SAME if near else DIFFERENT


def by_run(cases: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """The cases of one model and its tasks, which are evaluated together."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for case in cases:
        groups.setdefault(json.dumps([case["model_args"], tasks_of(case)], sort_keys=True), []).append(case)
    yield from groups.values()


def tasks_of(case: Mapping[str, Any]) -> list[str]:
    return [case["task"], *case.get("questions", ())]


def evaluate(cases: Sequence[Mapping[str, Any]], folder: Path, settings: Mapping[str, Any]) -> None:
    """One run of a model and its dictionaries. Raises `CalledProcessError` where it fails."""
    variants = [{"sae": case["sae"], "name": name_of(number)} for number, case in enumerate(cases)]
    sweep = {"model_args": cases[0]["model_args"], "tasks": tasks_of(cases[0]), "variants": variants, **settings}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    command = [sys.executable, "-m", "sae_lm_eval", "run", folder / "sweep.yaml", "--output_path", folder / "run"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def name_of(number: int) -> str:
    return f"dictionary{number}"


def checks(cases: Sequence[Mapping[str, Any]], folder: Path) -> list[Check]:
    """The values of a finished run beside what was published."""
    written = pd.read_csv(folder / "run" / "report" / "fidelity.csv")
    fidelity = {
        (str(row["variant"]), str(row["task"]), str(row["metric"])): float(row["value"])
        for row in written.dropna(subset=["value"]).to_dict("records")
    }
    baseline, variants = find_results(folder / "run")
    scores = {results.name: results.scores for results in (baseline, *variants)}

    def measured(name: str, task: str, expectation: Mapping[str, Any]) -> float | None:
        if task.startswith("sae_fidelity"):
            return fidelity.get((name, task, expectation["metric"]))
        results_name = baseline.name if expectation.get("of") == "baseline" else name
        return scores[results_name].get(task, {}).get(f"{expectation['metric']},none")

    rows = []
    for number, case in enumerate(cases):
        for expectation in case["expected"]:
            task = expectation.get("task", case["task"])
            words = [] if task == case["task"] else [task]
            words += [expectation["metric"], *([f"({expectation['of']})"] if "of" in expectation else [])]
            value = expectation["value"]
            rows.append(
                Check(
                    case["sae"],
                    " ".join(words),
                    None if value is None else float(value),
                    float(expectation.get("within", 0)),
                    measured(name_of(number), task, expectation),
                    expectation.get("source", ""),
                )
            )
    return rows


def table(compared: Sequence[Check]) -> str:
    rows = [
        [
            check.sae,
            check.metric,
            NOT_PUBLISHED if check.expected is None else f"{check.expected:.4g} ± {100 * check.within:.0f}%",
            "n/a" if check.measured is None else f"{check.measured:.4g}",
            check.verdict,
            check.source,
        ]
        for check in compared
    ]
    columns = ["dictionary", "metric", "expected", "found", "agrees", "source"]
    return pd.DataFrame(rows, columns=columns).to_string(index=False)


def selected(arguments: argparse.Namespace) -> list[Mapping[str, Any]]:
    return [
        case
        for case in yaml.safe_load(arguments.cases.read_text())
        if (arguments.only or "") in f"{case['model_args']['pretrained']} {case['sae']}"
    ]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", type=Path, default=CASES, help="another file of published values")
    parser.add_argument("--only", help="cases whose model or dictionary has this in its name")
    parser.add_argument("--limit", type=int, default=200, help="documents of each task")
    parser.add_argument("--batch_size", default="auto")
    parser.add_argument("--device")
    arguments = parser.parse_args(words)
    cases = selected(arguments)
    if not cases:
        parser.error(f"No case has '{arguments.only}' in its name.")
    settings = {"limit": arguments.limit, "batch_size": arguments.batch_size}
    settings |= {} if arguments.device is None else {"device": arguments.device}
    compared: list[Check] = []
    failed = []
    for of_run in by_run(cases):
        model = str(of_run[0]["model_args"]["pretrained"])
        folder = arguments.out / f"{model.replace('/', '_')}-{of_run[0]['task']}"
        try:
            evaluate(of_run, folder, settings)
        except subprocess.CalledProcessError:
            # `run` has said why, a gated model for example: the others are checked all the same.
            failed.append(model)
        else:
            compared += checks(of_run, folder)
    if compared:
        judged = [check.verdict for check in compared if check.verdict]
        print(table(compared))
        print(f"{judged.count(DIFFERENT)} of {len(judged)} published values are different from what was found.")
    if failed:
        print(f"Not checked: {', '.join(failed)}.")
    return int(bool(failed) or any(check.verdict == DIFFERENT for check in compared))


if __name__ == "__main__":
    sys.exit(main())
