"""How far equivalent compute by tasks is off where the truth is known: the embedded world's own training.

    python benchmarks/capability_world.py FOLDER --train     # trains the world's model anew, an hour and more on a core
    python benchmarks/capability_world.py FOLDER             # asks all models, and prints the table

The curve is that of the checkpoints of the main run. What is placed on it are the same model trained anew on 75%, 50%
and 25% of the tokens, with its learning rate annealed within them: what their capability cost is known. The tasks are
`sae_world`. Prints a Markdown table; the figure of OUT's report is that of docs/effective-compute.md.
"""

import argparse
import dataclasses
import importlib
import json
import sys
from pathlib import Path

from sae_lm_eval.capability.family import MEASURES, cut_scores, equivalent_text, equivalents, read_task_family
from sae_lm_eval.comparison.compare import paired_comparison
from sae_lm_eval.report.text_tables import markdown_table
from sae_lm_eval.runs.members import Member
from sae_lm_eval.runs.run import evaluate, run
from sae_lm_eval.runs.settings import lm_eval_config
from sae_lm_eval.runs.sweep import Sweep
from sae_lm_eval.runs.task_family import measure_tasks

SHARES = (0.75, 0.5, 0.25)
EARLIEST = 1_000_000  # tokens of a checkpoint that is on the curve: before, the world's tasks are at chance
SETTINGS = {"tasks": "sae_world", "device": "cpu", "batch_size": 16}
VARIANTS = [{"sae": f"world#blocks.2.hook_resid_post.{name}", "name": name} for name in ("k4", "k32")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", action="store_true")
    options = parser.parse_args()
    if options.train:
        train(options.folder)
    out = options.folder / "out"
    run(model_args={"pretrained": "world"}, variants=VARIANTS, output_path=out, **SETTINGS)
    tokens = json.loads((options.folder / "tokens.json").read_text())
    checkpoints = [Member(str(options.folder / "own" / name), tokens=float(n)) for name, n in tokens["own"].items()]
    family = read_task_family(
        measure_tasks([checkpoint for checkpoint in checkpoints if (checkpoint.tokens or 0) >= EARLIEST], out)
    )
    rows = []
    for share in SHARES:
        name = f"run{round(100 * share)}"
        if name not in tokens:
            continue
        args = {"pretrained": str(options.folder / name / "final")}
        sweep = Sweep(model_args=args, variants=(), settings=SETTINGS)
        evaluate(sweep, lm_eval_config(sweep), options.folder / f"{name}_tasks")
        comparison = paired_comparison(out / "baseline", [options.folder / f"{name}_tasks" / "baseline"])
        table = equivalents(cut_scores(comparison, family))
        for section, name in [("overall", "overall"), *(("group", group) for group in comparison.baseline.groups)]:
            own = table[(table["section"] == section) & (table["name"] == name)]
            if own.empty or (section == "group" and name == "sae_world"):
                continue
            cells = {str(row["measure"]): equivalent_text(row) for row in own.to_dict("records")}
            shown = {f"by {measure}": cells.get(measure, "n/a") for measure in MEASURES.values()}
            rows.append({"model": f"run on {share:.0%} of the tokens", "tasks": name, "known": f"{share:g}", **shown})
    print(markdown_table(rows))


def train(folder: Path) -> None:
    """The main run with its checkpoints, and those on a part of the tokens; `tokens.json` says what each has read."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
    training, make = importlib.import_module("world_training"), importlib.import_module("make_world")
    tokenizer = training.make_tokenizer()
    own = training.train(make.MAIN, tokenizer, folder / "own")
    tokens = {"own": {row["name"]: row["tokens"] for row in own["checkpoint_table"]}}
    for share in SHARES:
        part = dataclasses.replace(make.MAIN, tokens=int(share * make.MAIN.tokens), checkpoints=0)
        tokens[f"run{round(100 * share)}"] = training.train(part, tokenizer, folder / f"run{round(100 * share)}")[
            "tokens"
        ]
    (folder / "tokens.json").write_text(json.dumps(tokens, indent=1) + "\n")


if __name__ == "__main__":
    main()
