"""The sentences of a report: the headline and the methods. Works are cited as [@key] until a format renders them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sae_lm_eval.comparison.compare import Comparison
from sae_lm_eval.report.drop_tables import Row, section_of
from sae_lm_eval.report.fidelity_tables import LOSS, Fidelity
from sae_lm_eval.report.formatting import alternatives, distinct, fixed, listing, percent, significant, span
from sae_lm_eval.report.provenance import model_name, packages
from sae_lm_eval.report.references import REFERENCES
from sae_lm_eval.results.results import Results

CITED = re.compile(rf"\[@({'|'.join(REFERENCES)})\]")
# What a method is called in the frame's columns `interval` and `test`, and the work that it comes from.
WORKS = {
    r"Tango(?:'s)?": "tango1998",
    r"Bonett-Price": "bonett2012",
    r"paired bootstrap": "efron1979",
    r"McNemar(?:'s)?": "mcnemar1947",
    r"permutation": "phipson2010",
    r"Holm(?:'s)?": "holm1979",
}
LIBRARIES = {
    "sae_lm_eval": ("sae_lm_eval", "sae-lm-eval"),
    "lm_eval": ("the Language Model Evaluation Harness", "lm-eval"),
    "sae_lens": ("SAELens", "saelens"),
    "transformers": ("Transformers", "transformers"),
    "transformer_lens": ("TransformerLens", "transformerlens"),
}


def headline(comparison: Comparison, rows: Sequence[Row], fidelity: Fidelity) -> list[str]:
    """What the splice costs, in one or two sentences; with several variants, the least and the most costly one."""
    model = model_name(comparison.baseline)
    costs = sorted(section_of(rows, "overall"), key=lambda row: row.drop)
    if not costs:
        names = [results.name for results in comparison.variants]
        first = f"No accuracy of {model} was measured both untouched and with {listing(names)} spliced in."
    elif len(costs) == 1:
        names = [costs[0].variant]
        first = f"With {names[0]} spliced in, {model} {_change(costs[0], comparison.level)}."
    else:
        names = [costs[0].variant, costs[-1].variant]
        least, most = (_change(row, comparison.level) for row in (costs[0], costs[-1]))
        of = f"Of {len(costs)} variants of {model}, {names[0]} costs least"
        first = f"{of}: it {least}; {names[1]} costs most: it {most}."
    losses = [text for name in names if (text := _losses(name, fidelity))]
    return [first, f"{'; '.join(losses)}."] if losses else [first]


def _change(row: Row, level: float) -> str:
    """`loses 3.2 percentage points of accuracy (95% interval 1.0 to 5.4; from 90.1% to 86.9%, n = 780)`."""
    sign, verb = (1, "loses") if row.drop >= 0 else (-1, "gains")
    low, high = sorted((sign * row.low, sign * row.high))
    return (
        f"{verb} {fixed(sign * row.drop)} percentage points of accuracy ({level:.0%} interval {fixed(low)} to "
        f"{fixed(high)}; from {percent(row.baseline)}% to {percent(row.score)}%, n = {row.n:,})"
    )


def _losses(name: str, fidelity: Fidelity) -> str:
    """Delta CE, KL and effective compute of a variant, on the first text where they were measured."""
    task, of = next(((task, of) for (variant, task), of in fidelity.items() if variant == name), ("", {}))
    value = {metric: made.value for metric, made in of.items() if made.value is not None}
    said = []
    if "ce_delta" in value:
        both = "ce_baseline" in value and "ce_spliced" in value
        ends = [significant(value.get(metric), 4) for metric in ("ce_baseline", "ce_spliced")]
        said.append(f"delta CE {fixed(value['ce_delta'], 3)} nats/token" + (f" (from {' to '.join(ends)})" * both))
    if "kl" in value:
        said.append(f"KL {fixed(value['kl'], 3)} nats/token")
    if "effective_compute" in value:
        made = of["effective_compute"]
        known = made.low is not None and made.high is not None
        bounds = f" (95% interval {significant(made.low)} to {significant(made.high)})" if known else ""
        said.append(f"effective compute {significant(made.value)}{bounds}")
    return f"{name}: {', '.join(said)} on {task}" if said else ""


def methods(comparison: Comparison, rows: Sequence[Row], fidelity: Fidelity) -> str:
    """The methods paragraph, with versions and works."""
    tasks = section_of(rows, "task")
    sentences = [_setting(comparison, tasks), f"{_software(comparison.variants[0])}."]
    sentences += _splicing([results.provenance for results in comparison.variants])
    if tasks:
        sentences += [
            f"Prompts had {span(row.shots for row in tasks)} in-context examples.",
            "The drop is the baseline's score minus the variant's on the same questions, so positive is worse.",
            f"Intervals ({comparison.level:.0%}): {alternatives(row.interval for row in rows)}.",
            f"Tests: {alternatives(row.test for row in rows)}. {comparison.family}",
        ]
        if not all(comparison.drops["primary"]):
            sentences.append("Shown is the primary metric of each task; drops.csv has the others as well.")
    if fidelity:
        sentences.append(_fidelity_methods(fidelity))
    text = " ".join(sentences)
    for pattern, key in WORKS.items():
        text = re.sub(pattern, lambda match, key=key: f"{match[0]} [@{key}]", text, count=1)
    return text


def _setting(comparison: Comparison, tasks: Sequence[Row]) -> str:
    baseline, count = comparison.baseline, len({row.name for row in tasks})
    revision, size = baseline.config.get("model_revision"), baseline.config.get("model_num_parameters")
    facts = [f"revision {revision}"] if revision else []
    facts += [f"{size:,} parameters"] if size else []
    names = [results.name for results in comparison.variants]
    known = f" ({', '.join(facts)})" if facts else ""
    return (
        f"The model {model_name(baseline)}{known} was evaluated untouched and in "
        f"{len(names)} variant{'s' * (len(names) != 1)} ({listing(names)})"
        f"{f' on {count} task' + 's' * (count != 1) if count else ''}."
    )


def _software(results: Results) -> str:
    """`lm_eval` and what it ran on, each with its version and its work."""
    said = []
    for package, version in packages(results).items():
        name, key = LIBRARIES.get(package, (package, None))
        said.append(f"{name} {version}{f' [@{key}]' if key else ''}")
    return f"Software: {listing(said)}" if said else "The results do not record which software made them"


def _splicing(records: list[dict[str, Any]]) -> list[str]:
    """What every variant does alike at special tokens and at the start of a prompt."""
    out = []
    tokens = {record.get("splice_tokens") for record in records}
    kept = {_kept(record) for record in records}
    if tokens and all(str(of).startswith("non_special") for of in tokens) and len(kept) == 1:
        out.append(f"Positions that hold a beginning, end or padding token kept their activation{kept.pop()}.")
    elif tokens == {"all"}:
        out.append("All positions were spliced.")
    if any(record.get("splice") == "random_error" for record in records):
        out.append(
            "For random errors, a random vector with the norm of the dictionary's error was added to the activation in "
            "place of that error [@gurnee2024]."
        )
    starts = {record.get("bos") for record in records}
    if len(starts) == 1 and (start := starts.pop()):
        out.append(f"Start of prompts: {start}.")
    return out


def _kept(record: dict[str, Any]) -> str:
    """What else kept its activation, as the end of a sentence."""
    firsts = {splice.get("first_position") or 0 for splice in record.get("splices") or []} - {0}
    if not firsts:
        return ""
    why = " on which the dictionary was not trained" if record.get("splice_tokens") == "non_special" else ""
    return f", and so did the first {max(firsts)} positions of a text{why}"


def cut_prompts(results: Results) -> str | None:
    """How many prompts did not fit into the model's context, and what they lost; None where all of them fitted.

    Shares are of the prompts of those tasks, and of the tokens of their cut prompts.
    """
    tasks = results.provenance.get("cut_prompts") or {}
    if not tasks:
        return None
    count, cut, tokens, lost = (
        sum(of[key] for of in tasks.values()) for key in ("prompts", "cut", "tokens_of_cut_prompts", "tokens_lost")
    )
    worst = sorted(tasks, key=lambda name: -tasks[name]["tokens_lost"])
    more = f" and {len(worst) - 3} more tasks" if len(worst) > 3 else ""
    return (
        f"{cut:,} of {count:,} prompts ({percent(cut / count)}%) did not fit into the model's context: "
        f"their beginnings were cut off, {percent(lost / tokens)}% of their tokens ({', '.join(worst[:3])}{more})."
    )


def _fidelity_methods(fidelity: Fidelity) -> str:
    text = (
        "Fidelity was measured on running text: cross-entropy (CE) of both models and KL from the baseline to the "
        f"spliced model in nats/token; loss recovered is {LOSS}."
    )
    laws = distinct(of["effective_compute"].law for of in fidelity.values())
    if laws:
        named = listing(f"{law} [@{law}]" if law in REFERENCES else law for law in laws)
        text += f" Effective compute is the fraction of the training compute that buys the spliced CE, by {named}."
    return text


def cited(text: str) -> list[str]:
    """The keys of the works cited in `text`, in the order of their first mention."""
    return list(dict.fromkeys(CITED.findall(text)))
