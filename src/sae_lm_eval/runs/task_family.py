"""The answers of several models, or of checkpoints, to the tasks of a run: the family behind its equivalent compute."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from sae_lm_eval.capability.family import NAME
from sae_lm_eval.errors import UserError
from sae_lm_eval.files.reading import shown
from sae_lm_eval.results.find import find_results
from sae_lm_eval.results.results import Results, read_results
from sae_lm_eval.runs.members import Member, read_asked
from sae_lm_eval.runs.run import evaluate
from sae_lm_eval.runs.settings import FREE, lm_eval_config
from sae_lm_eval.runs.sweep import Sweep
from sae_lm_eval.runs.sweep_keys import lm_eval_settings
from sae_lm_eval.runtime.placed_files import place_files, refuse_linked
from sae_lm_eval.scaling.loss_curves import MAIN

NOT_ASKED = ("use_cache",)  # a setting in a run's record that is not asked of a member


def measure_tasks(members: Sequence[Member], like: Path, loading: Mapping[str, Any] | None = None) -> Path:
    """Ask each member what the run in `like` was asked, and write the family's file beside its results.

    The tasks, documents, shots and seeds are the run's; its baseline is the run's own model's row. A member that has
    been asked is not asked again, and one that was cut short is continued. Members' folders lie beside `like`.

    Raises `UserError` where `like` is no folder of `run`, and where parameters or training tokens are not known.
    """
    record = read_asked(like)
    baseline, _ = find_results(like)
    own = Member(record["model_args"]["pretrained"], record["model_args"].get("revision") or MAIN)
    everyone = list(dict.fromkeys([own, *members]))
    if len(everyone) < 2:
        raise UserError(f"{own} is the run's own model: name others of its family, or checkpoints of it, in --models.")
    for member in everyone:
        _ = member.source, member.training  # before anything is loaded
    names = [name for name in lm_eval_settings() if name not in (*FREE, *NOT_ASKED, "metadata")]
    settings = {name: record[name] for name in names if record.get(name) not in (None, {}, [])}
    if metadata := _metadata(record):
        settings["metadata"] = metadata
    rest = {
        name: value for name, value in record["model_args"].items() if name not in ("pretrained", "revision", "sae")
    }
    bos = str(baseline.provenance.get("bos", "")).startswith("one BOS token is added")
    rest |= {"add_bos_token": True} if bos else {}
    rows = []
    for member in everyone:
        if str(member) == str(own):
            results, folder = baseline, baseline.folder
        else:
            folder = like.parent / f"{like.name}_family" / re.sub(r"[^\w.@-]+", "_", str(member))
            for target in (folder, folder.parent):
                refuse_linked(target, "Remove it.")
            args = {**rest, **member.source, **(loading or {})}
            sweep = Sweep(model_args=args, variants=(), settings=settings)
            evaluate(sweep, lm_eval_config(sweep), folder)
            results = replace(read_results(folder / "baseline"), name=str(member))
        rows.append(_row(member, results, folder, like))
        table = pd.DataFrame(rows).to_csv(index=False).encode()
        place_files(
            {NAME: table}, like, what="The family's file", otherwise="Make room, or give the run another folder."
        )
    return like / NAME


def _metadata(record: Mapping[str, Any]) -> dict[str, Any]:
    """What `--metadata` gave: lm_eval writes the arguments of the run's own model beside it."""
    written, own = record.get("metadata"), record["model_args"]
    if not isinstance(written, dict):
        return {}
    return {name: value for name, value in written.items() if name not in own}


def _row(member: Member, results: Results, folder: Path, like: Path) -> dict[str, Any]:
    tokens, source = member.training
    params = results.config.get("model_num_parameters")
    if not params:
        raise UserError(f"The results of {member} in '{shown(folder, 200)}' do not say how many parameters it has.")
    path = Path(os.path.relpath(results.file.parent.resolve(), like.resolve()))
    return {
        "model": member.model,
        "revision": member.revision,
        "params": params,
        "tokens": tokens,
        "tokens_source": source,
        "results": path.as_posix(),
    }
