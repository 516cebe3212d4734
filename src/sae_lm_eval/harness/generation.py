"""Generating texts: in batches that a journal keeps, drawn from nothing that went before."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from lm_eval.api.instance import Instance

from sae_lm_eval.runtime.journal import Journal
from sae_lm_eval.runtime.progress import Progress


def in_batches(
    requests: Sequence[Instance],
    lengths: Sequence[int],
    size: int,
    generate: Callable[[list[Instance]], list[str]],
    journal: Journal,
    model: str,
    device: str,
    progress: Progress,
) -> list[str]:
    """A text for each request, by `generate` or from `journal`, where `model` keeps what it has written.

    A batch is of one task and of equal settings, `size` requests of about equal `lengths` in tokens; it does not depend
    on which of them are known. `device` is the kind that draws.
    """
    kinds = [json.dumps([request.task_name, *request.args[1:]], sort_keys=True, default=str) for request in requests]
    prompts = [str(request.args[0]) for request in requests]
    order = sorted(range(len(requests)), key=lambda i: (kinds[i], -lengths[i], prompts[i]))
    out = [""] * len(requests)
    progress.begin(lengths, [request.task_name for request in requests])
    for kind, group in itertools.groupby(order, key=kinds.__getitem__):
        same = list(group)
        for number in range(0, len(same), size):
            batch = same[number : number + size]
            # Texts may be drawn at random, so the same question asked twice is two questions.
            asked = json.dumps([number, kind, [prompts[i] for i in batch]]).encode()
            key = hashlib.blake2b(asked, digest_size=16).digest()
            if (found := journal.get(model, key)) is not None:
                texts = json.loads(found)
                for i in batch:
                    progress.recalled(i)
            else:
                with drawing(key, device):
                    texts = generate([requests[i] for i in batch])
                journal.put(model, {key: json.dumps(texts).encode()})
            for i, text in zip(batch, texts, strict=True):
                out[i] = text
                progress.answered(i)
    return out


@contextmanager
def drawing(key: bytes, device: str) -> Iterator[None]:
    """Inside the scope, what torch draws depends on its seed and on `key`, and on nothing that was drawn before."""
    seed = hashlib.blake2b(key + torch.initial_seed().to_bytes(8), digest_size=8).digest()
    with torch.random.fork_rng([torch.cuda.current_device()] if device == "cuda" else []):
        torch.manual_seed(int.from_bytes(seed))
        yield
