"""Rewrite docs/validation.md: real commands on a real model, and how far spliced logits are from TransformerLens'.

    python benchmarks/validation.py HUB OUT

HUB is the address of a hub that has stories3M, its dictionaries and the data of BLiMP and MMLU; OUT keeps the
results of each command, so that a second call runs only what is missing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
DOC = HERE.parent / "docs" / "validation.md"
sys.path.insert(0, str(HERE.parent / "tests"))
import test_oracle as t  # noqa: E402
from models import ARCHITECTURES, random_ids, random_model, random_sae  # noqa: E402
from test_real_input import RUNS as MODELS  # noqa: E402

SUITES = {"blimp": "--tasks blimp", "mmlu": "--tasks mmlu --num_fewshot 5 --limit 10"}


def command(suite: str, name: str) -> list[str]:
    model, arguments = MODELS[name]
    return f"lm_eval --model {model} --model_args {arguments} {SUITES[suite]} --device cpu --batch_size 64".split()


def results(suite: str, name: str, hub: str, out: Path) -> dict:
    """What lm_eval wrote for the command, run now if it was not yet."""
    folder = out / suite / name
    if not list(folder.rglob("results_*.json")):
        environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(out / "hf_home")}
        said = subprocess.run(
            [*command(suite, name), "--output_path", str(folder)],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        (folder / "printed.txt").write_text(said.stdout)
    return json.loads(next(folder.rglob("results_*.json")).read_text())


def accuracy_table(suite: str, hub: str, out: Path) -> str:
    """Accuracy by group and task, a column a model; every digit that lm_eval gives is compared, three are shown."""
    runs = {name: results(suite, name, hub, out) for name in MODELS}
    tasks = list(runs["hf"]["results"])
    rows = [f"| {suite} | {' | '.join(runs)} |", f"|---|{'---:|' * len(runs)}"]
    for task in tasks:
        cells = [runs[name]["results"][task]["acc,none"] for name in runs]
        rows.append(f"| {task} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")
    same = all(runs["hf"]["results"][t]["acc,none"] == runs["none"]["results"][t]["acc,none"] for t in tasks)
    return "\n".join([*rows, "", f"`none` equals `hf` to the last digit in every row: {'yes' if same else 'NO'}."])


def oracle_table() -> str:
    """The largest difference in log-probability from TransformerLens over hooks, by architecture and processing."""
    import warnings

    warnings.simplefilter("ignore")
    rows = ["| architecture | raw | processed | hooks |", "|---|---:|---:|---:|"]
    for name in ARCHITECTURES:
        model, worst = random_model(name), []
        for processed in (False, True):
            hooked = t.hooked_transformer(model, processed=processed)
            hooked.set_use_hook_mlp_in(True)
            processing = dict.fromkeys(t.PROCESSING, True) if processed else {}
            hooks = [h for h in t.SAE_HOOKS if not (name in t.PARALLEL and h.endswith("hook_resid_mid"))]
            far = 0.0
            for hook in hooks:
                sae = random_sae(t.width_at(model, hook), hook, model_from_pretrained_kwargs=processing)
                ours = t.log_probabilities(model, random_ids(), [sae], splice_tokens="all")
                theirs = t.oracle_log_probabilities(hooked, random_ids(), [(hook, t.through(sae))])
                far = max(far, float((ours - theirs).abs().max()))
            worst.append(f"{far:.1e}")
        rows.append(f"| {name} | {' | '.join(worst)} | {len(hooks)} |")
    return "\n".join(rows)


def main(hub: str, out: Path) -> None:
    shown = "\n".join(" ".join(command(suite, name)) for suite in SUITES for name in MODELS)
    said = results("blimp", "topk32", hub, out)["config"]["sae_lm_eval"]["packages"]
    DOC.write_text(f"""# Validation

Written by `python benchmarks/validation.py HUB OUT`.
Versions: {", ".join(f"{name} {version}" for name, version in said.items())}.

## Real input

stories3M is a Llama of 3.1 M parameters trained on TinyStories; its dictionaries (8 times its width of 192, `topk`)
were trained with SAELens on the same text, at the output of block 2 of 6. MMLU is beyond this model, spliced or not:
its rows show that prompts of five shots run and that an untouched splice changes no answer.

```
{shown}
```

{accuracy_table("blimp", hub, out)}

{accuracy_table("mmlu", hub, out)}

## Against TransformerLens

Small random models of each architecture, in float32, two rows of 20 tokens. The largest difference in any
log-probability (nats) between the spliced Hugging Face model and TransformerLens' own reimplementation with the same
random dictionary at the same hook, over all hooks that the architecture has; "processed" is TransformerLens with
`fold_ln`, `center_writing_weights` and `fold_value_biases`.

{oracle_table()}
""")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]))
