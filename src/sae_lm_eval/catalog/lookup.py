"""What a spec alone says of a dictionary: by SAELens' registry, the embedded world or a folder; no weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from sae_lm_eval import world
from sae_lm_eval.catalog import saelens_registry
from sae_lm_eval.dictionaries.config_file import read_configuration, with_metadata
from sae_lm_eval.dictionaries.saelens_reads import shapes_in
from sae_lm_eval.dictionaries.spec import SaeSpec
from sae_lm_eval.errors import UserError

UNITS = {"": 1, "k": 1_000, "m": 1_000_000}
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": lambda value, bound: value <= bound,
    ">=": lambda value, bound: value >= bound,
    "<": lambda value, bound: value < bound,
    ">": lambda value, bound: value > bound,
}


@dataclass(frozen=True)
class DictionaryFacts:
    """A dictionary before it is loaded; None in a field means that nothing here says it.

    `shapes` are those of its weights, by name, where they are at hand.
    """

    spec: str
    hook_in: str | None = None
    hook_out: str | None = None
    module_in: str | None = None
    module_out: str | None = None
    width: int | None = None
    l0: float | None = None
    shapes: Mapping[str, tuple[int, ...]] | None = field(default=None, hash=False)

    @property
    def layer(self) -> int | None:
        """That of the site it writes at."""
        match = re.match(r"blocks\.(\d+)\.", self.hook_out or "")
        return int(match[1]) if match else None


def facts_of(spec: str) -> DictionaryFacts:
    """What is known of the dictionary that `spec` names; raises `UserError` where the spec is none."""
    parsed = SaeSpec.parse(spec)
    if parsed.loader != "saelens":
        return DictionaryFacts(spec)
    if (local := parsed.folder) is not None:
        return _of_folder(spec, local / (parsed.id or ""))
    if parsed.source == world.NAME:
        from sae_lm_eval.dictionaries.world_loader import world_dictionary

        return _of_world(spec, world_dictionary(parsed), parsed.id)
    entry = saelens_registry.named(parsed.source, parsed.id)
    return DictionaryFacts(spec) if entry is None else _of_entry(entry)


def find_dictionaries(pattern: str) -> list[DictionaryFacts]:
    """The dictionaries of the embedded world or of SAELens' registry whose `release#id` matches the glob `pattern`.

    Raises `UserError` where nothing matches.
    """
    if not pattern.lower().startswith(f"{world.NAME}#"):
        return [_of_entry(entry) for entry in saelens_registry.find_entries(pattern)]
    specs = [f"{world.NAME}#{id_}" for id_ in world.dictionary_ids()]
    matches = [spec for spec in specs if fnmatchcase(spec.lower(), pattern.lower())]
    if not matches:
        raise UserError(f"No dictionary of the embedded world matches '{pattern}'. It has {', '.join(specs)}.")
    return [facts_of(spec) for spec in matches]


def selected(candidates: Sequence[DictionaryFacts], filters: Mapping[str, Any]) -> list[DictionaryFacts]:
    """Those of `candidates` that pass every filter by `width`, `l0` or `layer`; what is not known passes none.

    A filter is a number, a list of numbers, or a text of comparisons: "<100", ">=20 <100"; a list of two is for L0
    the least and the most. A width of 16k or 1m is the power of two that the names of releases mean by it.

    Raises `UserError` for a filter that is none of these.
    """
    tests = {name: _test(name, wanted) for name, wanted in filters.items()}
    return [
        facts
        for facts in candidates
        if all((value := getattr(facts, name)) is not None and test(value) for name, test in tests.items())
    ]


def _test(name: str, wanted: Any) -> Callable[[float], bool]:
    if isinstance(wanted, list) and name == "l0":
        if len(wanted) != 2:
            raise UserError(f"l0: {wanted!r} is no filter: a list has the least and the most, as in [20, 150].")
        return _test(name, f">={wanted[0]} <={wanted[1]}")
    if isinstance(wanted, list):
        tests = [_test(name, entry) for entry in wanted]
        return lambda value: any(test(value) for test in tests)
    parts = re.findall(r"(<=|>=|<|>)\s*([\d.]+)([km]?)", str(wanted).lower())
    if parts and re.fullmatch(r"(\s*(<=|>=|<|>)\s*[\d.]+[km]?)+\s*", str(wanted).lower()):
        bounds = [(COMPARISONS[sign], _number(name, number, unit)) for sign, number, unit in parts]
        return lambda value: all(compare(value, bound) for compare, bound in bounds)
    single = re.fullmatch(r"([\d.]+)([km]?)", str(wanted).lower())
    if single is None or isinstance(wanted, bool):
        raise UserError(f"{name}: {wanted!r} is no filter: give a number, a list of them, or '<100' or '>=20 <100'.")
    number = _number(name, *single.groups())
    return lambda value: value == number


def _number(name: str, digits: str, unit: str) -> float:
    try:
        value = float(digits) * UNITS[unit]
    except ValueError:
        raise UserError(f"{name}: '{digits}{unit}' is no number.") from None
    # Widths are powers of two, and 16k is the name of 16,384.
    return 2.0 ** round(math.log2(value)) if unit and name == "width" and value > 0 else value


def _of_entry(entry: saelens_registry.Entry) -> DictionaryFacts:
    return DictionaryFacts(
        entry.spec, entry.hook_in, entry.hook_out, entry.module_in, entry.module_out, entry.d_dictionary, entry.l0
    )


def _of_world(spec: str, folder: Path, id_: str | None) -> DictionaryFacts:
    entry = next(record for record in world.world_facts()["dictionaries"] if record["id"] == id_)
    hook = entry["hook_name"]
    return DictionaryFacts(
        spec, hook, entry["hook_name_out"] or hook, None, None, entry["d_sae"], entry["l0"], shapes=_shapes(folder)
    )


def _of_folder(spec: str, folder: Path) -> DictionaryFacts:
    """A folder in SAELens' format; whatever else it is, loading it will tell."""
    try:
        said = with_metadata(read_configuration(folder / "cfg.json"))
    except UserError:
        return DictionaryFacts(spec)
    hook = said.get("hook_name") or said.get("hook_point")  # which SAELens wrote until 2024
    return DictionaryFacts(
        spec, hook, said.get("hook_name_out") or hook, width=said.get("d_sae"), shapes=_shapes(folder)
    )


def _shapes(folder: Path) -> dict[str, tuple[int, ...]] | None:
    from safetensors import SafetensorError

    try:
        return {name: tuple(shape) for name, shape in shapes_in(folder / "sae_weights.safetensors").items()}
    except (OSError, SafetensorError):
        return None
