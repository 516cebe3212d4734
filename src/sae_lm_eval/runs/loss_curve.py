"""Losses of several models, or of checkpoints, on one text: the measured curve behind effective compute."""

from __future__ import annotations

import gc
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout
from lm_eval.evaluator_utils import get_sample_size
from lm_eval.tasks import TaskManager
from torch import nn
from tqdm import tqdm

from sae_lm_eval.errors import UserError, did_you_mean
from sae_lm_eval.files.logs import without
from sae_lm_eval.harness.model import SaeHFLM
from sae_lm_eval.runs.members import DOCUMENT_TYPES, Member, check_curve_file
from sae_lm_eval.runs.settings import check_limit
from sae_lm_eval.runs.task_index import quick_index
from sae_lm_eval.runtime.placed_files import refuse_linked
from sae_lm_eval.scaling.data_files import Row
from sae_lm_eval.scaling.loss_curves import CATEGORIES, COLUMNS, read_measured, with_losses
from sae_lm_eval.splicing.choices import whole

WINDOWS_AT_ONCE = 64  # between two steps of the progress bar


@dataclass(frozen=True)
class Text:
    """What a task asks the loss of: `documents`, the first of the task's; `categories` of each where it has any."""

    task: str
    documents: tuple[str, ...]
    categories: tuple[str | None, ...] = ()

    @cached_property
    def hash(self) -> str:
        return _digest(document.encode() for document in self.documents)

    @property
    def bytes(self) -> int:
        return sum(len(document.encode()) for document in self.documents)


def task_documents(
    task: str,
    *,
    limit: float | None = None,
    metadata: dict[str, Any] | None = None,
    include_path: Path | None = None,
) -> Text:
    """The documents that lm_eval asks of a task with --limit. Raises `UserError` where it asks no whole documents."""
    if limit is not None:
        check_limit(limit)
    with quick_index():
        manager = TaskManager(include_path=include_path, metadata=metadata)
    if task not in manager.all_subtasks:
        raise UserError(f"lm_eval has no task '{task}'.{did_you_mean(task, manager.all_subtasks)}")
    with without("lm_eval.api.task", "Custom kwargs can be passed"):  # a hint for authors of tasks
        loaded: Any = manager.load([task])["tasks"][task]
    if loaded.OUTPUT_TYPE not in DOCUMENT_TYPES:
        raise UserError(
            f"The task '{task}' asks {loaded.OUTPUT_TYPE}; a curve needs the loss of whole documents, as wikitext does."
        )
    loaded.build_all_requests(limit=get_sample_size(loaded, limit), rank=0, world_size=1)
    arguments = [tuple[Any, ...](instance.args) for instance in loaded.instances]
    kinds = tuple(args[1] if len(args) > 1 else None for args in arguments)
    return Text(task, tuple(args[0] for args in arguments), kinds if any(kind is not None for kind in kinds) else ())


def measure_curve(
    members: Sequence[Member],
    text: Text,
    path: Path,
    *,
    context: int | None = None,
    per: str = "token",
    loading: Mapping[str, Any] | None = None,
) -> list[Row]:
    """A row for each member in the file `path`, which is written after each one; members that it has are not measured.

    `context` is the length of the windows in tokens: the file's, or else the first member's own. With per="token"
    losses are in nats per token, and all members must cut the text into the same tokens; with per="byte" they are
    measured per byte and told per token of the first row's. `loading` are the adapter's arguments for every member.

    Raises `UserError` where training tokens are not known, the file holds another text, or a model cannot be compared.
    """
    if context is not None:
        whole(context, "--max_length", least=1)
    for member in members:
        _ = member.source, member.training  # before anything is loaded
    with _held(path):
        rows = read_measured(path) if path.exists() else []
        _refuse_another(rows, text, context, path)
        for number, member in enumerate(members, 1):
            if any((str(row["model"]), str(row["revision"])) == (member.model, member.revision) for row in rows):
                continue
            context = int(rows[0]["context"]) if rows else context
            row = _row(member, text, context, dict(loading or {}), f"{number}/{len(members)} {member}", rows, per)
            rows = with_losses([*rows, row], (rows or [row])[0], per=per)
            _write(rows, path)
    return rows


def _row(
    member: Member, text: Text, context: int | None, loading: dict[str, Any], title: str, rows: list[Row], per: str
) -> Row:
    lm = _load(member, context, loading)
    try:
        tokens = [lm.spliced.tokens.text_ids(document) for document in text.documents]
        tokens_hash = _digest(b"%d " % id_ for id_ in chain.from_iterable(tokens))
        count = sum(map(len, tokens))
        _refuse_other_tokens(member, tokens_hash, count, rows, per)
        parts = _by_category(lm, text, tokens, title)
        nats = sum(part["nats"] for part in parts.values())
        trained, source = member.training
        whole, inner = parameters(lm.loaded.wrapped)
        return {
            "model": member.model,
            "revision": member.revision,
            "params": whole,
            "params_non_embedding": inner,
            "commit": lm.get_model_info()["model_sha"] or None,
            "tokens": trained,
            "tokens_source": source,
            "dtype": str(lm.model.dtype).removeprefix("torch."),
            "context": lm.max_length,
            "text_nats": nats,
            "text_tokens": count,
            "text_bytes": text.bytes,
            "nats_per_byte": nats / text.bytes,
            **({CATEGORIES: json.dumps(parts)} if text.categories else {}),
            "task": text.task,
            "documents": len(text.documents),
            "text_hash": text.hash,
            "tokens_hash": tokens_hash,
            "text": f"{text.task}, {len(text.documents)} documents, windows of {lm.max_length} tokens",
            "source": f"measured by sae_lm_eval {version('sae_lm_eval')} with lm_eval {version('lm_eval')}",
        }
    finally:
        del lm
        gc.collect()
        torch.cuda.empty_cache()


def parameters(model: nn.Module) -> tuple[int, int]:
    """All parameters, and those in neither embeddings (of tokens or positions) nor the output head."""
    sizes = {id(weight): weight.numel() for weight in model.parameters()}
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    outer = [
        *(module for module in model.modules() if isinstance(module, nn.Embedding)),
        *([] if head is None else [head]),
    ]
    embedding = {id(weight) for module in outer for weight in module.parameters()}
    return sum(sizes.values()), sum(size for key, size in sizes.items() if key not in embedding)


def _load(member: Member, context: int | None, loading: dict[str, Any]) -> SaeHFLM:
    windows = {} if context is None else {"max_length": context}
    lm = SaeHFLM(sae=[], splice="none", **member.source, **{**loading, **windows})
    if context is not None and context > lm.own_max_length:
        raise UserError(
            f"{member} reads {lm.own_max_length} tokens at most, and the windows are of {context}: leave it out."
        )
    return lm


def _by_category(lm: SaeHFLM, text: Text, tokens: list[list[int]], title: str) -> dict[str, dict[str, float]]:
    """Nats, tokens and bytes of each category's documents; of all under the name "" where there are no categories."""
    kinds = [str(kind) for kind in text.categories] or [""] * len(text.documents)
    sums = {}
    for kind in sorted(set(kinds)):
        own = [at for at, each in enumerate(kinds) if each == kind]
        sums[kind] = {
            "nats": _nats(lm, [tokens[at] for at in own], f"{title} {kind}".strip()),
            "tokens": sum(len(tokens[at]) for at in own),
            "bytes": sum(len(text.documents[at].encode()) for at in own),
        }
    return sums


def _nats(lm: SaeHFLM, tokens: Iterable[list[int]], title: str) -> float:
    """-log p of all documents, in the windows of lm_eval's loglikelihood_rolling, without the prefix token's own."""
    cut = lm.spliced.tokens.disjoint_windows
    windows = [(None, *window) for ids in tokens for window in cut(ids, lm.max_length)]
    total = 0.0
    with tqdm(total=len(windows), desc=title, unit="window") as bar:
        for start in range(0, len(windows), WINDOWS_AT_ONCE):
            some = windows[start : start + WINDOWS_AT_ONCE]
            total -= sum(logprob for logprob, _ in lm._loglikelihood_tokens(some, disable_tqdm=True))
            bar.update(len(some))
    return total


def _refuse_another(rows: list[Row], text: Text, context: int | None, path: Path) -> None:
    if not rows:
        return
    held = rows[0]
    if held["text_hash"] != text.hash:
        raise UserError(
            f"'{path}' holds losses on another text ({held['text']}), not on {len(text.documents)} documents of "
            f"{text.task} as they are now. Give another --output_path, or delete it."
        )
    if context is not None and held["context"] != context:
        raise UserError(
            f"'{path}' holds losses in windows of {held['context']} tokens, not {context}. Give another --output_path."
        )


def _refuse_other_tokens(member: Member, tokens_hash: str, count: int, rows: list[Row], per: str) -> None:
    if per == "byte" or not rows or rows[0]["tokens_hash"] == tokens_hash:
        return
    raise UserError(
        f"{member} cuts the text into other tokens ({count:,}) than {rows[0]['model']} ({rows[0]['text_tokens']:,}): "
        f"losses per token cannot be compared. Leave it out, or compare per byte with --per byte."
    )


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"%d:" % len(part) + part)
    return digest.hexdigest()[:16]


def _write(rows: list[Row], path: Path) -> None:
    """All of them or none: a reader, or a run after a kill, never sees half a file."""
    unfinished = _unfinished(path)
    held = [*COLUMNS, *([CATEGORIES] if any(row.get(CATEGORIES) for row in rows) else [])]
    pd.DataFrame(rows, columns=held).to_csv(unfinished, index=False)
    os.replace(unfinished, path)


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


@contextmanager
def _held(path: Path) -> Iterator[None]:
    check_curve_file(path)
    lock = path.with_name(f".{path.name}.lock")
    for beside in (lock, _unfinished(path)):
        refuse_linked(beside, "Remove it, or give another --output_path.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=0):
            yield
    except Timeout:
        raise UserError(f"Another process is at work on '{path}'. Wait, or give another --output_path.") from None
    except FileExistsError:
        raise UserError(f"'{path.parent}' is a file, not a folder. Give another --output_path.") from None
