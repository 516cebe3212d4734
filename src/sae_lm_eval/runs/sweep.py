"""A sweep: which variants of a model to evaluate, from a file or from specs, written out one by one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import inf
from pathlib import Path
from typing import Any

from sae_lm_eval.catalog import lookup
from sae_lm_eval.catalog.lookup import DictionaryFacts
from sae_lm_eval.dictionaries.spec import SaeSpec
from sae_lm_eval.errors import UserError, did_you_mean, one_of
from sae_lm_eval.files.logs import logger_of
from sae_lm_eval.files.reading import at_home, is_folder
from sae_lm_eval.runs.argument_text import named_values
from sae_lm_eval.runs.asked import VariantRequest as VariantRequest
from sae_lm_eval.runs.asked_documents import category_map, field_of, user_path
from sae_lm_eval.runs.equal_variants import variant_identity
from sae_lm_eval.runs.folder_names import AGAIN, check_name, folder_name, free_name, refuse_twice, short_name
from sae_lm_eval.runs.object_names import is_object, object_texts
from sae_lm_eval.runs.sweep_keys import OURS, lm_eval_settings
from sae_lm_eval.splicing.adapter_spec import AdapterSpec
from sae_lm_eval.splicing.layer_choice import BEST
from sae_lm_eval.splicing.splice_arguments import LATENT_EDITS, OF_ENTRIES, OF_SITES, SpliceArguments

logger = logger_of(__name__)

CONTROLS = ("none", "zero", "mean", "random_error")
# Controls of the run as a whole: edits of the model as a ruler, from weak to strong.
LADDERS = {
    "prune": [f"prune?share={share}" for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)],
    "lowrank": [f"lowrank?share={share}" for share in (0.9, 0.75, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)],
    "quantize": [f"quantize?bits={bits}&group=64" for bits in (8, 6, 5, 4, 3, 2)],
    "noise": [f"noise?std={std}&seed={seed}" for std in (0.03, 0.1, 0.2, 0.4) for seed in range(3)],
}
FILTERS = ("width", "l0", "layer")
TOGETHER = ("each", "all")
ARGUMENTS = tuple(name for name in SpliceArguments.names() if name != "sae")  # besides the dictionaries
COMMON = tuple(name for name in ARGUMENTS if name not in OF_ENTRIES)  # that may stand among the model's
SERIES = {"scale": "[0.5, 1]", "splice_layers": "[0-2, 0-5]"}  # arguments that a list makes variants of
# Which controls at their sites do not take over.
OF_DICTIONARIES = ("scale", *LATENT_EDITS, "splice_input", "peft")
PATHS = ("pretrained", "tokenizer", "peft", "delta", "include_path", "use_cache")
RAY = re.compile(r"local|auto|(ray://)?[^/\s]+:\d+")
OF_LOADING = ("batch_size", "max_batch_size", "device")  # settings that lm_eval takes among the model's arguments too


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says; `settings` are lm_eval's own, under their names.

    `once` names the controls of the run as a whole, which have no dictionary: `baseline_again` or none.
    """

    model_args: Mapping[str, Any]
    variants: tuple[VariantRequest, ...]
    settings: Mapping[str, Any]
    categories: Mapping[str, Any] | None = None
    docs_by: str | None = None
    memory: float | None = None
    ray: str | None = None
    output_path: Path | None = None
    once: tuple[str, ...] = ()


def read_sweep(file: Path) -> dict[str, Any]:
    """What a sweep file holds, its keys checked. Raises `UserError` where it cannot be read, or has an unknown key."""
    from sae_lm_eval.files.reading import is_file, read_text, shown, yaml_value

    if not is_file(file):
        raise UserError(f"There is no sweep file '{shown(file, 200)}'. Each dictionary takes a --sae of its own.")
    content = yaml_value(read_text(file), f"The sweep file '{file}'")
    if not isinstance(content, dict):
        raise UserError(f"The sweep file '{file}' must be a mapping with model_args, tasks and variants.")
    _check_keys(content, (*OURS, *lm_eval_settings()), f"The sweep file '{file}'")
    return content


def sweep_of(content: Mapping[str, Any]) -> Sweep:
    """The sweep that the keys of a file, or the same from elsewhere, describe.

    Raises `UserError` that names the key for whatever does not make sense in it.
    """
    given = content.get("model_args")
    given = {} if given is None else given
    if isinstance(given, str):
        given = named_values(given, "model_args")
    if not isinstance(given, Mapping):
        raise UserError(f"model_args: {given!r} is no mapping, such as {{pretrained: gpt2}}.")
    model_args = {name: _expanded(value) if name in PATHS else value for name, value in given.items()}
    if listed := [name for name in ("pretrained", "revision") if isinstance(given.get(name), list | tuple)]:
        raise UserError(f"{listed[0]}: {given[listed[0]]!r} are several: only run takes a list of models. Give one.")
    settings = {name: content[name] for name in content if name not in OURS}
    for name in [name for name in OF_LOADING if name in model_args]:
        value = model_args.pop(name)
        if settings.get(name) not in (None, value):
            raise UserError(f"{name} is {settings[name]} by its own flag or key, and {value} in model_args: give one.")
        settings[name] = value
    variants = as_list(content.get("variants"))
    variants = [*({name: model_args.pop(name)} for name in ("sae", "edit") if name in model_args), *variants]
    common = {name: model_args.pop(name) for name in COMMON if name in model_args}
    common |= {name: content[name] for name in ("mean_text", "mean_tokens") if content.get(name) is not None}
    controls = _listed(content.get("controls"), "controls")
    requests = variant_requests(variants, [name for name in controls if name != AGAIN], common)
    memory = content.get("memory")
    if memory is not None and (isinstance(memory, bool) or not isinstance(memory, int | float) or not 0 < memory < inf):
        raise UserError(f"memory: {memory!r} is no number of gigabytes above 0.")
    if content.get("ray") is not None and not RAY.fullmatch(str(content["ray"])):
        raise UserError(
            f"ray: '{content['ray']}' is no address: give that of a cluster, as in ray://HOST:10001 or HOST:6379, auto "
            "for the one that this machine is in, or local for one on it alone."
        )
    return Sweep(
        model_args,
        tuple(requests),
        {name: _expanded(value) if name in PATHS else value for name, value in settings.items()},
        memory=memory,
        once=(AGAIN,) if AGAIN in controls else (),
        ray=None if content.get("ray") is None else str(content["ray"]),
        categories=category_map(content.get("categories")),
        docs_by=field_of(content.get("docs_by")),
        output_path=None if content.get("output_path") is None else user_path(content["output_path"], "output_path"),
    )


def as_list(entries: Any) -> list[Any]:
    """A list of variants, of which a text, mapping, path or object is one. Raises `UserError` for what is none."""
    if isinstance(entries, str | Path | Mapping) or is_object(entries):
        return [entries]
    if entries is None or isinstance(entries, list | tuple):
        return list(entries or ())
    raise UserError("variants: there are none: give a list of entries such as {sae: RELEASE#ID}.")


def _expanded(value: Any) -> Any:
    """`value` with the user's folder for `~`, where it is a path that begins so; of several, each."""
    if isinstance(value, list | tuple):
        return [_expanded(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value


def variant_requests(
    entries: Any, controls: Sequence[str] = (), common: Mapping[str, Any] | None = None
) -> list[VariantRequest]:
    """The variants that `entries` describe, and behind each its controls, none of them twice.

    An entry is a spec as text, or a mapping with `sae`, `pattern` or `edit`; `common` holds arguments of every variant
    that has dictionaries.
    """
    for control in controls:
        one_of(control, (*CONTROLS, *LADDERS, AGAIN), "controls:")
    requests: list[VariantRequest] = []
    for number, entry in enumerate(as_list(entries or 0), start=1):  # an empty list is none
        requests += _of_entry(entry, f"variants, entry {number}", common or {})
    refuse_twice(request.name for request in requests)
    given = [request.arguments["edit"] for request in requests if "edit" in request.arguments]
    rungs = [edit for control in dict.fromkeys(controls) for edit in LADDERS.get(control, ()) if edit not in given]
    ladder = [_of_edit({"edit": edit}, "controls") for edit in rungs]
    return _with_controls(
        [*requests, *ladder], [control for control in controls if control not in LADDERS], common or {}
    )


def _of_entry(entry: Any, where: str, common: Mapping[str, Any]) -> list[VariantRequest]:
    if isinstance(entry, str | Path):
        entry = {"sae": str(entry)}
    elif is_object(entry):
        entry = {"sae": entry}
    if not isinstance(entry, Mapping):
        raise UserError(f"{where}: {entry!r} is no mapping with sae, pattern or edit.")
    _check_keys(entry, ("sae", "pattern", "name", "together", "arguments", *FILTERS, *ARGUMENTS), where)
    kinds = [name for name in ("sae", "pattern", "edit") if name in entry]
    if len(kinds) > 1 or not (kinds or "peft" in entry):
        raise UserError(f"{where}: give either sae, pattern or edit, or peft by itself.")
    if "edit" in entry:
        return [_of_edit(entry, where)]
    if not kinds:
        return [_of_adapter(entry, where)]
    for name in ARGUMENTS:
        if isinstance(entry.get(name), list | Mapping) and not (name in SERIES and isinstance(entry[name], list)):
            joined = ", several joined by '+'" if name in ("hook", "hook_map") else ", and another entry for another"
            raise UserError(f"{where}: {name}: {entry[name]!r} is no single value: give one{joined}.")
    own = {name: entry[name] for name in ARGUMENTS if name in entry and name not in SERIES}
    series = {name: _series(entry, name, where) for name in SERIES if entry.get(name) is not None}
    texts = _from_pattern(entry, where) if "pattern" in entry else {None: _joined(entry, where)}
    requests = []
    for (label, sae), *given in product(texts.items(), *series.values()):
        varied = dict(zip(series, given, strict=True))
        arguments = {"sae": sae, **_normal({**common, **own, **varied})}
        labels = [label] if len(texts) > 1 else []
        labels += [f"{each}={value}" for each, value in varied.items() if len(series[each]) > 1]
        if entry.get("name") is None:
            label = label or re.sub("[<>]", "", object_texts({"sae": sae})["sae"])
            name_arguments = {**own, **({"peft": _adapter_name(own["peft"])} if "peft" in own else {})}
            chosen = free_name(folder_name({"sae": label, **_normal({**name_arguments, **varied})}))
        else:
            chosen = ",".join([str(entry["name"]), *map(str, labels)])
            chosen = folder_name({"sae": chosen}) if labels else chosen
        requests.append(VariantRequest(check_name(chosen, where), arguments))
    return requests


def _series(entry: Mapping[str, Any], name: str, where: str) -> list[Any]:
    """The values of an argument of which each makes a variant."""
    if not (values := entry[name] if isinstance(entry[name], list) else [entry[name]]):
        raise UserError(f"{where}: {name}: the list is empty: give a value, or several as in {SERIES[name]}.")
    return values


def _of_edit(entry: Mapping[str, Any], where: str) -> VariantRequest:
    """The variant of an entry with `edit`."""
    if further := [name for name in entry if name not in ("edit", "name", "arguments")]:
        raise UserError(f"{where}: {further[0]} is of dictionaries, and an edit has none: leave it out.")
    edit = entry["edit"]
    if not is_object(edit):
        edit = f"{edit}{_query(entry.get('arguments'), where)}"
    label = re.sub("[<>]", "", object_texts({"edit": edit})["edit"])
    chosen = free_name(folder_name({"edit": label})) if entry.get("name") is None else str(entry["name"])
    return VariantRequest(check_name(chosen, where), {"edit": edit})


def _of_adapter(entry: Mapping[str, Any], where: str) -> VariantRequest:
    """The variant of an entry with `peft` alone: the model with its adapter, and no dictionary."""
    if further := [name for name in entry if name not in ("peft", "name")]:
        raise UserError(f"{where}: {further[0]} is of dictionaries, and peft stands alone: give sae, or leave it out.")
    name = _adapter_name(entry["peft"])
    chosen = free_name(folder_name({"peft": name})) if entry.get("name") is None else str(entry["name"])
    return VariantRequest(check_name(chosen, where), {"peft": entry["peft"]})


def _adapter_name(given: Any) -> str:
    spec = AdapterSpec.parse(given)
    return Path(spec.place).name if is_folder(at_home(spec.place)) else str(spec)


def _query(given: Any, where: str) -> str:
    """`?name=value&name=value`, as a spec has it, of a mapping; empty where there is none."""
    if given is None:
        return ""
    if not isinstance(given, Mapping) or any(isinstance(value, list | Mapping) for value in given.values()):
        raise UserError(f"{where}: arguments: {given!r} is no mapping of names to single values, such as {{rank: 32}}.")
    return "?" + "&".join(f"{name}={value}" for name, value in given.items())


def _joined(entry: Mapping[str, Any], where: str) -> str | tuple[Any, ...]:
    """The dictionaries of an entry: text, or a tuple where objects are among them."""
    sae = entry["sae"]
    listed = sae if isinstance(sae, list | tuple) else [sae]
    if any(is_object(source) for source in listed):
        return tuple(listed)
    text, query = "+".join(_listed(sae, "sae")), _query(entry.get("arguments"), where)
    return str(SaeSpec.parse(f"{text}{query}")) if query else text


def _from_pattern(entry: Mapping[str, Any], where: str) -> dict[str | None, str]:
    """The dictionaries of a pattern, joined or one by one, by what to call them."""
    pattern = str(entry["pattern"])
    together = one_of(entry.get("together", "each"), TOGETHER, f"{where}, together:")
    filters = {name: entry[name] for name in FILTERS if entry.get(name) is not None}
    matched = lookup.find_dictionaries(pattern)
    dictionaries = lookup.selected(matched, filters)
    if not dictionaries:
        unknown = [name for name in filters if all(getattr(dictionary, name) is None for dictionary in matched)]
        why = f"; none of them says its {' or '.join(unknown)}" if unknown else ""
        raise UserError(
            f"{where}: none of the {len(matched)} dictionaries of '{pattern}' passes {_shown(filters)}{why}."
        )
    if together == "each":
        return {dictionary.spec: dictionary.spec for dictionary in dictionaries}
    sites: dict[str | None, str] = {}
    for dictionary in dictionaries:
        hook = dictionary.hook_out
        if hook is not None and hook in sites:
            raise UserError(
                f"{where}, together: {sites[hook]} and {dictionary.spec} both write at '{hook}', which takes "
                f"one: narrow the pattern, or filter by {', '.join(FILTERS)}."
            )
        sites[hook] = dictionary.spec
    label = ",".join([pattern, *(f"{name}={value}" for name, value in filters.items())])
    return {label: "+".join(dictionary.spec for dictionary in dictionaries)}


def _normal(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """lm_eval makes None of "none"; a text to average is for `splice=mean` alone, one to rank by for layers to find."""
    out = dict(arguments)
    if "splice" in out:
        out["splice"] = "none" if out["splice"] is None else str(out["splice"])
    if out.get("splice", "reconstruction") != "mean":
        out.pop("mean_text", None)
        out.pop("mean_tokens", None)
    if not str(out.get("splice_layers")).startswith(f"{BEST}:"):
        out.pop("layers_text", None)
    return out


def _with_controls(requests: Sequence[VariantRequest], controls: Sequence[str], common: Any) -> list[VariantRequest]:
    read: dict[str, DictionaryFacts] = {}
    place: dict[str, int] = {}
    out: list[VariantRequest] = []
    for request in requests:
        index = place.setdefault(variant_identity(request, read), len(out))
        if index == len(out) or request.arguments.get("splice") not in OF_SITES:
            out.append(request)
        else:
            logger.warning("%s computes the same as %s, and is left out.", request.name, out[index].name)
    for request in tuple(out):
        if "sae" not in request.arguments or str(request.arguments.get("splice", "reconstruction")) != "reconstruction":
            continue
        for control in controls:
            arguments = {**common, **request.arguments, "splice": control}
            if control in OF_SITES:
                arguments = {name: value for name, value in arguments.items() if name not in OF_DICTIONARIES}
            if control == "mean" and arguments.get("mean_text") is None:
                raise UserError("controls: 'mean' needs mean_text: FILE, the text whose activations are averaged.")
            control_request = VariantRequest(
                check_name(short_name(f"{request.name},{control}"), "controls"), _normal(arguments)
            )
            index = place.setdefault(variant_identity(control_request, read), len(out))
            if index == len(out):
                out.append(control_request)
            existing = out[index]
            out[index] = replace(existing, control_of=(*existing.control_of, request.name))
    refuse_twice(request.name for request in out)
    return out


def _check_keys(given: Mapping[Any, Any], keys: Sequence[str], where: str) -> None:
    for key in given:
        if key not in keys:
            raise UserError(f"{where} has no key '{key}'.{did_you_mean(str(key), keys)} It takes {', '.join(keys)}.")


def _listed(value: Any, key: str) -> list[str]:
    if value is None:
        return []
    listed = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(text, str) for text in listed):
        raise UserError(f"{key}: {value!r} is neither a text nor a list of them.")
    return [str(text) for text in listed]


def _shown(filters: Mapping[str, Any]) -> str:
    return " and ".join(f"{name} {value}" for name, value in filters.items()) or "its filters"
