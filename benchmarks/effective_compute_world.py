"""How far borrowed laws are off where more is known: effective compute in the embedded world, by every curve.

    python benchmarks/effective_compute_world.py                 # the table, from what was measured when it was made
    python benchmarks/effective_compute_world.py --train 0.75 0.5 0.25   # trains the runs again, half an hour on a core

The package says of the world that it is outside every published law, and quotes none. Here the laws are asked all
the same, as if they had no ranges. The first rows are the world's model itself, trained anew on a part of the tokens
with its learning rate annealed within them: what their loss costs is known. The others are the dictionaries of the
world. Prints a Markdown table.
"""

import argparse
import dataclasses
import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from sae_lm_eval import world
from sae_lm_eval.report.text_tables import fraction, markdown_table
from sae_lm_eval.scaling import EffectiveCompute, Family, effective_compute, laws
from sae_lm_eval.scaling.curve_estimates import CHECKPOINTS, INTERPOLATION
from sae_lm_eval.scaling.law_estimates import COMPUTE, FAMILY_FIT, LAW_RELATIVE

RUNS = Path(__file__).with_name("effective_compute_world.json")
TITLES = {LAW_RELATIVE: "within the law, extrapolated"}
SHOWN = (CHECKPOINTS, INTERPOLATION, FAMILY_FIT, LAW_RELATIVE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=float, nargs="*", metavar="SHARE", help="shares of the tokens")
    options = parser.parse_args()
    if options.train:
        RUNS.write_text(json.dumps([train(share) for share in options.train], indent=1) + "\n")
    facts = world.world_facts()
    own = facts["family"][-1]
    curves = {
        "family": curve("world family", "family", facts["family"]),
        "checkpoints": curve("world checkpoints", "checkpoints", [*facts["checkpoints"], own]),
    }
    rows = []
    for run in json.loads(RUNS.read_text()):
        share = run["tokens"] / own["tokens"]
        result = convert(own, ce_baseline=own["loss"], ce_spliced=run["loss"], **curves)
        rows.append({"loss of": f"run on {share:.0%} of the tokens", **cells(result, truth=f"{share:.3g}")})
    baseline = facts["measured"]["baseline"]["loss"]
    for name, measured in facts["measured"]["variants"].items():
        result = convert(own, ce_baseline=baseline, ce_spliced=measured["loss"], **curves)
        rows.append({"loss of": name, **cells(result, truth="")})
    print(markdown_table(rows))


def train(share: float) -> dict[str, Any]:
    """The main run of the world on a share of its tokens: the figures of its file."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
    training, make = importlib.import_module("world_training"), importlib.import_module("make_world")
    run = dataclasses.replace(make.MAIN, tokens=int(share * make.MAIN.tokens), checkpoints=0)
    with tempfile.TemporaryDirectory() as folder:
        trained = training.train(run, training.make_tokenizer(), Path(folder))
    return {name: trained[name] for name in ("tokens", "loss", "standard_error", "documents", "learning_rate", "seed")}


def curve(name: str, kind: Any, rows: list[dict[str, Any]]) -> Family:
    compute, loss = (np.array([row[column] for row in rows], dtype=float) for column in ("compute", "loss"))
    return Family(name=name, kind=kind, models=tuple(row["name"] for row in rows), compute=compute, loss=loss)


def convert(own: dict[str, Any], **options: Any) -> EffectiveCompute:
    endless = {"flops_range": (1e-99, 1e99)}
    endless_laws = [
        dataclasses.replace(law, **endless, **({"params_range": (1e-99, 1e99)} if law.params_range else {}))
        for law in laws().values()
    ]
    return effective_compute(params=own["parameters"], tokens=own["tokens"], law=endless_laws, **options)


def cells(result: EffectiveCompute, *, truth: str) -> dict[str, str]:
    """A cell for each definition; of the laws the default one, and least and greatest of all in force."""
    by_definition: dict[str, str] = {}
    for estimate in result.estimates:
        if estimate.quantity == COMPUTE:
            by_definition.setdefault(estimate.definition, fraction(dataclasses.replace(estimate, bound=None)))
    in_force = {name for name, law in laws().items() if not law.superseded}
    between = [
        estimate.fraction
        for estimate in result.estimates
        if (estimate.quantity, estimate.definition) == (COMPUTE, LAW_RELATIVE) and estimate.curve in in_force
    ]
    defined = [value for value in between if value is not None]
    spread = f"{min(defined):.3g} to {max(defined):.3g}" if defined else "n/a"
    shown = {TITLES.get(name, name): by_definition[name] for name in SHOWN}
    return {"delta CE": f"{result.delta.value:.4f}", "known": truth, **shown, "between laws, extrapolated": spread}


if __name__ == "__main__":
    main()
