"""Logs of the framework Inspect as results: scores by sample and epoch, and what made them."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae_lm_eval.errors import UserError, first_line
from sae_lm_eval.files.escaping import terminal
from sae_lm_eval.files.reading import checked, shown
from sae_lm_eval.results.lm_eval_files import SaeEntry
from sae_lm_eval.results.results import CHANCE, Results
from sae_lm_eval.results.variant_names import variant_name
from sae_lm_eval.schema import version_of

SUFFIX = ".eval"
SAMPLE = "sample_id"  # of a document, what Inspect calls its id: it is answered once in each epoch
UNREAD = {"events", "store", "timelines"}  # of a sample, which hold most of a log
AVERAGES = ("accuracy", "mean")  # Inspect's metrics that are the mean over samples
NEUTRAL_REDUCERS = (None, "mean")
OF_THE_MODEL = ("model_revision", "model_sha", "model_num_parameters", "model_dtype")  # lm_eval's names
WHAT_IS_ASKED = ("data set", "task arguments")
WORDS = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}  # Inspect's own for right, wrong, partly right, and no answer
LARGEST = 1e300  # of a score: what is larger, or infinite, is none
TRUTHS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
# Inspect's settings that change what is asked or how it is answered.
SETTINGS = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop_seqs", "system_message")


@dataclass(frozen=True, eq=False, repr=False)
class InspectResults(Results):
    """One task of Inspect's with one model; a document is a sample in an epoch, a metric a scorer.

    `answers` has a row for each document with the values of its scorers, nan where it was not scored; `settings` is
    what else decides whether two logs are of the same questions.
    """

    answers: pd.DataFrame = field(default_factory=pd.DataFrame)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def samples(self, task: str) -> pd.DataFrame:
        return self.answers.drop(columns=["prompt", "written"])

    def whole_samples(self, task: str, doc_ids: Container[int] | None = None) -> Iterator[dict[str, Any]]:
        for row in self.answers.to_dict("records"):
            if doc_ids is None or row["doc_id"] in doc_ids:
                request = {"gen_args_0": {"arg_0": row["prompt"], "arg_1": {}}}
                yield {**row, "arguments": request, "resps": [[row["written"]]]}

    @property
    def scorers(self) -> list[str]:
        """The columns of `answers` that are metrics."""
        return [key.rpartition(",")[0] for key in self.scores[self.tasks[0]]]

    def keys(self) -> set[tuple[str, int]]:
        """Sample and epoch of each document."""
        return {(document[SAMPLE], document["epoch"]) for document in self.answers["doc"]}

    def without(self, scorer: str, documents: np.ndarray) -> InspectResults:
        """The results less a scorer's values of some documents, its mean that of the others."""
        values = self.answers[scorer].mask(documents)
        scores = {**self.scores[self.tasks[0]], f"{scorer},none": _mean(values)}
        return replace(
            self, answers=self.answers.assign(**{scorer: values}), scores={**self.scores, self.tasks[0]: scores}
        )


def read_inspect_log(path: Path) -> InspectResults:
    """A log that `inspect eval` wrote.

    Raises `UserError` where Inspect is not installed, and for a log that is damaged, was not finished, or holds no
    scored samples.
    """
    log, where = _read(path), f"'{shown(path, 200)}'"
    _check_whole(log, path)
    spec = log.eval
    record = _record(log, where)
    answers, scorers, unread = _answers(log)
    if not scorers:
        others = "".join(f"; {scorer} gives '{shown(value)}'" for scorer, value in unread.items())
        raise UserError(
            f"{where} has no scores by sample: name a scorer that gives a number or C, I, P, N to each{others}."
        )
    api, _, model = spec.model.partition("/")
    scores = {f"{scorer},none": _score(log, scorer, answers[scorer]) for scorer in scorers}
    settings = spec.model_generate_config.model_dump(exclude_none=True) | log.plan.config.model_dump(exclude_none=True)
    return InspectResults(
        file=path,
        name=_name(record, model),
        tasks=[spec.task],
        config={
            "model": api,
            "model_args": {"pretrained": model, **spec.model_args},
            **{name: record.get(name) for name in OF_THE_MODEL},
            "limit": spec.config.limit if isinstance(spec.config.limit, int) else None,
            "sae_lm_eval": record,
        },
        provenance={name: value for name, value in record.items() if name not in OF_THE_MODEL},
        scores={spec.task: scores},
        aliases={spec.task: spec.task_display_name} if spec.task_display_name else {},
        sizes={spec.task: len(answers)},
        documents={spec.task: len(answers)},
        groups={},
        n_shot={},
        versions={spec.task: spec.task_version},
        higher_is_better={spec.task: dict.fromkeys(scorers, True)},
        task_configs={},
        raw={
            "model_name": model,
            "date": datetime.fromisoformat(str(spec.created)).timestamp(),
            "max_length": record.get("max_length"),
            "chat_template": record.get("prompt_format") == "chat template",
        },
        notes=(*_of_the_data(log, answers, where), *_of_words(unread, where)),
        docs_by=SAMPLE if any(epoch > 1 for epoch in answers["epoch"]) else None,
        command=_command(spec),
        answers=answers.drop(columns=["epoch"]),
        settings={
            "data set": spec.dataset.name,
            "task arguments": spec.task_args,
            "solver": spec.solver,
            **{name: settings.get(name) for name in SETTINGS},
        },
    )


def _read(path: Path) -> Any:
    try:
        from inspect_ai.log import read_eval_log  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"'{shown(path, 200)}' is a log of Inspect, which is not installed: pip install 'sae-lm-eval[inspect]'."
        ) from error
    if not path.is_file():
        raise UserError(f"There is no '{shown(path, 200)}'.")
    try:
        return read_eval_log(str(path), resolve_attachments="core", exclude_fields=UNREAD)
    except Exception as error:  # whatever a damaged archive brings about in Inspect, zip and pydantic
        raise UserError(
            f"'{shown(path, 200)}' cannot be read as a log of Inspect, and may be cut short or damaged: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error


def _of_the_data(log: Any, answers: pd.DataFrame, where: str) -> tuple[str, ...]:
    """What is to be said of samples that were chosen by range or by id."""
    whole, count = log.eval.dataset.samples, answers["doc"].map(lambda doc: doc[SAMPLE]).nunique()
    if whole is None or count >= whole or isinstance(log.eval.config.limit, int):
        return ()
    return (f"{where} holds {count} of the {whole} samples of its data set.",)


def _of_words(unread: Mapping[str, str], where: str) -> list[str]:
    return [
        f"{where}: {scorer} is left out, since it gives '{shown(value)}', which is neither a number nor C, I, P, N."
        for scorer, value in unread.items()
    ]


def _check_whole(log: Any, path: Path) -> None:
    where = f"'{shown(path, 200)}'"
    if log.status != "success":
        raise UserError(
            f"{where} is the log of an evaluation that did not finish (its status is '{log.status}'): finish it with "
            f"`inspect eval-retry {terminal(shlex.quote(str(path)))}`."
        )
    if not log.samples:
        raise UserError(f"{where} holds no samples: evaluate again without --no-log-samples.")


def _record(log: Any, where: str) -> dict[str, Any]:
    """What sae_hf wrote beside the answers; nothing for another model."""
    entry = next(filter(None, ((sample.output.metadata or {}).get("sae_lm_eval") for sample in log.samples)), None)
    if not isinstance(entry, dict):
        return {}
    version_of(entry, where)
    record = checked(SaeEntry, entry, f"{where}, sae_lm_eval,", "a record of sae_hf's").as_given()
    return {**record, "packages": {"inspect_ai": log.eval.packages.get("inspect_ai"), **record.get("packages", {})}}


def _name(record: Mapping[str, Any], model: str) -> str:
    names = [splice["dictionary"] for splice in record.get("splices") or []]
    names += [record["edit"]["name"]] if record.get("edit") else []
    return variant_name(names, record.get("splice"), record.get("scale", 1.0)) if names else model


def _answers(log: Any) -> tuple[pd.DataFrame, list[str], dict[str, str]]:
    """A row for each sample and epoch in the order of their ids, the scorers, and a word of each that gives others."""
    samples = sorted(log.samples, key=lambda sample: (isinstance(sample.id, str), sample.id, sample.epoch))
    own = all(isinstance(sample.id, int) and sample.id >= 0 and sample.epoch == 1 for sample in samples)
    rows, scorers, unread = [], dict[str, None](), dict[str, str]()
    for place, sample in enumerate(samples):
        values = {}
        for name, value in _values(sample.scores or {}):
            values[name] = _number(value)
            if values[name] is None:
                unread.setdefault(name, str(value))
        scorers.update(dict.fromkeys(values))
        text = sample.output.completion
        target = sample.target if isinstance(sample.target, str) else "; ".join(sample.target)
        answer = next((score.answer for score in (sample.scores or {}).values() if score.answer is not None), text)
        prompt = _prompt(sample)
        rows.append(
            {
                "doc_id": sample.id if own else place,
                "epoch": sample.epoch,
                "doc": {**sample.metadata, SAMPLE: str(sample.id), "epoch": sample.epoch},
                "target": target,
                "filtered_resps": [answer],
                "filter": "none",
                "doc_hash": _hash([_text(sample.input), sample.choices, SAMPLE, str(sample.id), sample.epoch]),
                "prompt_hash": _hash(prompt),
                "target_hash": _hash(target),
                "continuations": [{}],
                CHANCE: 1 / len(sample.choices) if sample.choices and len(target) == 1 else math.nan,
                "prompt": prompt,
                "written": text,
                **values,
            }
        )
    answers = pd.DataFrame(rows).drop(columns=[*unread])
    return answers, [name for name in scorers if name not in unread], unread


def _number(value: Any) -> float | None:
    """A score as Inspect's metrics take it; None for a word of the scorer's own, which they take for 0."""
    if isinstance(value, int | float):
        return None if abs(value) > LARGEST else float(value)
    said = str(value)
    if said in WORDS or said.lower() in TRUTHS:
        return WORDS.get(said, TRUTHS.get(said.lower()))
    try:
        return number if math.isfinite(number := float(said)) else None
    except ValueError:
        return None


def _values(scores: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each scorer's value, and each of those that a scorer gives by name; lists are no numbers."""
    for scorer, score in scores.items():
        if isinstance(score.value, dict):
            yield from ((f"{scorer}.{name}", value) for name, value in score.value.items() if value is not None)
        elif not isinstance(score.value, list):
            yield scorer, score.value


def _prompt(sample: Any) -> str:
    """The messages before the first answer."""
    said = []
    for message in sample.messages:
        if message.role == "assistant":
            break
        said.append(f"{message.role}: {message.text}")
    return "\n".join(said) or _text(sample.input)


def _text(given: Any) -> str:
    return given if isinstance(given, str) else "\n".join(f"{message.role}: {message.text}" for message in given)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()


def _score(log: Any, scorer: str, values: Any) -> float | None:
    """Inspect's own mean over samples, or where it wrote none, that of what is logged; None where nothing is scored."""
    for score in log.results.scores if log.results else ():
        if score.reducer in NEUTRAL_REDUCERS and score.scorer == score.name == scorer:
            for metric in AVERAGES:
                if metric in score.metrics:
                    return _number(score.metrics[metric].value)
    return _mean(values)


def _mean(values: Any) -> float | None:
    mean = float(values.mean())
    return None if math.isnan(mean) else mean


def _command(spec: Any) -> str:
    words = ["inspect", "eval", spec.task_registry_name or spec.task_file or spec.task, "--model", spec.model]
    for flag, given in (("-M", spec.model_args), ("-T", spec.task_args_passed)):
        words += [word for name, value in given.items() for word in (flag, f"{name}={value}")]
    for flag, value in (("--limit", spec.config.limit), ("--epochs", spec.config.epochs)):
        if value not in (None, 1):
            words += [flag, "-".join(map(str, value)) if isinstance(value, tuple) else f"{value}"]
    return shlex.join(map(str, words))


def on_the_same_samples(runs: Sequence[Results]) -> list[Results]:
    """The runs; logs of Inspect's without the values of samples that a scorer did not score in each of them.

    What is left out is said in the notes of the first. Raises `UserError` where logs are of different tasks, arguments,
    data sets or samples.
    """
    logs = [run for run in runs if isinstance(run, InspectResults)]
    if len(logs) < 2 or len(logs) < len(runs):
        return list(runs)
    notes: list[str] = []
    for log in logs[1:]:
        notes += _check_settings(logs[0], log)
    shared = [scorer for scorer in logs[0].scorers if all(scorer in log.scorers for log in logs)]
    for scorer in shared:
        missing = [log.answers[scorer].isna().to_numpy() for log in logs]
        anywhere = np.logical_or.reduce(missing)
        if not anywhere.any():
            continue
        logs = [log.without(scorer, anywhere) for log in logs]
        counts = ", ".join(f"{mask.sum()} in {log.name}" for log, mask in zip(logs, missing, strict=True) if mask.any())
        notes.append(
            f"{logs[0].tasks[0]}: {anywhere.sum()} of {len(anywhere)} answers are left out of {scorer}, which did not "
            f"score them in every log ({counts})."
        )
    return [replace(logs[0], notes=(*logs[0].notes, *dict.fromkeys(notes))), *logs[1:]]


def _check_settings(first: InspectResults, other: InspectResults) -> list[str]:
    """What is to be said of differences that leave two logs comparable."""
    pair = f"'{shown(first.file)}' and '{shown(other.file)}'"
    if first.tasks != other.tasks:
        raise UserError(f"{pair} are logs of different tasks: {first.tasks[0]} and {other.tasks[0]}.")
    differing = [name for name in first.settings if first.settings[name] != other.settings[name]]
    for name in WHAT_IS_ASKED:
        if name in differing:
            raise UserError(f"{pair} differ in the {name} of {first.tasks[0]}: {_both(first, other, name)}.")
    keys, other_keys = first.keys(), other.keys()
    for log, missing in ((other, keys - other_keys), (first, other_keys - keys)):
        if missing:
            sample, epoch = min(missing, key=str)
            raise UserError(
                f"'{shown(log.file)}' lacks {len(missing)} of {len(keys | other_keys)} samples, the first of them "
                f"'{shown(sample)}' in epoch {epoch}: evaluate both on the same samples and epochs."
            )
    differences = "; ".join(f"{name} {_both(first, other, name)}" for name in differing)
    return [f"{first.name} and {other.name} were asked with other settings: {differences}."] if differences else []


def _both(first: InspectResults, other: InspectResults, name: str) -> str:
    values = (log.settings[name] for log in (first, other))
    return " and ".join(shown("not set" if value is None else value) for value in values)
