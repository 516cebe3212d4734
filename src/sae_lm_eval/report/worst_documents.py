"""The documents of each category that lose most, with their prompts and what each model answered."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

import numpy as np
import pandas as pd

from sae_lm_eval.comparison.compare import Comparison
from sae_lm_eval.comparison.subsets import Cut, alias_of
from sae_lm_eval.files.escaping import printable
from sae_lm_eval.report.drop_tables import CategoryRows, DropRow, in_order, section_of
from sae_lm_eval.report.formatting import NA, abridged, fixed_decimals
from sae_lm_eval.report.unusual_latents import Unusual, unusual_latents
from sae_lm_eval.results.find import is_control
from sae_lm_eval.results.results import Results

DOCUMENTS = 3
# With more variants, only the least and the most costly one: each adds documents, and a column to each.
MOST_VARIANTS = 4
LONGEST_PROMPT, LONGEST_ANSWER = 1200, 300
MARGIN = "margin"
CAPTION = (
    f"Up to {DOCUMENTS} documents a category and variant: those in which the log-probability of the right answer loses "
    "most on that of the best wrong one (the margin), or where there are no such choices, most of the score. Numbers "
    "are log-probabilities in nats; bold is each model's answer, of a single continuation where it is the likeliest. "
    f"Of more than {MOST_VARIANTS} variants, those that cost least and most over all tasks. Latents: those that are as "
    "active in the fewest other documents, at the positions that predict the right answer; in brackets the activation "
    "there and the number of these documents."
)

Sample = dict[str, Any]
# (task, filter, doc_id)
Key = tuple[str, str, int]
# `Comparison.documents` by (variant, task)
Frames = Mapping[tuple[str, str], pd.DataFrame]


@dataclass(frozen=True)
class Said:
    """What one model said to a choice, and whether it is that model's answer."""

    text: str
    chosen: bool = False


@dataclass(frozen=True)
class Line:
    """One choice, or what else was measured, with what each model said to it."""

    label: str
    right: bool
    said: tuple[Said, ...]


@dataclass(frozen=True)
class WorstDocument:
    """`prompt` alternates between what was asked and remarks on what is left out; `models` are the columns.

    `losers` are the variants that lose most in it, where there are several.
    """

    title: str
    losers: tuple[str, ...]
    prompt: tuple[str, ...]
    target: str | None
    models: tuple[str, ...]
    lines: tuple[Line, ...]
    unusual: tuple[Unusual, ...] = ()


@dataclass(frozen=True)
class Worst:
    category: str
    documents: tuple[WorstDocument, ...]


def worst_documents(
    comparison: Comparison, rows: Sequence[DropRow], shown: CategoryRows, names: Mapping[str, str]
) -> tuple[Worst, ...]:
    """Of each category that is shown, the documents that lose most margin (nats) in each reconstruction, the worst
    first; in each control where there are no reconstructions.

    Where a category has no margins, those that lose most of the primary metric. Documents that lose nothing are no
    one's worst. `names` leads from the names of the results to those of the report.
    """
    if not shown.rows:
        return ()
    chosen = [run for run in comparison.variants if not is_control(run)] or comparison.variants
    runs = {names[run.name]: run for run in chosen}
    costs = [row.variant for row in sorted(section_of(rows, "overall"), key=lambda row: row.drop)]
    costs = [variant for variant in costs if variant in runs]
    variants = list(runs) if len(runs) <= MOST_VARIANTS else list(dict.fromkeys([*costs[:1], *costs[-1:]]))
    documents: Any = comparison.documents().groupby(["variant", "task"], sort=False)
    frames = {(names[variant], task): frame for (variant, task), frame in documents}
    cuts = {(cut.section, cut.name): cut for cut in comparison.cuts}
    by_name = {row.name: row for row in shown.rows}
    by_category = {
        name: _worst(cuts[by_name[name].section, name], frames, variants)
        for within in in_order(shown.rows).values()
        for name in within
    }
    reader = _Reader(comparison.baseline, {variant: runs[variant] for variant in variants}, by_category.values())
    return tuple(
        Worst(by_name[name].alias, tuple(reader.document(key, losers, frames) for key, losers in keys.items()))
        for name, keys in by_category.items()
        if keys
    )


def _worst(cut: Cut, frames: Frames, variants: Sequence[str]) -> dict[Key, list[str]]:
    """The documents, and the variants that lose most in them."""
    losses: dict[Key, dict[str, float]] = {}
    for variant in variants:
        by_task = {task: frames[variant, task] for task in cut.tasks if (variant, task) in frames}
        if cut.chosen is not None:
            by_task = {task: frame[frame["doc_id"].isin(list(cut.chosen[task]))] for task, frame in by_task.items()}
        frame = pd.concat(by_task.values())
        loss: Any = frame["margin_baseline"] - frame["margin_variant"]
        loss = loss if loss.notna().any() else frame["score_lost"]
        for at, lost in loss[loss > 0].nlargest(DOCUMENTS).items():
            row = frame.loc[at]
            losses.setdefault((row["task"], row["filter"], row["doc_id"]), {})[variant] = float(lost)
    return {
        key: list(by_variant) for key, by_variant in sorted(losses.items(), key=lambda item: -max(item[1].values()))
    }


class _Reader:
    """The samples of the chosen documents, read from the files once for all categories."""

    def __init__(self, baseline: Results, variants: Mapping[str, Results], chosen: Iterable[Collection[Key]]) -> None:
        self.baseline = baseline
        self.variants = list(variants)
        keys = {key for category_keys in chosen for key in category_keys}
        runs = {"baseline": baseline, **variants}
        self.samples: dict[str, dict[Key, Sample]] = {name: {} for name in runs}
        self.unusual = unusual_latents(variants, {(task, doc_id) for task, _, doc_id in keys})
        self.headers: dict[str, int] = {}
        for task in dict.fromkeys(sorted(task for task, *_ in keys)):
            doc_ids = {doc_id for key_task, _, doc_id in keys if key_task == task}
            for name, run in runs.items():
                for sample in run.whole_samples(task, doc_ids):
                    self.samples[name][task, sample["filter"], sample["doc_id"]] = sample
            if self._shots(task):
                self.headers[task] = header(map(_prompt, baseline.whole_samples(task)), self._delimiter(task))

    def _shots(self, task: str) -> int:
        return self.baseline.n_shot.get(task, 0)

    def _delimiter(self, task: str) -> str:
        return self.baseline.task_config(task).fewshot_delimiter or "\n\n"

    def document(self, key: Key, losers: Sequence[str], frames: Frames) -> WorstDocument:
        task, _, doc_id = key
        models = ("baseline", *self.variants)
        samples = [self.samples[model][key] for model in models]
        rows = [self._row(frames[variant, task], doc_id) for variant in self.variants]
        margins = [rows[0]["margin_baseline"], *(row["margin_variant"] for row in rows)]
        prompt = _prompt(samples[0])
        start = question_start(prompt, self.headers.get(task, 0), self._shots(task), self._delimiter(task))
        right = rows[0]["right"]
        return WorstDocument(
            title=f"{alias_of(self.baseline, task)}, document {doc_id}",
            losers=tuple(losers) if len(self.variants) > 1 else (),
            prompt=_shortened(prompt, start),
            target=abridged(printable(samples[0]["target"]), LONGEST_ANSWER) if right is None else None,
            models=models,
            lines=(*_lines(samples, right or ()), *_margin_line(margins)),
            unusual=tuple(entry for loser in losers if (entry := self.unusual.get((loser, (task, doc_id))))),
        )

    @staticmethod
    def _row(frame: pd.DataFrame, doc_id: int) -> Any:
        return frame.iloc[int((frame["doc_id"] == doc_id).to_numpy().argmax())]


def _margin_line(margins: Sequence[float]) -> list[Line]:
    is_defined = not np.isnan(margins).any()
    return [Line(MARGIN, False, tuple(Said(fixed_decimals(margin, 2)) for margin in margins))] if is_defined else []


def _contexts(sample: Sample) -> list[str]:
    return [str(request.get("arg_0", "")) for request in sample["arguments"].values()]


def _prompt(sample: Sample) -> str:
    """What was asked; where each choice has a context of its own, what they all begin with, up to a space."""
    contexts = _asked(sample, _contexts(sample))
    shared = shared_start(contexts)
    return shared if all(context == shared for context in contexts) else shared[: shared.rfind(" ") + 1]


def _asked(sample: Sample, requests: list[Any]) -> list[Any]:
    """The requests that ask with the question; acc_mutual_info asks as many again without it."""
    return requests[: len(requests) // 2] if "acc_mutual_info" in sample else requests


def shared_start(texts: Sequence[str]) -> str:
    return commonprefix(texts)  # noqa: RUF071 - letters are meant, though a module for paths has the function


def header(prompts: Iterable[str], delimiter: str) -> int:
    """The letters that all prompts of a task begin with, up to the last delimiter of examples in them; 0 for one."""
    shared, count = "", 0
    for count, prompt in enumerate(prompts, start=1):
        shared = prompt if count == 1 else shared_start([shared, prompt])
        if delimiter not in shared:
            return 0
    return shared.rfind(delimiter) + len(delimiter) if count > 1 else 0


def question_start(prompt: str, shared: int, shots: int, delimiter: str) -> int:
    """Where the question begins at the earliest: behind what all prompts share, and behind as many delimiters as
    there are examples, each of which ends with one."""
    at = 0
    for _ in range(shots):
        place = prompt.find(delimiter, at)
        if place < 0:
            break
        at = place + len(delimiter)
    return max(at, shared)


def _shortened(prompt: str, start: int) -> tuple[str, ...]:
    """The question, less its middle where it is long, with remarks on what is left out."""
    if not prompt:
        return ("", "There is no prompt; the answers are whole texts.", "")
    question = printable(prompt[start:])
    parts = ("", f"The {start:,} letters before the question are left out.") if start else ()
    if len(question) <= LONGEST_PROMPT:
        return (*parts, question)
    half = LONGEST_PROMPT // 2
    return (*parts, question[:half], f"{len(question) - 2 * half:,} letters are left out.", question[-half:])


def _lines(samples: Sequence[Sample], right: Sequence[int]) -> list[Line]:
    """Log-probabilities of the choices, or the texts that were written."""
    first = samples[0]
    continuations = _asked(first, [request.get("arg_1") for request in first["arguments"].values()])
    try:
        logprobs = [_asked(sample, [float(answer[0]) for answer in sample["filtered_resps"]]) for sample in samples]
    except (TypeError, ValueError, LookupError, OverflowError):
        logprobs = []
    texts = all(isinstance(text, str) for text in continuations)
    if not texts or not logprobs or any(len(values) != len(continuations) for values in logprobs):
        return _texts(samples)
    start = len(_prompt(first))
    labels = [f"{context[start:]}{text}" for context, text in zip(_contexts(first), continuations, strict=False)]
    alone = len(labels) == 1
    answers = [
        str(sample["filtered_resps"][0][1]) == "True" if alone else int(np.argmax(values))
        for sample, values in zip(samples, logprobs, strict=True)
    ]
    return [
        Line(
            abridged(printable(label.strip()), LONGEST_ANSWER),
            index in right,
            tuple(
                Said(fixed_decimals(values[index], 2), bool(answer) if alone else answer == index)
                for values, answer in zip(logprobs, answers, strict=True)
            ),
        )
        for index, label in enumerate(labels)
    ]


def _texts(samples: Sequence[Sample]) -> list[Line]:
    """What was written, and what the filter made of it where that is something else."""

    def line(label: str, texts: Sequence[str]) -> Line:
        return Line(
            label, False, tuple(Said(abridged(printable(text.strip()), LONGEST_ANSWER) or NA) for text in texts)
        )

    filtered = [", ".join(map(str, sample["filtered_resps"])) for sample in samples]
    written = (
        [str(sample["resps"][0][0]) for sample in samples]
        if all(sample.get("resps") for sample in samples)
        else filtered
    )
    return [line("answer", written), *([line("extracted", filtered)] if filtered != written else [])]
