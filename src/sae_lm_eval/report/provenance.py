"""What each set of results came from, by its own record, and the command that makes it again."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sae_lm_eval.report.formatting import NA, listing, without_shared_start
from sae_lm_eval.results.find import is_control
from sae_lm_eval.results.results import Results

SEEDS: dict[str, Any] = {"random_seed": 0, "numpy_seed": 1234, "torch_seed": 1234, "fewshot_seed": 1234}
# Of each splice, in this order; what is not named here is shown under the name in the record.
SPLICE_LABELS = {
    "dictionary": "dictionary",
    "revision": "dictionary revision",
    "weights_checksum": "weights, checksum",
    "weights_sha256": "weights, SHA-256",  # of results that were made before there was a checksum
    "architecture": "architecture",
    "hook_in": "reads at",
    "hook_out": "writes at",
    "mode": "mode",
    "map_in": "activation map in",
    "map_out": "activation map out",
}

SPLICED = "spliced"  # of splice_input: what earlier splices have left
MOST_SITES = 2  # that make a control's name: one at every layer is called by its variant
AT_SITES = ("none", "zero", "mean")  # modes that ask no dictionary
# Of the record, these are splices, shown one by one, or numbers of the tables.
ELSEWHERE = ("splices", "packages", "effective_compute", "kl_at_answers", "parted_texts", "cut_prompts")


WRITTEN_BY_LM_EVAL = ("version", "config_source")  # into the metadata of a task


@dataclass(frozen=True)
class ResultsSource:
    """One set of results: facts as (label, value), and its command for a shell."""

    name: str
    facts: tuple[tuple[str, str], ...]
    command: str


DATE = "date (UTC)"


def sources(runs: Sequence[Results]) -> tuple[tuple[tuple[str, str], ...], tuple[ResultsSource, ...]]:
    """The facts that all runs share, and each run with what is its own."""
    every = [source(run) for run in runs]
    # Whether runs share a minute is chance, and a report is to be the same each time.
    shared = [fact for fact in every[0].facts if all(fact in other.facts for other in every)]
    common = tuple(fact for fact in shared if fact[0] != DATE)
    own = (replace(entry, facts=tuple(fact for fact in entry.facts if fact not in common)) for entry in every)
    return common, tuple(own)


def source(results: Results) -> ResultsSource:
    config, raw = results.config, results.raw
    facts = {
        "model": requested_model(results),
        "model revision": config.get("model_revision"),
        "model commit": config.get("model_sha"),
        "parameters": config.get("model_num_parameters"),
        "model dtype": config.get("model_dtype"),
        "context length": raw.get("max_length"),
        "batch size": config.get("batch_size"),
        "documents a task": "all" if config.get("limit") is None else config["limit"],
        "chat template": "applied" if raw.get("chat_template") else "none",
        **_ours(results.provenance),
        DATE: _date(raw.get("date")),
        "git commit": raw.get("git_hash"),
    }
    return ResultsSource(
        results.name, tuple((label, _plain(value)) for label, value in facts.items()), command(results)
    )


def _ours(record: dict[str, Any]) -> dict[str, Any]:
    """The record of the splice as labelled facts, the splices numbered where there are several."""
    facts: dict[str, Any] = {}
    splices = record.get("splices") or []
    for number, splice in enumerate(splices, start=1):
        prefix = f"splice {number}: " if len(splices) > 1 else ""
        for key in [*SPLICE_LABELS, *(key for key in splice if key not in SPLICE_LABELS)]:
            label = SPLICE_LABELS.get(key) or key.replace("_", " ")
            facts[f"{prefix}{label}"] = splice.get(key)
    rest = {key: value for key, value in record.items() if key not in ELSEWHERE}
    return facts | {key.replace("_", " "): value for key, value in rest.items()}


def _plain(value: Any) -> str:
    if value is None or value == "" or value == []:
        return NA
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _date(seconds: Any) -> str | None:
    from datetime import UTC, datetime

    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}" if isinstance(seconds, int | float) else None


def requested_model(results: Results) -> str:
    """The model as it was asked for."""
    return str(results.model_args.get("pretrained") or results.raw.get("model_name") or NA)


def packages(results: Results) -> dict[str, str]:
    """Versions of the packages that made the results."""
    raw = results.raw
    recorded = results.provenance.get("packages")
    plain = {"lm_eval": raw.get("lm_eval_version"), "transformers": raw.get("transformers_version")}
    return recorded or {name: version for name, version in plain.items() if version}


def dictionary_of(results: Results) -> str:
    splices = results.provenance.get("splices") or []
    return " + ".join(splice["dictionary"] for splice in splices) or NA


def site_of(results: Results) -> str:
    """The hooks that are written, with those that are read where they differ."""
    splices = results.provenance.get("splices") or []
    ends = [(splice.get("hook_in") or NA, splice.get("hook_out") or NA) for splice in splices]
    return " + ".join(out if out == into else f"{into} to {out}" for into, out in ends) or NA


def names_in_report(variants: Sequence[Results]) -> dict[str, str]:
    """What a report calls each of its variants, by the names of their results.

    Long names lose what all begin with. A control that `run` named after a variant (`k4,zero`) is called by what it
    does, and by where or of what where several do it.
    """
    controls = {
        results.name: results
        for results in variants
        if is_control(results) and results.name.endswith(f",{splice_of(results)}")
    }
    names = without_shared_start([results.name for results in variants if results.name not in controls])
    modes = Counter(splice_of(results) for results in controls.values())
    for name, results in controls.items():
        mode = splice_of(results)
        originals = results.provenance.get("control_of") or [name.removesuffix(f",{mode}")]
        few = len(results.provenance.get("splices") or []) <= MOST_SITES
        where = (
            f"at {site_of(results)}"
            if mode in AT_SITES and few
            else f"of {listing(names.get(each, each) for each in originals)}"
        )
        names[name] = mode if modes[mode] == 1 else f"{mode} {where}"
    twice = {shown for shown, count in Counter(names.values()).items() if count > 1}
    return {results.name: results.name if names[results.name] in twice else names[results.name] for results in variants}


def mode_of(results: Results) -> str:
    """What takes the place of the activations, and how much of that."""
    changes, scale = ", ".join(changes_of(results)), results.provenance.get("scale", 1)
    mode = f"{splice_of(results)} ({changes})" if changes else splice_of(results)
    return mode if scale == 1 else f"{mode}, scale {scale:g}"


def changes_of(results: Results) -> tuple[str, ...]:
    """What makes a splice another one than that of its dictionaries as they are: edits of latents, an adapter, a clean
    input.
    """
    record = results.provenance
    reads = record.get("splice_input") or SPLICED
    edits = (str(record["latent_edits"]),) if record.get("latent_edits") else ()
    edits += (f"peft={record['adapter']['name']}",) if record.get("adapter") else ()
    return edits if reads == SPLICED else (*edits, f"splice_input={reads}")


def splice_of(results: Results) -> str:
    """What takes the place of the activations."""
    return str(results.provenance.get("splice", NA))


def command(results: Results) -> str:
    """The command with everything that the results record of it."""
    if results.command is not None:
        return results.command
    config, raw = results.config, results.raw
    words = ["lm_eval", "--model", str(config.get("model"))]
    if results.model_args:
        words += ["--model_args", _argument({**results.model_args, **_bos(results)})]
    words += ["--tasks", ",".join(top_tasks(results))]
    shots = {shots for name, shots in results.n_shot.items() if name not in results.fidelity_tasks}
    shots = shots or set(results.n_shot.values())
    if len(shots) == 1:
        words += ["--num_fewshot", str(*shots)]
    for flag in ("batch_size", "limit", "gen_kwargs"):
        value = config.get(flag)
        if value not in (None, {}):
            words += [f"--{flag}", _argument(value)]
    seeds = {name: config.get(name, usual) for name, usual in SEEDS.items()}
    if seeds != SEEDS:
        words += ["--seed", ",".join(map(str, seeds.values()))]
    if raw.get("system_instruction") is not None:
        words += ["--system_instruction", raw["system_instruction"]]
    words += ["--apply_chat_template"] if raw.get("chat_template") else []
    if (turns := raw.get("fewshot_as_multiturn")) is not None and raw.get("chat_template"):
        words += ["--fewshot_as_multiturn", str(bool(turns)).lower()]  # which is true behind a chat template
    if metadata := _metadata(results):
        words += ["--metadata", json.dumps(metadata)]
    return shlex.join([*words, "--log_samples", "--output_path", results.name])


def _metadata(results: Results) -> dict[str, Any]:
    """What `--metadata` gave: lm_eval writes it, and the model's arguments, into the configuration of every task."""
    configs: list[Any] = list(results.raw.get("configs", {}).values())
    written = [entries for config in configs if isinstance(entries := config.get("metadata"), dict)]
    if not written or len(written) < len(configs):
        return {}
    theirs = {*WRITTEN_BY_LM_EVAL, *results.model_args}
    # A task of fidelity takes what is under its own name out of it.
    of_texts = {name: value for entries in written for name, value in entries.items() if name in results.fidelity_tasks}
    first, *rest = written
    shared = {
        name: value
        for name, value in first.items()
        if all(name in entries and entries[name] == value for entries in rest)
    }
    return {name: value for name, value in {**shared, **of_texts}.items() if name not in theirs}


def _bos(results: Results) -> dict[str, Any]:
    """The BOS token that a run added to all its prompts, where this model's own dictionaries do not ask for one."""
    record = results.provenance
    added = str(record.get("bos", "")).startswith("one BOS token is added")
    own = any(splice.get("prepend_bos") for splice in record.get("splices") or [])
    return {"add_bos_token": True} if added and not own and "add_bos_token" not in results.model_args else {}


def _argument(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def top_tasks(results: Results) -> list[str]:
    """The tasks and groups that no other group brought in."""
    below = {child for children in results.groups.values() for child in children}
    return [name for name in dict.fromkeys([*results.groups, *results.scores]) if name not in below]
