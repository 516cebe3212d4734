"""Our fidelity as results of SAEBench's eval `core`, in the layout of `sae_bench` 0.6.

Its JSON Schema asks for every number of every category, and knows neither null nor a missing one. What was not measured
is therefore NaN, which SAEBench and Python's json read, and as which it stays undefined.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sae_lm_eval.errors import UserError
from sae_lm_eval.exchange.dictionary_names import DictionaryName
from sae_lm_eval.exchange.new_files import SAEBENCH_MARK, write_marked
from sae_lm_eval.exchange.score_files import some_of
from sae_lm_eval.report.fidelity_tables import GROUP, METRICS, MetricValue, fidelity_of
from sae_lm_eval.report.provenance import changes_of, command, dictionary_of, requested_model
from sae_lm_eval.report.sweep_settings import is_single
from sae_lm_eval.results.results import Results

# SAEBench's numbers by category: our metric, or None for what is not measured here.
CATEGORIES: Mapping[str, Mapping[str, str | None]] = {
    "model_behavior_preservation": {
        "kl_div_score": None,
        "kl_div_with_ablation": None,
        "kl_div_with_sae": "kl",
    },
    "model_performance_preservation": {
        "ce_loss_score": "loss_recovered_zero",
        "ce_loss_with_ablation": "ce_zero",
        "ce_loss_with_sae": "ce_spliced",
        "ce_loss_without_sae": "ce_baseline",
    },
    "reconstruction_quality": {
        "explained_variance": "explained_variance",
        "explained_variance_legacy": None,
        "mse": None,
        "cossim": "cosine",
    },
    "shrinkage": {
        "l2_norm_in": None,
        "l2_norm_out": None,
        "l2_ratio": "norm_ratio",
        "relative_reconstruction_bias": None,
    },
    "sparsity": {"l0": "l0", "l1": None},
    "misc_metrics": {
        "freq_over_1_percent": None,
        "freq_over_10_percent": None,
        "normalized_freq_over_1_percent": None,
        "normalized_freq_over_10_percent": None,
        "average_max_encoder_cosine_sim": None,
        "average_max_decoder_cosine_sim": None,
        "frac_alive": "fraction_fired",
    },
}
TOKENS = ("total_tokens_eval_reconstruction", "total_tokens_eval_sparsity_variance")
# What a reader of these files should know, beside SAEBench's own numbers.
DIFFERENCES = (
    "Measured by sae_lm_eval on whole documents, not on windows of 128 tokens of OpenWebText.",
    "NaN: not measured.",
    "explained_variance is 1 - FVU with the variance about the mean activation; SAEBench 0.6 subtracts the square of "
    "the mean square in its place, so that its number is nearly 1 - E|error|^2 / E|activation|^2.",
    "ce_loss_score is the loss recovered from zero ablation.",
)
LONGEST_NAME = 200  # bytes of a file's name, less its ending


@dataclass(frozen=True)
class SaeBenchExport:
    """The files by their names, and the variants of which there are none, with the reason."""

    files: Mapping[str, bytes]
    left_out: tuple[str, ...]


def write_saebench(variants: Sequence[Results], folder: Path) -> SaeBenchExport:
    """Write a file for each variant with one dictionary into `folder`, below a folder for each text where several are.

    Raises `UserError` where there is nothing to write, or something of somebody else's is in its place.
    """
    export = saebench_files(variants)
    write_marked(folder, export.files, SAEBENCH_MARK, "The files for SAEBench")
    return export


def saebench_files(variants: Sequence[Results]) -> SaeBenchExport:
    """The files for each variant and text. Raises `UserError` where no variant can be one of SAEBench's results."""
    whole = {run.name: run for run in variants if is_single(run)}
    left_out = [f"{run.name} {_why_not(run)}" for run in variants if run.name not in whole]
    fidelity = fidelity_of(list(whole.values()))
    texts = list(dict.fromkeys(text for _, text in fidelity))
    left_out += [f"{name} has no fidelity" for name in whole if not any(name == variant for variant, _ in fidelity)]
    files: dict[str, bytes] = {}
    for (name, text), measured in fidelity.items():
        tokens = _tokens(whole[name], text)
        if tokens is None:
            left_out.append(f"{name} does not record the tokens of {text}")
            continue
        place = f"{_plain(text.removeprefix(GROUP))}/" if len(texts) > 1 else ""
        place += file_name(DictionaryName.of_spec(dictionary_of(whole[name])))
        if place in files:
            left_out.append(f"{name} has the dictionary of an earlier variant")
            continue
        files[place] = json.dumps(core_result(whole[name], text, measured, tokens), indent=2).encode()
    if not files:
        raise UserError(
            f"There is nothing for SAEBench: it takes variants with one dictionary and a task sae_fidelity. "
            f"{'; '.join(left_out[:3])}."
        )
    return SaeBenchExport(files, tuple(left_out))


def _why_not(run: Results) -> str:
    changes = ", ".join(changes_of(run))
    return f"has {changes}" if changes else "is no reconstruction by one dictionary"


def _tokens(run: Results, text: str) -> int | None:
    tokens = ((run.provenance.get("fidelity") or {}).get(text) or {}).get("tokens")
    return tokens if isinstance(tokens, int) and not isinstance(tokens, bool) else None


def file_name(dictionary: DictionaryName) -> str:
    """As SAEBench names its files."""
    name = f"{dictionary.release}_{dictionary.id}" if dictionary.id else dictionary.release
    name = _plain(name)
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 33]}_{hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()}"
    return f"{name}_eval_results.json"


def _plain(name: str) -> str:
    """A name that is no path."""
    return re.sub(r"[^-.#+=A-Za-z0-9_]", "_", name).lstrip(".")


def core_result(run: Results, text: str, measured: Mapping[str, MetricValue], tokens: int) -> dict[str, Any]:
    """One result of the eval `core`, of a text with so many scored tokens."""
    record = run.provenance
    splice = record["splices"][0]
    name = DictionaryName.of_spec(dictionary_of(run))
    packages = record.get("packages") or {}
    dtype, model = str(record.get("model_dtype", "")), requested_model(run)
    metrics: dict[str, dict[str, Any]] = {
        category: {metric: _number(measured, ours) for metric, ours in metrics.items()}
        for category, metrics in CATEGORIES.items()
    }
    config = {
        "model_name": model,
        "llm_dtype": dtype,
        "dataset": text,
        "compute_kl": True,
        "compute_ce_loss": True,
        "compute_sparsity_metrics": True,
        "compute_variance_metrics": True,
        "exclude_special_tokens_from_reconstruction": str(record.get("splice_tokens", "")).startswith("non_special"),
    }
    if isinstance(length := run.raw.get("max_length"), int):
        config["context_size"] = length
    date = run.raw.get("date")
    return {
        "eval_type_id": "core",
        "eval_config": config,
        # The same results always have the same id.
        "eval_id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{run.file.name}/{run.name}/{text}/{json.dumps(metrics)}")),
        "datetime_epoch_millis": int(1000 * date) if isinstance(date, int | float) and 0 <= date < 1e10 else 0,
        "eval_result_metrics": {**metrics, "token_stats": dict.fromkeys(TOKENS, tokens)},
        "eval_result_details": [],
        "sae_bench_commit_hash": f"{SAEBENCH_MARK} {packages.get('sae_lm_eval') or version('sae-lm-eval')}",
        "sae_lens_id": name.id,
        "sae_lens_release_id": name.release,
        "sae_lens_version": packages.get("sae_lens"),
        "sae_cfg_dict": {
            "architecture": splice.get("architecture"),
            "d_in": splice.get("d_in"),
            "d_sae": splice.get("d_dictionary"),
            "dtype": splice.get("dtype"),
            "hook_name": splice.get("hook_in"),
            "model_name": model,
        },
        "eval_result_unstructured": {"sae_lm_eval": _ours(run, measured)},
    }


def _number(measured: Mapping[str, MetricValue], metric: str | None) -> float:
    entry = None if metric is None else measured.get(metric)
    return math.nan if entry is None or entry.value is None else entry.value


def _ours(run: Results, measured: Mapping[str, MetricValue]) -> dict[str, Any]:
    """All that was measured, with what it came from and how it differs from SAEBench's own."""
    return {
        "differences": list(DIFFERENCES),
        "variant": run.name,
        "command": command(run),
        "splice": run.provenance["splices"][0],
        "fidelity": {
            name: {"value": measured[name].value, "stderr": measured[name].stderr, "unit": measured[name].unit}
            for name in METRICS
            if name in measured and measured[name].value is not None
        },
    }


def say_saebench(export: SaeBenchExport, folder: Path) -> list[str]:
    """What was written and what was not, in sentences."""
    count = f"{len(export.files)} file{'s' if len(export.files) != 1 else ''}"
    left_out = [f"Left out: {some_of(export.left_out)}."] if export.left_out else []
    return [f"Written: {count} of SAEBench's eval core in '{folder}'.", *left_out]
