"""`sae-lm-eval curve`: the losses of several models on one text, as the family that effective compute is read from."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sae_lm_eval.cli.first_words import say_loading
from sae_lm_eval.errors import UserError

if TYPE_CHECKING:
    from sae_lm_eval.runs.members import Member
    from sae_lm_eval.scaling.data_files import Row

LOSSES = ("loss", "nats_per_byte")
SHOWN_SECTIONS = ("overall", "category", "group")  # on a terminal; the report has each task as well
FIXED = ("pretrained", "revision", "sae", "splice", "max_length")  # what the command sets by itself
LM_EVAL_SETTINGS = ("limit", "batch_size", "device", "metadata", "include_path")


class Per(enum.StrEnum):
    token = "token"
    byte = "byte"


Models = Annotated[
    str, typer.Option(help="name or name@revision, joined by commas; or a CSV of model and, if need be, tokens.")
]
AskTasks = Annotated[bool, typer.Option("--tasks", help="Evaluate the tasks of the run --like, instead of losses.")]
TokensOf = Annotated[str, typer.Option(help="Training tokens of unknown models: name@revision=1e11,...")]


def curve(
    context: typer.Context,
    models: Models = "",
    task: Annotated[str | None, typer.Option(help="A task of whole documents, such as wikitext.")] = None,
    like: Annotated[
        Path | None, typer.Option(help="A results folder: use its text, --limit and context length.")
    ] = None,
    tasks: AskTasks = False,
    max_length: Annotated[
        int | None,
        typer.Option("--max_length", help="Tokens in a window (default: the first model's context)."),
    ] = None,
    tokens: TokensOf = "",
    per: Annotated[Per, typer.Option(help="Compare losses per token, or per byte if tokenizers differ.")] = Per.token,
    model_args: Annotated[str, typer.Option("--model_args", "-a", help="For every model: dtype=bfloat16,...")] = "",
    output_path: Annotated[Path | None, typer.Option("--output_path", "-o", help="The CSV file to write.")] = None,
) -> None:
    """Measure the loss of several models or checkpoints on one text, as a curve for effective compute.

    Of lm_eval's flags --limit, --batch_size, --device, --metadata and --include_path may follow. The file is written
    after each model, and the same command continues an interrupted one. If the file lies beside the results of a run on
    the same text, that run uses it without being told.
    """
    from sae_lm_eval.runs.argument_text import named_values

    settings = _lm_eval_settings(context)
    limit, include_path = settings.get("limit"), settings.get("include_path")
    loading = named_values(model_args) | {key: settings[key] for key in ("device", "batch_size") if key in settings}
    if fixed := [name for name in FIXED if name in loading and not (tasks and name == "max_length")]:
        raise UserError(f"--model_args has {fixed[0]}=, which curve sets by itself; models stand in --models.")
    if tasks:
        _measure_tasks(_members(models, _mapping(tokens)), like, loading, (task, limit, max_length, output_path))
        return
    request: dict[str, Any] = _text_of(like, task) if like is not None else {"task": task}
    for name, value in {"task": task, "limit": limit, "context": max_length}.items():
        if value is not None and request.setdefault(name, value) != value:
            raise UserError(f"--{name} is {value}, and '{like}' was run with {request[name]}: leave it or --like out.")
    if request["task"] is None:
        raise UserError("--task is missing: name a task of whole documents, such as wikitext, or a run with --like.")
    if output_path is None:
        if like is None:
            raise UserError("--output_path is missing: name the CSV file of the family, as in family.csv.")
        output_path = like / f"family_{request['task']}.csv"
    members = _members(models, _mapping(tokens))
    options = _options(settings["metadata"]) if "metadata" in settings else request.get("metadata")
    _check(members, request, loading, include_path, output_path)
    say_loading()
    from sae_lm_eval.runs import loss_curve as curves

    text = curves.task_documents(
        request["task"], limit=request.get("limit"), metadata=options, include_path=include_path
    )
    if request.get("documents", len(text.documents)) != len(text.documents):
        raise UserError(
            f"{request['task']} has {len(text.documents)} documents here, and {request['documents']} in '{like}': "
            "it is another text."
        )
    windows = request.get("context")
    rows = curves.measure_curve(members, text, output_path, context=windows, per=per.value, loading=loading)
    _print(rows, per, output_path)


def _lm_eval_settings(context: typer.Context) -> dict[str, Any]:
    """What was given of lm_eval's flags. Raises `UserError` for those that a curve does not take."""
    if not context.args:
        return {}
    from sae_lm_eval.cli.lm_eval_flags import settings_of

    flags = [re.sub(r"^--[\w-]+", lambda name: "--" + name[0][2:].replace("-", "_"), flag) for flag in context.args]
    own = [f"--{option.name}" for option in context.command.params]
    settings = settings_of(flags, own, "curve", LM_EVAL_SETTINGS)
    if isinstance(limit := settings.get("limit"), float) and limit.is_integer():
        settings["limit"] = int(limit)
    return settings


def _check(
    members: list[Member],
    request: dict[str, Any],
    loading: dict[str, Any],
    include_path: str | None,
    output_path: Path,
) -> None:
    """Raise `UserError` for what measuring a text would stumble over, as far as files tell."""
    from sae_lm_eval.runs.checks import check_model_args
    from sae_lm_eval.runs.members import check_curve_file, check_members
    from sae_lm_eval.runs.settings import CHECKS
    from sae_lm_eval.runs.task_index import check_tasks
    from sae_lm_eval.splicing.choices import whole

    check_curve_file(output_path)
    for name in ("limit", "batch_size", "device", "include_path"):
        value = {**request, **loading, "include_path": include_path}.get(name)
        if value is not None:
            CHECKS[name](name, value)
    if request.get("context") is not None:
        whole(request["context"], "--max_length", least=1)
    check_model_args(loading)
    check_members(members, loading, request.get("context"))
    check_tasks([request["task"]], include_path)


def _measure_tasks(
    members: list[Member], like: Path | None, loading: dict[str, Any], of_texts: tuple[Any, ...]
) -> None:
    """Measure a family on the tasks of a run, and print what compute each of the run's variants is worth."""
    from rich.console import Console

    from sae_lm_eval.capability.family import cut_scores, equivalent_rows, equivalents, read_task_family
    from sae_lm_eval.cli.code_of_files import ask_about_code
    from sae_lm_eval.cli.tables import TextTable, print_sentence, print_table
    from sae_lm_eval.comparison.compare import paired_comparison
    from sae_lm_eval.results.find import find_results
    from sae_lm_eval.runs.members import check_members, read_asked
    from sae_lm_eval.runtime.run_files import SETTINGS

    if like is None or any(value is not None for value in of_texts):
        raise UserError("--tasks asks what the run --like was asked: name the run, without a text of your own.")
    record = read_asked(like)
    ask_about_code([record, {**record["model_args"], **loading}], [loading], like / SETTINGS)
    check_members(members, loading)
    say_loading()
    from sae_lm_eval.runs.task_family import measure_tasks

    path = measure_tasks(members, like, loading)
    baseline, variants = find_results(like)
    results = equivalents(cut_scores(paired_comparison(baseline, variants), read_task_family(path)))
    rows = equivalent_rows(results, SHOWN_SECTIONS)
    title = "Share of the training compute that buys what is left of each score"
    print_table(Console(), TextTable(list(rows[0]), [list(row.values()) for row in rows], title, words=(0, 1, 2, 3)))
    print_sentence(
        Console(), f"Written: {path}. The report of '{like}' has a table of all tasks by it.", soft_wrap=True
    )


def _text_of(like: Path, task: str | None) -> dict[str, Any]:
    """What a run was asked the loss of, as far as its results say."""
    from sae_lm_eval.runs.members import DOCUMENT_TYPES
    from sae_lm_eval.scaling.of_results import read_all

    for results in read_all(like):
        kinds = {name: results.task_config(name).output_type for name in results.tasks}
        tasks = [name for name, kind in kinds.items() if kind in DOCUMENT_TYPES and task in (None, name)]
        if len(tasks) > 1:
            raise UserError(f"'{like}' has several texts: choose one with --task, of {', '.join(tasks)}.")
        if tasks:
            context = results.provenance.get("max_length", results.model_args.get("max_length"))
            request = {
                "task": tasks[0],
                "documents": results.documents[tasks[0]],
                "limit": results.config.get("limit"),
                "context": None if context is None else int(context),
                "metadata": {tasks[0]: results.task_config(tasks[0]).metadata},
            }
            return {name: value for name, value in request.items() if value is not None}
    raise UserError(f"'{like}' has no results of {task or 'a task of whole documents'}: name the text with --task.")


def _options(metadata: object) -> dict[str, Any]:
    from sae_lm_eval.files.reading import checked

    return checked(dict[str, dict[str, Any]], metadata, "--metadata", 'an object, as in {"sae_fidelity_text": {...}}')


def _mapping(text: str) -> dict[str, float]:
    counts = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, count = part.rpartition("=")
        try:
            counts[name] = float(count)
        except ValueError:
            raise UserError(f"--tokens has '{part}': write name=count, as in my/model@step1000=2e9.") from None
        if not name or not 0 <= counts[name] < float("inf"):
            raise UserError(f"--tokens has '{part}': write name=count, with a count of 0 or more.")
    return counts


def _members(models: str, tokens: Mapping[str, float]) -> list[Member]:
    from sae_lm_eval.runs.members import Member, MemberRow
    from sae_lm_eval.scaling.data_files import read_rows

    if models.endswith(".csv"):
        listed = [(row["model"], row.get("tokens")) for row in read_rows(models, required=["model"], kind=MemberRow)]
    else:
        listed = [(name, None) for name in models.split(",") if name.strip()]
    members = [Member.parse(name, tokens.get(name.strip(), count)) for name, count in listed]
    names = [str(member) for member in members]
    if not names:
        raise UserError("--models names no model: write name or name@revision, several joined by commas.")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--models has {twice} twice.")
    if strange := next((name for name in tokens if name not in {written.strip() for written, _ in listed}), None):
        raise UserError(f"--tokens speaks of '{strange}', which is not in --models.")
    return members


def _print(rows: list[Row], per: Per, path: Path) -> None:
    from rich.console import Console

    from sae_lm_eval.cli.tables import TextTable, print_sentence, print_table
    from sae_lm_eval.report.formatting import fixed_decimals, general
    from sae_lm_eval.scaling.family import row_name

    unit = "nats/token" if per is Per.token else f"nats/token of {rows[0]['model']}"
    headings = ("model", "parameters", "training tokens", unit, "nats/byte")
    lines = [
        (
            row_name(row),
            general(row["params"], 4),
            general(row["tokens"], 4),
            *(fixed_decimals(row[name], 4) for name in LOSSES),
        )
        for row in rows
    ]
    console = Console()
    print_table(console, TextTable(headings, lines, rows[0]["text"]))
    flag = "checkpoints" if len({row["model"] for row in rows}) == 1 else "family"
    print_sentence(
        console, f"Written: {path}. To use it: sae-lm-eval effective-compute ... --{flag} {path}", soft_wrap=True
    )
