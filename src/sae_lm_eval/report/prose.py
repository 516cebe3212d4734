"""The methods of a report. templates/methods.txt has the sentences, with works cited as [@key] until a format renders
them; here is what is put into them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sae_lm_eval.comparison.compare import Comparison
from sae_lm_eval.report import references
from sae_lm_eval.report.drop_tables import DropRow, section_of
from sae_lm_eval.report.fidelity_tables import GROUP, LOSS, Fidelity
from sae_lm_eval.report.formatting import distinct_texts, listing, percent, span
from sae_lm_eval.report.provenance import packages, requested_model
from sae_lm_eval.results.results import Results
from sae_lm_eval.scaling.laws import laws

CITED = re.compile(r"\[@([\w-]+)\]")
# The work that an interval or a test comes from, by how its name begins in the frame's columns.
WORKS = {
    "Tango": "tango1998",
    "Bonett-Price": "bonett2012",
    "paired bootstrap": "efron1979",
    "McNemar": "mcnemar1947",
    "permutation": "phipson2010",
    "cluster-robust": "bell2002",
}
LIBRARIES = {
    "sae_lm_eval": ("sae_lm_eval", "sae-lm-eval"),
    "inspect_ai": ("Inspect", None),
    "lm_eval": ("the Language Model Evaluation Harness", "lm-eval"),
    "sae_lens": ("SAELens", "saelens"),
    "transformers": ("Transformers", "transformers"),
    "transformer_lens": ("TransformerLens", "transformerlens"),
}


def methods(comparison: Comparison, rows: Sequence[DropRow], fidelity: Fidelity) -> str:
    """The methods paragraph, with versions, settings and works."""
    environment = Environment(
        loader=PackageLoader("sae_lm_eval", "report/templates"), undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"listing": listing, "works": _with_works}
    runs, tasks = (comparison.baseline, *comparison.variants), section_of(rows, "task")
    compute = [by_metric["effective_compute"] for by_metric in fidelity.values()]
    text = environment.get_template("methods.txt").render(
        **_setting(runs, tasks),
        **_splicing([results.provenance for results in comparison.variants]),
        level=f"{comparison.level:.0%}",
        intervals=distinct_texts(row.interval for row in rows),
        tests=distinct_texts(row.test for row in rows),
        family=comparison.family,
        over_tasks=any(row.tasks_low is not None for row in rows),
        detectable=any(row.detectable is not None for row in rows),
        floor=next((note for note in comparison.notes if note.startswith("Overall leaves out")), ""),
        above_chance=any(row.above_chance_low is not None for row in rows),
        parted=any(
            counts["parted"]
            for run in comparison.variants
            for counts in (run.provenance.get("parted_texts") or {}).values()
        ),
        beside=not all(comparison.drops["primary"]),
        texts=_texts(comparison.variants, fidelity),
        loss=LOSS,
        laws=[
            _law(name)
            for name in distinct_texts(measurement.law for measurement in compute if measurement.value is not None)
        ],
    )
    return " ".join(text.split())


def _with_works(names: Sequence[str]) -> str:
    """Names of intervals or tests with the works that they come from, each work once."""
    texts, keys = [], set()
    for name in names:
        key = next((key for start, key in WORKS.items() if name.startswith(start)), None)
        texts.append(name if key is None or key in keys else f"{name} [@{key}]")
        keys.add(key)
    return "; ".join(texts)


def _setting(runs: Sequence[Results], tasks: Sequence[DropRow]) -> dict[str, Any]:
    """What ran, on what, and how; what the results do not record is left out."""
    baseline, config = runs[0], runs[0].config
    revision, size = config.get("model_revision"), config.get("model_num_parameters")
    ran = {
        "the model in": str(config.get("model_dtype") or "").removeprefix("torch.") or None,
        "the dictionaries in": _shared(
            splice.get("dtype") for run in runs for splice in run.provenance.get("splices") or []
        ),
        "device": config.get("device"),
        "batch size": config.get("batch_size"),
        "a context of": f"{baseline.raw['max_length']} tokens" if baseline.raw.get("max_length") else None,
    }
    limit = config.get("limit")
    software = [(name, LIBRARIES.get(name, (name, None)), version) for name, version in packages(runs[-1]).items()]
    return {
        "model": requested_model(baseline),
        "facts": [
            *([f"revision {revision}"] if revision else []),
            *([f"{size:,} parameters"] if size else []),
        ],
        "variants": [results.name for results in runs[1:]],
        "tasks": len({row.name for row in tasks}),
        "limit": "" if limit is None or not tasks else f", {_limit(limit)}",
        "software": [f"{name} {version}{f' [@{key}]' if key else ''}" for _, (name, key), version in software],
        "ran": [f"{what} {value}" for what, value in ran.items() if value is not None],
        "shots": span((row.shots for row in tasks), unknown=""),
    }


def _limit(limit: float) -> str:
    return f"the first {limit:g} questions of each" if limit >= 1 else f"the first {limit:.0%} of each one's questions"


def _shared(values: Iterable[Any]) -> str | None:
    distinct = dict.fromkeys(str(value).removeprefix("torch.") for value in values if value)
    return listing(distinct) if distinct else None


def _splicing(records: list[dict[str, Any]]) -> dict[str, Any]:
    """What every variant does alike at special tokens and at the start of a prompt."""
    tokens = {record.get("splice_tokens") for record in records}
    kept = {_kept(record) for record in records}
    alike = bool(tokens) and all(str(choice).startswith("non_special") for choice in tokens) and len(kept) == 1
    starts = {record.get("bos") for record in records}
    return {
        "kept": kept.pop() if alike else None,
        "all_positions": tokens == {"all"},
        "random_errors": any(record.get("splice") == "random_error" for record in records),
        "bos": starts.pop() if len(starts) == 1 else None,
    }


def _kept(record: dict[str, Any]) -> str:
    """What else kept its activation, as the end of a sentence."""
    firsts = {splice.get("first_position") or 0 for splice in record.get("splices") or []} - {0}
    if not firsts:
        return ""
    why = " on which the dictionary was not trained" if record.get("splice_tokens") == "non_special" else ""
    return f", and so did the first {max(firsts)} positions of a text{why}"


def _texts(variants: Sequence[Results], fidelity: Fidelity) -> list[str]:
    """The texts of the fidelity, with their documents and tokens where those are recorded."""
    texts = []
    for task in dict.fromkeys(task for _, task in fidelity):
        records = (results.provenance.get("fidelity", {}).get(task) for results in variants)
        record = next(filter(None, records), {})
        sizes = [f"{record[what]:,} {what}" for what in ("documents", "tokens") if record.get(what)]
        texts.append(f"{task.removeprefix(GROUP)}{f': {listing(sizes)}' if sizes else ''}")
    return texts


def _law(name: str) -> str:
    """A law with its work, its constants and the text that it is of."""
    cited = f"{name} [@{name}]" if name in references.reference_entries() else name
    law: Any = laws().get(name)
    if law is None:
        return cited
    constants = ", ".join(f"{key} = {value:.4g}" for key, value in law.constants.items())
    return f"{cited} ({constants}; of text: {law.text})"


def cut_prompts(results: Results) -> str | None:
    """How many prompts did not fit into the model's context, and what they lost; None where all of them fitted.

    Shares are of the prompts of those tasks, and of the tokens of their cut prompts.
    """
    tasks = results.provenance.get("cut_prompts") or {}
    if not tasks:
        return None
    count, cut, tokens, lost = (
        sum(counts[key] for counts in tasks.values())
        for key in ("prompts", "cut", "tokens_of_cut_prompts", "tokens_lost")
    )
    worst = sorted(tasks, key=lambda name: -tasks[name]["tokens_lost"])
    more = f" and {len(worst) - 3} more tasks" if len(worst) > 3 else ""
    return (
        f"{cut:,} of {count:,} prompts ({percent(cut / count)}%) did not fit into the model's context: "
        f"their beginnings were cut off, {percent(lost / tokens)}% of their tokens ({', '.join(worst[:3])}{more})."
    )


def parted_texts(results: Results) -> list[str]:
    """For each task that writes texts, how many part from the baseline's, and how soon half of them have."""
    out = []
    for task, counts in (results.provenance.get("parted_texts") or {}).items():
        half = next((time for time, share in counts["together"].items() if share <= 0.5), None)
        soon = "" if half is None else f", at least half of them within the first {half} tokens"
        texts = f"{counts['parted']:,} of {counts['texts']:,} texts that {results.name} writes"
        out.append(f"{task}: {texts} part from the baseline's{soon}.")
    return out


def cited(text: str) -> list[str]:
    """The keys of the works cited in `text`, in the order of their first mention."""
    return list(dict.fromkeys(CITED.findall(text)))
