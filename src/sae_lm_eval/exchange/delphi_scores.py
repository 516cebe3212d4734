"""delphi's scores of explanations -> one score a dictionary.

A run of `delphi` 0.1 is a folder with `run_config.json` and `scores/SCORER/MODULE_latentN.txt`, each a JSON list of
examples: whether the latent is active there, and whether the scorer's model thought so from the explanation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, StrictBool

from sae_lm_eval.exchange.dictionary_names import DictionaryName
from sae_lm_eval.exchange.scores import DictionaryScore, ScoreKind
from sae_lm_eval.files.reading import Foreign, checked, json_value, read_json, read_text, shown

CONFIG, SCORES = "run_config.json", "scores"
SCORERS = ("detection", "fuzz")  # which predict whether an example activates; others have no such examples
METRIC = "balanced_accuracy"
LATENT = re.compile(r"(.+)_latent(\d{1,12})")


class DelphiConfig(Foreign):
    """The settings of a run, as far as they name the dictionaries."""

    sparse_model: str


def _prediction(given: Any) -> Any:
    """What delphi wrote of its judge's answer, which it does not check: whatever number that gave; NaN is no answer."""
    if given is not None and not isinstance(given, bool | int | float):
        raise ValueError("it must be true, false or a number")
    return None if given is None or math.isnan(given) else given >= 0.5


class DelphiExample(Foreign):
    """An example: `prediction` is None where the scorer's answer could not be read, and true from 0.5 on."""

    activating: StrictBool
    prediction: Annotated[bool | None, BeforeValidator(_prediction)] = None


@dataclass
class Confusion:
    """How many examples activate or do not, and how many of them were told rightly."""

    activating: int = 0
    recognised: int = 0
    silent: int = 0
    dismissed: int = 0

    def add(self, example: DelphiExample) -> None:
        """Count an example, unless nothing was predicted of it."""
        if example.prediction is None:
            return
        if example.activating:
            self.activating, self.recognised = self.activating + 1, self.recognised + example.prediction
        else:
            self.silent, self.dismissed = self.silent + 1, self.dismissed + (not example.prediction)

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean of the shares told rightly; None without examples of both kinds."""
        if not self.activating or not self.silent:
            return None
        return (self.recognised / self.activating + self.dismissed / self.silent) / 2


def is_delphi(folder: Path) -> bool:
    """Whether a folder is a run of delphi's."""
    return (folder / CONFIG).is_file() and (folder / SCORES).is_dir()


def delphi_scores(folder: Path) -> Iterator[DictionaryScore]:
    """The class-balanced accuracy of each scorer and module, over the examples of all its latents, as delphi logs it.

    Raises `UserError` for a file that is not as delphi writes it.
    """
    release = read_json(folder / CONFIG, DelphiConfig, "the settings of a run of delphi's").sparse_model
    for scorer in SCORERS:
        modules: dict[str, Confusion] = {}
        for path in sorted((folder / SCORES / scorer).glob("*.txt")):
            if named := LATENT.fullmatch(path.stem):
                counts = modules.setdefault(named[1].replace("--", "/"), Confusion())
                for example in _examples(path):
                    counts.add(example)
        for module, counts in modules.items():
            if (value := counts.balanced_accuracy) is not None:
                kind = ScoreKind(METRIC, f"delphi {scorer}")
                where = str(folder / SCORES / scorer)
                yield DictionaryScore(kind, DictionaryName.of_parts(release, module), value, where)


def _examples(path: Path) -> list[DelphiExample]:
    where = f"'{shown(path, 200)}'"
    given: Any = json_value(read_text(path), where)
    return checked(list[DelphiExample], given, where, "a list of delphi's examples")
