"""Several models for one set of dictionaries: the sweep of each, whose run has a folder of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sae_lm_eval.dictionaries.model_names import is_among
from sae_lm_eval.dictionaries.presence import training_site
from sae_lm_eval.dictionaries.spec import SaeSpec
from sae_lm_eval.errors import UserError
from sae_lm_eval.files.logs import logger_of, without
from sae_lm_eval.files.reading import at_home, is_folder, read_json
from sae_lm_eval.harness import chat_template
from sae_lm_eval.harness.context_length import stated
from sae_lm_eval.runs.checks import check
from sae_lm_eval.runs.folder_names import TAKEN, check_name
from sae_lm_eval.runs.model_files import WIDTHS, hub_file, model_config
from sae_lm_eval.runs.object_names import is_object, object_name, object_texts
from sae_lm_eval.runs.outcome import Finished, refuse_failed
from sae_lm_eval.runs.sweep import Sweep, sweep_of
from sae_lm_eval.runtime.placed_files import refuse_linked
from sae_lm_eval.runtime.processes import agreed, rank
from sae_lm_eval.runtime.run_files import MODELS, SETTINGS, read_models
from sae_lm_eval.runtime.run_folder import refuse_links, write_json
from sae_lm_eval.schema import KEY, VERSION
from sae_lm_eval.splicing.choices import OF_OTHER_MODEL

if TYPE_CHECKING:
    from sae_lm_eval.report.transfer import Transfer

T = TypeVar("T")
OF_MODELS = ("pretrained", "revision")  # of which model_args may have lists
# Settings of lm_eval's that an entry may have for its own model, as a chat model is asked otherwise than its base.
OF_CHATS = ("apply_chat_template", "fewshot_as_multiturn", "system_instruction")
WARNING_LOGGER = logger_of("sae_lm_eval.splicing.variants").name
FREE = ("python", "clt")  # loaders whose dictionaries may fit models of several widths


def lists_models(model_args: Any) -> bool:
    """Whether model arguments name several models, or a list of one."""
    return isinstance(model_args, Mapping) and any(isinstance(model_args.get(name), list | tuple) for name in OF_MODELS)


def sweeps_of(content: Mapping[str, Any]) -> dict[str, Sweep]:
    """For each model that `pretrained` or `revision` lists the sweep of it, by the name of its folder.

    Raises `UserError` for an entry that names no model, for a model that stands twice, and as `sweep_of` does.
    """
    given = dict(content["model_args"])
    listed = {name: given.pop(name, None) for name in OF_MODELS}
    entries = [dict(entry) for entry in _entries(**listed)]
    names = _names([(entry.pop("name", None), _label(entry)) for entry in entries])
    sweeps, seen = {}, {}
    for name, entry in zip(names, entries, strict=True):
        settings = {key: entry.pop(key) for key in OF_CHATS if key in entry}
        what = json.dumps([entry, settings], sort_keys=True, default=id)
        if what in seen:
            raise UserError(f"pretrained: '{seen[what]}' and '{name}' are the same model, asked alike: give it once.")
        seen[what] = name
        sweep = sweep_of({**content, **settings, "model_args": {**given, **entry}})
        sweeps[name] = replace(sweep, output_path=None)
    return sweeps


def _entries(pretrained: Any, revision: Any) -> Iterator[dict[str, Any]]:
    """Model arguments of each model, those of chats among them, and `name` where it is given."""
    if isinstance(revision, list | tuple):
        if isinstance(pretrained, list | tuple):
            raise UserError("pretrained and revision are both lists: give one list of models, as in gpt2@main.")
        if not revision:
            raise UserError("revision: the list is empty: give the revisions of the model.")
        yield from ({"pretrained": pretrained, "revision": str(each)} for each in revision)
        return
    if not pretrained:
        raise UserError("pretrained: the list is empty: give the models, as in [gpt2, org/gpt2-tuned].")
    for number, entry in enumerate(pretrained, start=1):
        where = f"pretrained, entry {number}"
        if isinstance(entry, Mapping):
            if entry.get("pretrained") is None or isinstance(entry["pretrained"], list | tuple):
                raise UserError(
                    f"{where}: {dict(entry)!r} names no model: give pretrained, as in {{pretrained: gpt2}}."
                )
            yield {**_of_text(entry["pretrained"], where), **({} if revision is None else {"revision": revision})} | {
                key: value for key, value in entry.items() if key != "pretrained"
            }
        else:
            yield {**({} if revision is None else {"revision": revision}), **_of_text(entry, where)}


def _of_text(entry: Any, where: str) -> dict[str, Any]:
    if is_object(entry):
        return {"pretrained": entry}
    if not isinstance(entry, str | Path) or not str(entry).strip():
        raise UserError(
            f"{where}: {entry!r} names no model: write name or name@revision, or a mapping with pretrained."
        )
    if is_folder(at_home(entry)):
        return {"pretrained": str(entry)}
    from sae_lm_eval.runs.members import Member  # which brings pandas

    member = Member.parse(str(entry))
    source = member.source
    return dict(source) if "@" in str(entry) else {"pretrained": source["pretrained"]}


def _label(entry: Mapping[str, Any]) -> str:
    """What a model is called where nobody gave it a name."""
    model = entry["pretrained"]
    text = object_name(model).strip("<>") if is_object(model) else str(model)
    revision = entry.get("revision")
    return text if revision in (None, "main") else f"{text}@{revision}"


def _names(entries: Sequence[tuple[Any, str]]) -> list[str]:
    """The folders' names: those given, else the last part of the model's, or all of it where two end alike."""
    last = [_plain(label.rstrip("/").split("/")[-1]) for _, label in entries]
    names = [
        str(own) if own is not None else short if last.count(short) == 1 else _plain(label.strip("./~"))
        for (own, label), short in zip(entries, last, strict=True)
    ]
    for number, name in enumerate(names, start=1):
        check_name(name, f"pretrained, entry {number}", taken=TAKEN | {MODELS})
        if name.casefold() in [other.casefold() for other in names[: number - 1]]:
            raise UserError(f"pretrained: two models are called '{name}': give one of them a name.")
    return names


def _plain(text: str) -> str:
    return re.sub(r"[^\w.+=,-]+", "_", text.replace("@", ",")).strip("._,") or "model"


# -- what is wrong, and what is to be said, before anything is loaded ------------------------------------------


def check_models(sweeps: Mapping[str, Sweep], output_path: Path | None) -> None:
    """Raise `UserError` for what the run of one of the models would stumble over, and for what their folder holds."""
    if output_path is not None:
        _check_output(sweeps, output_path)
    _check_chats(sweeps)
    errors: dict[str, str] = {}
    for name, sweep in sweeps.items():
        try:
            check(sweep, None if output_path is None else output_path / name)
        except UserError as error:
            errors[name] = str(error)
    if errors:
        same = len(set(errors.values())) == 1 and len(errors) == len(sweeps)
        messages = [next(iter(errors.values()))] if same else [f"{name}: {error}" for name, error in errors.items()]
        raise UserError(" ".join(messages))
    _check_widths(sweeps)


def _check_output(sweeps: Mapping[str, Sweep], output_path: Path) -> None:
    if (output_path / SETTINGS).exists():
        raise UserError(f"'{output_path}' holds the run of one model. Give another --output_path for several.")
    kept = read_models(output_path)
    for name, record in _records(sweeps).items():
        if name in kept and kept[name] != record:
            raise UserError(
                f"'{output_path}' holds a run of another model as '{name}': {kept[name]} there, {record} here. Give "
                "the model another name, or another --output_path."
            )


def _check_chats(sweeps: Mapping[str, Sweep]) -> None:
    """Raise `UserError` where a chat template is asked for of models of which some have none."""
    chats = {name: sweep for name, sweep in sweeps.items() if sweep.settings.get("apply_chat_template")}
    lacking = [name for name, sweep in chats.items() if chat_template.has_chat_template(sweep.model_args) is False]
    if lacking and len(lacking) < len(sweeps):
        raise UserError(
            f"The tokenizer of {' and '.join(lacking)} has no chat template: give apply_chat_template in the entries "
            "of the models that have one, as in {pretrained: ORG/CHAT, apply_chat_template: true}."
        )


def _check_widths(sweeps: Mapping[str, Sweep]) -> None:
    """Raise `UserError` where models differ in width and dictionaries are asked for, each of which fits one width."""
    widths = {name: stated(model_config(sweep.model_args), WIDTHS) for name, sweep in sweeps.items()}
    known_widths = {name: width for name, width in widths.items() if width is not None}
    if len(set(known_widths.values())) < 2:
        return
    for sweep in sweeps.values():
        for request in sweep.variants:
            for source in request.sources:
                if isinstance(source, str) and SaeSpec.parse(source).loader not in FREE:
                    listing = ", ".join(f"{name} {width:,}" for name, width in known_widths.items())
                    raise UserError(
                        f"The models differ in the width of their streams ({listing}), and {source} fits one of them "
                        "alone: give models of one width, or run them one by one."
                    )


def model_notes(sweeps: Mapping[str, Sweep]) -> list[str]:
    """What a reader of the table should know of these models, each once."""
    messages = []
    for name, others in foreign_dictionaries(sweeps).items():
        messages.append(f"Transfer: into {name} go dictionaries that were trained on {' and '.join(others)}.")
    vocabularies = {name: _vocabulary(sweep.model_args) for name, sweep in sweeps.items()}
    digests = {name: digest for name, digest in vocabularies.items() if digest is not None}
    if len(set(digests.values())) > 1:
        first = next(iter(digests))
        other = [name for name, digest in digests.items() if digest != digests[first]]
        messages.append(f"The tokenizer of {' and '.join(other)} has other tokens than that of {first}.")
    chats = [name for name, sweep in sweeps.items() if sweep.settings.get("apply_chat_template")]
    plain = [name for name in sweeps if name not in chats]
    if chats and plain:
        messages.append(
            f"Questions are asked behind a chat template of {' and '.join(chats)}, and of {' and '.join(plain)} "
            "without one: each drop is against the same model asked alike."
        )
    return messages


def foreign_dictionaries(sweeps: Mapping[str, Sweep]) -> dict[str, list[str]]:
    """For each model the other models that dictionaries in it were trained on, as far as their names say."""
    models = {name: str(sweep.model_args.get("pretrained")) for name, sweep in sweeps.items()}
    out: dict[str, list[str]] = {}
    for name, sweep in sweeps.items():
        if not isinstance(sweep.model_args.get("pretrained"), str | Path):
            continue
        specs = (source for request in sweep.variants for source in request.sources if isinstance(source, str))
        trained = dict.fromkeys(training_site(SaeSpec.parse(spec))[0] for spec in specs)
        if others := [
            model for model in trained if model is not None and _is_other(model, models[name], models.values())
        ]:
            out[name] = others
    return out


def _is_other(trained_on: str, model: str, models: Collection[str]) -> bool:
    """Whether a dictionary's model is not this one: another in name, or one of `models` with the same last part."""
    return not is_among(model, [trained_on]) or (trained_on in models and trained_on != model)


def _vocabulary(model_args: Mapping[str, Any]) -> int | None:
    """A hash of the tokens of a model's tokenizer, None where no file tells them."""
    place: Any = model_args.get("tokenizer") or model_args.get("pretrained")
    if not isinstance(place, str | Path):
        return None
    from sae_lm_eval import world

    folder = world.model_path() if world.is_meant_by(place) else at_home(place)
    revision = None if model_args.get("tokenizer") else model_args.get("revision")
    try:
        file = folder / "tokenizer.json" if is_folder(folder) else hub_file(str(place), "tokenizer.json", revision)
        held = None if file is None or not file.is_file() else read_json(file, dict[str, Any], "a tokenizer")
    except (UserError, OSError, ValueError):
        return None  # some have none; what is wrong with it is told when it is loaded
    vocabulary = None if held is None else (held.get("model") or {}).get("vocab")
    return None if vocabulary is None else hash(json.dumps(vocabulary, sort_keys=True))


# -- the folder ------------------------------------------------------------------------------------------------


def remember_models(sweeps: Mapping[str, Sweep], output_path: Path) -> None:
    """Write down which models have runs in the folder, those of before first. Raises `UserError` for links in it."""
    output_path.mkdir(parents=True, exist_ok=True)
    refuse_links(output_path)
    for name in sweeps:
        refuse_linked(output_path / name, "Remove it, or give another --output_path.")
    write_json(output_path / MODELS, {KEY: VERSION, "models": {**read_models(output_path), **_records(sweeps)}})


def run_each(
    sweeps: Mapping[str, Sweep],
    output_path: Path,
    run: Callable[[Sweep, Path], T],
    tell: Callable[[str], object],
) -> dict[str, T]:
    """What `run` gives for each sweep and its folder, by name; `tell` is told what a reader should know before.

    Raises `UserError` as `check_models` does.
    """
    check_models(sweeps, output_path)
    for sentence in model_notes(sweeps) if rank() == 0 else []:
        tell(sentence)
    agreed(lambda: remember_models(sweeps, output_path))
    foreign, out = foreign_dictionaries(sweeps), {}
    for name, sweep in sweeps.items():
        # Of dictionaries whose names tell where they are from, it has been said.
        with without(WARNING_LOGGER, OF_OTHER_MODEL) if name in foreign else nullcontext():
            out[name] = run(sweep, output_path / name)
    return out


def transfer_of(sweeps: Mapping[str, Sweep], done: Mapping[str, Finished], output_path: Path) -> Transfer:
    """What runs in a folder of several models found. Raises `UserError` where variants of one of them failed."""
    from sae_lm_eval.report.transfer import read_transfer

    for name, finished in done.items():
        refuse_failed(finished, output_path / name)
    first = next(iter(sweeps.values()))
    return read_transfer(output_path, categories=first.categories, docs_by=first.docs_by)


def _records(sweeps: Mapping[str, Sweep]) -> dict[str, dict[str, Any]]:
    records = {}
    for name, sweep in sweeps.items():
        settings = {key: sweep.settings[key] for key in OF_CHATS if key in sweep.settings}
        records[name] = json.loads(json.dumps({**object_texts(sweep.model_args), **settings}, default=str))
    return records
