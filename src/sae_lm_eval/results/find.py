"""A folder of result folders -> the baseline and the variants in it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sae_lm_eval.errors import UserError, did_you_mean
from sae_lm_eval.files.reading import at_home, is_folder, shown
from sae_lm_eval.results.inspect_logs import SUFFIX, read_inspect_log
from sae_lm_eval.results.results import Results, read_results

PLAIN = ("hf", "hf-auto", "huggingface")


def find_results(out: Path, baseline: str | None = None) -> tuple[Results, tuple[Results, ...]]:
    """The baseline and the variants below `out`, each named after its folder, in natural order.

    The baseline is the one called `baseline`, or else the only one whose model is lm_eval's own or whose splice edits
    nothing, or else the one named by `baseline`. Raises `UserError` where there is none, or nothing to compare with it.
    """
    if not is_folder(out):
        raise UserError(
            f"There is no folder '{shown(out, 200)}'. Give the folder that `sae-lm-eval run --output_path` wrote."
        )
    folders = [path for path in sorted(out.iterdir(), key=natural) if path.is_dir() and has_results(path)]
    if len(folders) < 2:
        raise UserError(
            f"'{out}' holds {len(folders) or 'no'} folder{'s' if len(folders) != 1 else ''} with lm_eval results: a "
            "report needs a baseline and at least one variant, each in a folder of its own."
        )
    runs = [replace(read_results(path), name=path.name) for path in folders]
    chosen = _choose(runs, baseline, out)
    return chosen, tuple(results for results in runs if results is not chosen)


def named_results(path: str | Path) -> Results:
    """The results of a folder that was given to lm_eval as --output_path under its name, as `find_results` names them;
    others, and logs of Inspect, under their own. Raises `UserError` as `read_results` and `read_inspect_log` do.
    """
    if Path(path).suffix == SUFFIX:
        return read_inspect_log(at_home(path))
    results, folder = read_results(path), at_home(path).resolve()
    return replace(results, name=folder.name) if results.file.resolve().parent.parent == folder else results


def natural(path: Path) -> list[tuple[int, str]]:
    """`k4` before `k32`."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", path.name)]


def has_results(folder: Path) -> bool:
    """Whether lm_eval wrote results into a folder, or was given it as --output_path."""
    return any(folder.glob("results_*.json")) or any(folder.glob("*/results_*.json"))


def _choose(runs: Sequence[Results], baseline: str | None, out: Path) -> Results:
    by_name = {results.name: results for results in runs}
    name = baseline or ("baseline" if "baseline" in by_name else None)
    if name is not None:
        if name not in by_name:
            raise UserError(
                f"'{out}' has no results named '{name}'.{did_you_mean(name, by_name)} It has {', '.join(by_name)}."
            )
        return by_name[name]
    untouched = [results for results in runs if is_untouched(results)]
    if len(untouched) != 1:
        what = "several results" if untouched else "no results"
        raise UserError(
            f"'{out}' has {what} of an untouched model. Choose the baseline with --baseline NAME, one of "
            f"{', '.join(by_name)}."
        )
    return untouched[0]


def is_untouched(results: Results) -> bool:
    """Whether the results' own record says that nothing was spliced into the model."""
    if results.provenance:
        return results.provenance.get("splice") == "none"
    return results.config.get("model") in PLAIN


def is_control(results: Results) -> bool:
    """Whether the results are there to compare others with: nothing was reconstructed by a dictionary."""
    record = results.provenance
    return bool(record.get("noise_floor")) or record.get("splice", "reconstruction") != "reconstruction"


def told_apart(runs: Sequence[Results]) -> list[Results]:
    """The runs under names of their own: with the arguments that tell them apart, else with their folders."""
    named = []
    for run in runs:
        same = [other for other in runs if other.name == run.name]
        keys = [key for key in run.model_args if len({str(other.model_args.get(key)) for other in same}) > 1]
        apart = ", ".join(f"{key}={run.model_args[key]}" for key in keys)
        named.append(f"{run.name} ({apart})" if len(same) > 1 and apart else run.name)
    counts, unlike = Counter(named), []
    for run, name in zip(runs, named, strict=True):
        unlike.append(f"{name} [{run.folder}]" if counts[name] > 1 else name)
    for index, name in enumerate(unlike):
        if name in unlike[:index]:
            unlike[index] = f"{name} #{unlike[: index + 1].count(name)}"
    return [replace(run, name=name) for run, name in zip(runs, unlike, strict=True)]


def swapped(baseline: Results, variants: Sequence[Results]) -> str | None:
    """What to say where the baseline is spliced and one of its variants is the untouched model; None elsewhere."""
    untouched = [run.name for run in variants if is_untouched(run)]
    if is_untouched(baseline) or not untouched:
        return None
    return (
        f"The baseline comes first, and {baseline.name} has a dictionary spliced in, while {untouched[0]} is the "
        f"untouched model: drops count from the baseline, so these have the opposite sign."
    )
