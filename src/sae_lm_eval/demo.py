"""The main job on the embedded world: the untouched model, a few variants, and the drop by category."""

# pyright: reportCallIssue=false
# (lm_eval's decorators hide what they decorate from type checkers.)

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from lm_eval.api.model import CacheHook

from sae_lm_eval.errors import UserError
from sae_lm_eval.paired import Drop, paired_drop

TASK = "sae_world"
TITLE = "Accuracy lost in the embedded world, by category"
CAPTION = (
    "Baseline: accuracy of the untouched model, in percent. Other columns: drop in percentage points, and half the "
    "width of its 95% interval (Tango's, paired question by question); * marks p < .05 (McNemar's test, Holm's "
    "adjustment over all tests shown). SAE: at the output of block 2, with 32 or 4 active elements; transc.: a skip "
    "transcoder for the MLP of block 2; 3 SAEs: k32 at blocks 1, 2 and 3 at once; zero: zeros at the output of block 2."
)


@dataclass(frozen=True)
class Run:
    """What is evaluated under a name: `arguments` are the adapter's, besides the model."""

    name: str
    arguments: dict[str, str]


@dataclass(frozen=True)
class Row:
    """A category of one variant, paired with the baseline; `significant` is after Holm's adjustment over the table."""

    group: str
    category: str
    variant: str
    drop: Drop
    significant: bool


MIDDLE = "world#blocks.2.hook_resid_post"
RUNS = (
    Run("baseline", {"sae": f"{MIDDLE}.k32", "splice": "none"}),
    Run("SAE k32", {"sae": f"{MIDDLE}.k32"}),
    Run("SAE k4", {"sae": f"{MIDDLE}.k4"}),
    Run("transc.", {"sae": "world#blocks.2.mlp.skip_transcoder"}),
    Run("3 SAEs", {"sae": "+".join(f"world#blocks.{layer}.hook_resid_post.k32" for layer in (1, 2, 3))}),
    Run("zero", {"sae": f"{MIDDLE}.k32", "splice": "zero"}),
)


def evaluate(run: Run, task_manager: Any, hook: CacheHook) -> dict[str, dict[int, bool]]:
    """Right or wrong by task and document; `hook` is told of each request as it is answered."""
    import lm_eval

    from sae_lm_eval.adapter import SaeHFLM

    lm: Any = SaeHFLM(pretrained="world", batch_size=128, **run.arguments)
    lm.cache_hook = hook
    results: Any = lm_eval.simple_evaluate(
        model=lm, tasks=[TASK], task_manager=task_manager, bootstrap_iters=0, log_samples=True
    )
    return {task: {s["doc_id"]: bool(s["acc"]) for s in samples} for task, samples in results["samples"].items()}


def table(answers: dict[str, dict[str, dict[int, bool]]], groups: dict[str, str]) -> list[Row]:
    """Every category of every variant beside the baseline. `groups` gives the group of each task."""
    from statsmodels.stats.multitest import multipletests

    baseline = answers["baseline"]
    cells = []
    for name, right in answers.items():
        for task in groups if name != "baseline" else ():
            documents = sorted(baseline[task])
            drop = paired_drop([baseline[task][d] for d in documents], [right[task][d] for d in documents])
            cells.append((groups[task], task, name, drop))
    rejected = multipletests([drop.p for *_, drop in cells], method="holm")[0]
    return [
        Row(group, task.removeprefix(f"{TASK}_"), name, drop, bool(reject))
        for (group, task, name, drop), reject in zip(cells, rejected, strict=True)
    ]


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """The table with every number of it, a line for each category and variant."""
    names = {"baseline": "baseline_accuracy", "variant": "variant_accuracy"}
    names |= {bound: f"{bound}_pp" for bound in ("drop", "low", "high")}
    return pd.DataFrame(
        [
            {"group": row.group, "category": row.category, "variant": row.variant}
            | {names.get(name, name): value for name, value in vars(row.drop).items()}
            | {"significant": row.significant}
            for row in rows
        ]
    )


def cell(row: Row) -> str:
    return f"{row.drop.drop:.1f}±{(row.drop.high - row.drop.low) / 2:.1f}{'*' if row.significant else ''}"


def lines(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heading and cells of the table as it is shown: a line for each category, a column for each variant."""
    variants = list(dict.fromkeys(row.variant for row in rows))
    by_category: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        by_category.setdefault((row.group, row.category), {})[row.variant] = row
    body = [
        [group, category, f"{100 * of[variants[0]].drop.baseline:.1f}", *(cell(of[name]) for name in variants)]
        for (group, category), of in by_category.items()
    ]
    return ["group", "category", "baseline", *variants], body


def markdown(rows: Sequence[Row]) -> str:
    """The table for a reader without a terminal."""
    heading, body = lines(rows)
    rule = ["---", "---", *["---:"] * (len(heading) - 2)]
    return "\n".join(
        [f"# {TITLE}", "", *(f"| {' | '.join(line)} |" for line in (heading, rule, *body)), "", CAPTION, ""]
    )


def make_folder(folder: Path) -> None:
    """Before anything is evaluated. Raises `UserError` where there can be no such folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder '{folder}' cannot be made: {error.strerror}. Give another --output_path."
        ) from error


def write(rows: Sequence[Row], folder: Path) -> None:
    """report.md and drops.csv in `folder`."""
    (folder / "report.md").write_text(markdown(rows))
    frame(rows).to_csv(folder / "drops.csv", index=False)


def write_page(folder: Path) -> Path:
    """talk.html in `folder`: what the untouched model and two variants answer to a question of each category."""
    from sae_lm_eval.talk.conversation import Conversation, Model
    from sae_lm_eval.talk.generation import Sampling
    from sae_lm_eval.talk.page import render
    from sae_lm_eval.talk.passages import of_exchange
    from sae_lm_eval.world import text

    path = folder / "talk.html"
    with _quiet():
        model = Model({"pretrained": "world", "sae": f"{MIDDLE}.k4"}, [f"{MIDDLE}.k32"])
        prompts = [text.questions(category, 1)[0].prompt for category in text.categories()]
        answers = [Conversation(model, Sampling(max_new_tokens=16)).answer(prompt) for prompt in prompts]
        page = render(model, [of_exchange(model, answer) for answer in answers])
    path.write_text(page, encoding="utf-8")
    return path


class _Ticker(CacheHook):
    """lm_eval tells its cache hook of each answer; this one moves a progress bar."""

    def __init__(self, tick: Any) -> None:
        super().__init__(None)
        self.tick = tick

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self.tick()


@contextmanager
def _quiet() -> Iterator[None]:
    """lm_eval, its libraries and the commands they start write on stderr, where no option stops them all."""
    logged = logging.root.manager.disable
    logging.disable(logging.WARNING)
    stderr = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        logging.disable(logged)


def run_all(console: Any) -> list[Row]:
    """Evaluate the baseline and the variants on every category, with a progress bar on `console`."""
    import torch
    from lm_eval.tasks import TaskManager
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    answers: dict[str, dict[str, dict[int, bool]]] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    screen: dict[str, Any] = {"console": console, "transient": True, "redirect_stderr": False}
    torch.set_num_threads(1)  # a second one has too little to do in a model this small
    with _quiet(), Progress(*columns, **screen) as progress:
        task_manager = TaskManager()
        loaded: Any = task_manager.load([TASK])
        requests = sum(4 * len(task.test_docs()) for task in loaded["tasks"].values())
        bar = progress.add_task("", total=requests * len(RUNS))
        for run in RUNS:
            progress.update(bar, description=run.name)
            answers[run.name] = evaluate(run, task_manager, _Ticker(lambda: progress.advance(bar)))
    children = loaded.get("group_map", {})
    groups = {task: group.removeprefix(f"{TASK}_") for group in children[TASK] for task in children[group]}
    return table(answers, groups)
