"""Released dictionaries on their own models, beside what was published of them.

    python scripts/reproduce_released.py out/released                        # all: needs a GPU and a network
    python scripts/reproduce_released.py out/released --only gpt2 --limit 50    # whose model or dictionary has this

Prints a table of expected and found, and exits with 1 where one is not the other. What is expected, with its source and
how near a run has to come, stands in released_dictionaries.yaml. A run that was cut short continues.
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

CASES = Path(__file__).with_name("released_dictionaries.yaml")


@dataclass(frozen=True)
class Check:
    """One published value of a dictionary, and the run's; `within` is relative."""

    sae: str
    metric: str
    expected: float
    within: float
    found: float | None
    source: str

    @property
    def agrees(self) -> bool:
        return self.found is not None and abs(self.found - self.expected) <= self.within * abs(self.expected)


def by_run(cases: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
    """The cases of one model and text, which are evaluated together."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for case in cases:
        groups.setdefault(json.dumps([case["model_args"], case["task"]], sort_keys=True), []).append(case)
    for of_run in groups.values():
        yield of_run[0], of_run


def checks(cases: Sequence[Mapping[str, Any]], folder: Path, settings: Mapping[str, Any]) -> list[Check]:
    """Evaluate dictionaries of one model on one text, and compare. Raises `CalledProcessError` where `run` fails."""
    first, names = cases[0], [f"dictionary{number}" for number in range(len(cases))]
    variants = [{"sae": case["sae"], "name": name} for case, name in zip(cases, names, strict=True)]
    sweep = {"model_args": first["model_args"], "tasks": [first["task"]], "variants": variants, **settings}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    command = [sys.executable, "-m", "sae_lm_eval", "run", folder / "sweep.yaml", "--output_path", folder / "run"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = pd.read_csv(folder / "run" / "report" / "fidelity.csv").set_index(["variant", "metric"])["value"].to_dict()
    return [
        Check(
            case["sae"],
            metric,
            float(asked["value"]),
            float(asked["within"]),
            found.get((name, metric)),
            case["source"],
        )
        for case, name in zip(cases, names, strict=True)
        for metric, asked in case["expected"].items()
    ]


def table(made: Sequence[Check]) -> str:
    rows = [
        [
            check.sae,
            check.metric,
            f"{check.expected:.4g} ± {100 * check.within:.0f}%",
            "n/a" if check.found is None else f"{check.found:.4g}",
            "yes" if check.agrees else "NO",
            check.source,
        ]
        for check in made
    ]
    return pd.DataFrame(rows, columns=["dictionary", "metric", "expected", "found", "agrees", "source"]).to_string(
        index=False
    )


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", type=Path, default=CASES, help="another file of published values")
    parser.add_argument("--only", help="cases whose model or dictionary has this in its name")
    parser.add_argument("--limit", type=int, default=200, help="documents of each text")
    parser.add_argument("--batch_size", default="auto")
    parser.add_argument("--device")
    arguments = parser.parse_args(words)
    cases = [
        case
        for case in yaml.safe_load(arguments.cases.read_text())
        if (arguments.only or "") in f"{case['model_args']['pretrained']} {case['sae']}"
    ]
    if not cases:
        parser.error(f"No case has '{arguments.only}' in its name.")
    settings = {"limit": arguments.limit, "batch_size": arguments.batch_size}
    settings |= {} if arguments.device is None else {"device": arguments.device}
    made: list[Check] = []
    failed = []
    for number, (first, of_run) in enumerate(by_run(cases)):
        name = f"{number}-{str(first['model_args']['pretrained']).replace('/', '_')}"
        try:
            made += checks(of_run, arguments.out / name, settings)
        except (
            subprocess.CalledProcessError
        ):  # it has said why; a gated model, say: the others are checked all the same
            failed.append(first["model_args"]["pretrained"])
    if made:
        print(table(made))
    if failed:
        print(f"Not checked: {', '.join(failed)}.")
    return int(bool(failed) or not all(check.agrees for check in made))


if __name__ == "__main__":
    sys.exit(main())
