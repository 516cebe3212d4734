"""lm_eval's own settings of a run, and which of them an answer depends on."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from numbers import Integral
from pathlib import Path
from typing import Any

from sae_lm_eval.errors import UserError, first_line
from sae_lm_eval.files.reading import at_home, is_folder, shown
from sae_lm_eval.runs.argument_text import named_values
from sae_lm_eval.runs.object_names import object_texts
from sae_lm_eval.runs.sweep import Sweep
from sae_lm_eval.runtime.devices import check_device, default_device
from sae_lm_eval.runtime.run_folder import check_folder
from sae_lm_eval.splicing.choices import LARGEST, finite_number, whole

# What cannot change an answer, so that a run may be continued with another.
FREE = frozenset(
    {"batch_size", "max_batch_size", "device", "verbosity", "output_path", "hf_hub_log_args", "show_config"}
)
LARGEST_SEED = 2**32 - 1
OF_GENERATION = {  # the least of each, and its kind
    "temperature": (0, float),
    "top_p": (0, float),
    "min_p": (0, float),
    "top_k": (0, int),
    "max_gen_toks": (1, int),
    "max_new_tokens": (1, int),
}
LEVELS = ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG")


def lm_eval_config(sweep: Sweep) -> Any:
    """lm_eval's reading of its settings. Raises `UserError` for what it refuses, and for what it would take amiss."""
    from argparse import Namespace

    from lm_eval.config.evaluate_config import EvaluatorConfig

    check_settings(sweep.settings)
    given = {
        **sweep.settings,
        "tasks": tasks_of(sweep.settings),
        "model": "sae_hf",
        "model_args": object_texts(sweep.model_args),
    }
    if given.get("samples") is not None:  # numpy's are no JSON
        given["samples"] = {task: [int(number) for number in numbers] for task, numbers in given["samples"].items()}
    if given.get("device") is None:
        given["device"] = default_device()  # lm_eval's own default is a GPU on every machine
    try:
        return EvaluatorConfig.from_cli(Namespace(**given))
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise UserError(f"lm_eval does not take these settings: {first_line(error)}") from error


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise `UserError` for a setting of lm_eval's of another type than it reads, whose mistake it tells late or never.

    The tasks are looked at as text alone: see `task_index.check_tasks`.
    """
    if not tasks_of(settings):
        raise UserError("--tasks is missing: name tasks of lm_eval's, as in --tasks blimp,lambada_openai.")
    if settings.get("limit") is not None and settings.get("samples") is not None:
        raise UserError("limit and samples both say which documents are asked: give one of them.")
    if settings.get("fewshot_as_multiturn") is True and not settings.get("apply_chat_template"):
        raise UserError("fewshot_as_multiturn makes turns of a chat: give --apply_chat_template as well.")
    for name, check in CHECKS.items():
        if settings.get(name) is not None:
            check(name, settings[name])


def tasks_of(settings: Mapping[str, Any]) -> list[str]:
    """The names that `tasks` holds, a text joined by commas or a list."""
    given = settings.get("tasks")
    listed = given if isinstance(given, list | tuple) else [given] if given else []
    if not all(isinstance(entry, str) for entry in listed):
        raise UserError(f"tasks: {given!r} is neither a text nor a list of names, such as [blimp, lambada_openai].")
    return [name.strip() for entry in listed for name in entry.split(",") if name.strip()]


def check_limit(limit: Any) -> None:
    """Raise `UserError` for a limit that leaves no document, which lm_eval takes for none at all."""
    try:
        number = math.nan if isinstance(limit, bool) else float(limit)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):
        number = math.nan
    if number >= LARGEST:
        raise UserError(
            f"limit: {shown(limit)} is more than any task has: give the number of documents, or nothing for all."
        )
    if not number > 0:
        raise UserError(
            f"limit: {limit!r} leaves no document to ask: give the number of documents, a share of them below 1, or "
            f"nothing for all."
        )
    if number > 1 and number != int(number):
        raise UserError(f"limit: {limit!r} is no number of documents: give a whole one, or a share of them below 1.")


def _number(least: int) -> Callable[[str, Any], object]:
    return lambda name, value: whole(value, name, least=least)


def _batch_size(name: str, value: Any) -> None:
    if not (isinstance(value, str) and re.fullmatch(r"auto(:\d{1,18})?|0*[1-9]\d{0,17}", value)):  # as text from flags
        try:
            whole(value, name, least=1)
        except UserError:
            raise UserError(
                f"{name}={shown(value)} must be a whole number of at least 1 and below 2**63, or auto."
            ) from None


def _of_type(types: tuple[type, ...], what: str) -> Callable[[str, Any], None]:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, types):
            raise UserError(f"{name}: {value!r} is not {what}.")

    return check


def _folders(name: str, value: Any) -> None:
    for folder in value if isinstance(value, list | tuple) else [value]:
        if not isinstance(folder, str | Path) or not is_folder(at_home(folder)):
            raise UserError(f"{name}: there is no folder '{folder}'.")


def _level(_name: str, value: Any) -> None:
    if not isinstance(value, str) or value.upper() not in LEVELS:
        raise UserError(f"verbosity: {value!r} is no level of logging. Choose from {', '.join(LEVELS)}.")


def _samples(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        example = '{"lambada_openai": [0, 1]}'
        raise UserError(f"{name}: {value!r} is not a mapping of tasks to the numbers of documents, as in {example}.")
    if not value:
        raise UserError(f"{name}: {value!r} names no document: leave it out for all, or give {{task: [0, 1]}}.")
    for task, numbers in value.items():
        if not isinstance(task, str):
            raise UserError(f"{name}: {task!r} is no name of a task.")
        if not isinstance(numbers, list | tuple) or not numbers:
            raise UserError(f"{name}: {task}: {numbers!r} is no list of numbers of documents, as in [0, 1].")
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, Integral) or int(number) < 0:
                raise UserError(
                    f"{name}: {task}: {number!r} is no number of a document: give whole ones, as in [0, 1]."
                )
            if int(number) >= LARGEST:
                raise UserError(
                    f"{name}: {task}: {shown(int(number))} is no number of a document, which is below 2**63."
                )
        if twice := [number for number, count in Counter(numbers).items() if count > 1]:
            raise UserError(f"{name}: {task} names document {twice[0]} twice.")


def _seeds(name: str, value: Any) -> None:
    given = value.split(",") if isinstance(value, str) else value
    for seed in given if isinstance(given, list | tuple) else [given]:
        text = seed.strip() if isinstance(seed, str) else seed
        number = int(text) if isinstance(text, str) and re.fullmatch(r"\d{1,100}", text) else text
        if number not in (None, "None") and whole(number, name, least=0) > LARGEST_SEED:
            raise UserError(f"{name}={seed} is more than {LARGEST_SEED}, the most that numpy takes.")


def _cache(name: str, value: Any) -> None:
    _text(name, value)
    check_folder(at_home(value).parent, f"--{name}")


def _generation(name: str, value: Any) -> None:
    _mapping(name, value)
    given = named_values(value, name) if isinstance(value, str) else value
    for key in [key for key in OF_GENERATION if given.get(key) is not None]:
        least, kind = OF_GENERATION[key]
        number = finite_number(given[key], f"{name}: {key}")
        if number < least or (kind is int and number != int(number)):
            what = "a whole number" if kind is int else "a number"
            raise UserError(f"{name}: {key}={given[key]} must be {what} of at least {least}.")


_truth = _of_type((bool,), "true or false")
_mapping = _of_type((Mapping, str), "a mapping, such as {temperature: 0}")
_text = _of_type((str,), "a text")
CHECKS: Mapping[str, Callable[[str, Any], object]] = {
    "limit": lambda _name, value: check_limit(value),
    "num_fewshot": _number(0),
    "batch_size": _batch_size,
    "max_batch_size": _number(1),
    "device": lambda _name, value: check_device(value),
    "gen_kwargs": _generation,
    "seed": _seeds,
    "metadata": _mapping,
    "hf_hub_log_args": _mapping,
    "samples": _samples,
    "use_cache": _cache,
    "system_instruction": _text,
    "verbosity": _level,
    "apply_chat_template": _of_type((bool, str), "true, false or the name of a template"),
    "include_path": _folders,
    **dict.fromkeys(
        (
            *("fewshot_as_multiturn", "check_integrity", "write_out", "trust_remote_code"),
            "confirm_run_unsafe_code",
        ),
        _truth,
    ),
}


def fixed_settings(settings: Any) -> dict[str, Any]:
    """Those that a run cannot be continued without."""
    return {name: value for name, value in asdict(settings).items() if name not in FREE and name != "model_args"}
