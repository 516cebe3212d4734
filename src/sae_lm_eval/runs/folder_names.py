"""The names of a run's folders: one for each variant, legible, and possible on every system."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sae_lm_eval.errors import UserError

BASELINE = "baseline"
AGAIN = "baseline_again"  # the baseline once more, in another layout: a control of the whole run
# What else a run writes in its folder, which no record of one names a variant; and what other commands write there.
OF_RUN = frozenset({BASELINE, AGAIN, "report", "run.json", "run.log"})
TAKEN = OF_RUN | {"where", "over_seeds.csv", "talk.html", "task_family.csv"}
LONGEST = 200  # bytes of a folder's name, of which file systems bear 255


def folder_name(arguments: Mapping[str, Any]) -> str:
    """A name for a variant that is legible, and a folder's on every system."""
    first = next(name for name in ("sae", "edit", "peft") if name in arguments)
    parts = [
        f"peft={arguments[first]}" if first == "peft" else str(arguments[first]),
        *(f"{key}={value}" for key, value in arguments.items() if key != first),
    ]
    return short_name(re.sub(r"[^\w.+=,-]+", "_", ",".join(parts)).strip("._"))


def free_name(name: str) -> str:
    """A name that is made of a spec's, beside the folders of a run: `sae=report` for a folder called `report`."""
    plain = re.fullmatch(r"[\w+=-].*", name) is not None and name.casefold() not in TAKEN
    return name if plain else short_name(f"sae={name}")


def short_name(name: str) -> str:
    """`name`, or the beginning of one that is too long and a digest of all of it."""
    if len(name.encode()) <= LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name.encode()[: LONGEST - 9].decode(errors='ignore')}~{digest}"


def check_name(name: str, where: str, taken: Collection[str] = TAKEN) -> str:
    """`name`, if it serves as a folder's beside those `taken`. Raises `UserError` otherwise."""
    if not re.fullmatch(r"[\w+=-][\w.+=,~-]*", name) or name.endswith(".") or len(name.encode()) > LONGEST:
        raise UserError(
            f"{where}: '{name}' is no name for a folder: up to {LONGEST} letters, digits and the signs . _ + - = ,"
        )
    if name.casefold() in taken:
        raise UserError(f"{where}: '{name}' is the name of something else in the folder of a run: choose another.")
    return name


def refuse_twice(names: Iterable[str]) -> None:
    """Raise `UserError` where two folders would have one name."""
    seen: dict[str, str] = {}
    for name in names:
        # Some file systems do not tell upper case from lower, nor a letter from the parts that it is composed of.
        folded = unicodedata.normalize("NFC", name).casefold()
        if folded in seen:
            other = seen[folded]
            same = "" if other == name else f" and '{name}', which some disks take for the same"
            raise UserError(f"variants: two are called '{other}'{same}: give one another name.")
        seen[folded] = name
