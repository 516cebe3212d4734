"""What the results in a run's folder were made of: never to be continued with something else unawares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_lm_eval.errors import UserError
from sae_lm_eval.files.logs import logger_of
from sae_lm_eval.runtime.run_files import IDENTITY, read_identity
from sae_lm_eval.runtime.run_folder import write_json
from sae_lm_eval.scoring.identity import series

logger = logger_of(__name__)

MODEL = {
    "weights": "the weights of the model",
    "computed": "the computed buffers of the model",
    "settings": "the configuration or the code of the model",
    "tokenizer": "the tokenizer",
}


def model_record(model: Any) -> dict[str, Any]:
    """What is written down of a loaded model: content by name, and the versions of packages."""
    parts = model.parts()
    return {"model": {**parts["model"], "tokenizer": parts["tokenizer"]}, "packages": model.versions()}


def variant_record(wanted: Any, adapter: Any = None) -> dict[str, str]:
    """What is written down of a variant: the content of what it is made of, by what errors call it."""
    from sae_lm_eval.scoring.identity import text_content
    from sae_lm_eval.splicing.model_edits import code_checksum

    checksums = {}
    for dictionary in wanted.dictionaries:
        content = dictionary.content()
        checksums[f"the weights of {dictionary.name}"] = content.weights
        checksums[f"the configuration of {dictionary.name}"] = f"{content.computed} {content.settings}"
    if wanted.edit is not None and (checksum := code_checksum(wanted.edit)) is not None:
        checksums[f"the file of {wanted.edit}"] = checksum
    if adapter is not None:
        checksums[f"the weights of the adapter {wanted.adapter}"] = adapter.record["weights_checksum"]
        checksums[f"the configuration of the adapter {wanted.adapter}"] = adapter.record["settings_checksum"]
    for file in wanted.texts:
        checksums[f"the text {file}"] = str(text_content(file))
    return checksums


def digest_of(folder: Path, variants: Sequence[str]) -> str:
    """A hash of what the record of a folder says of the model and of these variants."""
    record = read_identity(folder)
    assert record is not None
    what = [record.model, {name: record.variants.get(name) for name in variants}]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


class IdentityRecord:
    """The record of a folder, in which the models of the names `finished` have their results.

    `begun` is whether the folder held anything of a run before; such a folder without a record is continued, with a
    warning.
    """

    def __init__(self, folder: Path, finished: Collection[str], *, begun: bool):
        self.folder, self.finished = folder, finished
        kept = read_identity(folder)
        self.kept: dict[str, Any] = {} if kept is None else kept.as_given()
        if begun and not self.kept:
            logger.warning(
                "'%s' has no record of what its results were made of, as runs of earlier versions left it: it is "
                "continued, and whether the model or a dictionary has changed since cannot be told.",
                folder,
            )

    def compare(self, model: Mapping[str, Any], variants: Mapping[str, Mapping[str, str]]) -> None:
        """Write down what there is now, of the model and of each variant that could be looked at.

        Raises `UserError` where results in the folder were made of something else.
        """
        self._compare_model(model)
        self._compare_packages(model["packages"])
        kept = self.kept.get("variants", {})
        for name, now in variants.items():
            if changed := [
                what for what in {**kept.get(name, {}), **now} if kept.get(name, now).get(what) != now.get(what)
            ]:
                self._tell_of_variant(name, changed)
        packages = {**model["packages"], **self.kept.get("packages", {})}
        record = {"model": model["model"], "packages": packages, "variants": {**kept, **variants}}
        write_json(self.folder / IDENTITY, record)

    def _compare_model(self, model: Mapping[str, Any]) -> None:
        kept = self.kept.get("model", model["model"])
        changed = [words for what, words in MODEL.items() if kept.get(what) != model["model"].get(what)]
        if not changed:
            return
        if self.finished:
            raise UserError(
                f"'{self.folder}' has results of {_listed(sorted(self.finished))}, and {_listed(changed)} "
                f"{'has' if len(changed) == 1 else 'have'} changed since: old and new would be compared. Give another "
                f"--output_path, or delete it."
            )
        logger.warning("%s changed since this run began: what had been answered is not used.", _listed(changed))

    def _compare_packages(self, now: Mapping[str, str]) -> None:
        kept = self.kept.get("packages", {})
        changed = {name: (old, now[name]) for name, old in kept.items() if name in now and now[name] != old}
        versions = _listed([f"{name} was {old} and is {new}" for name, (old, new) in changed.items()])
        if any(series(old) != series(new) for old, new in changed.values()) and self.finished:
            raise UserError(
                f"'{self.folder}' has results of {_listed(sorted(self.finished))} that were made with other packages: "
                f"{versions}. Give another --output_path, or install these versions."
            )
        if changed:
            logger.warning("This run began with other packages: %s.", versions)

    def _tell_of_variant(self, name: str, changed: list[str]) -> None:
        has = "has" if len(changed) == 1 else "have"
        if name in self.finished:
            raise UserError(
                f"'{self.folder}' has results of '{name}', and {_listed(changed)} {has} changed since. Give another "
                f"--output_path, or delete the folder '{self.folder / name}', and '{name}' is evaluated anew."
            )
        logger.warning("%s %s changed since '%s' was begun: it is begun anew.", _listed(changed), has, name)


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
