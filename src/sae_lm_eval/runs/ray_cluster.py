"""Groups of variants x tasks over a Ray cluster: what its workers answered goes into the run's own journal."""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from sae_lm_eval.errors import UserError, error_sentence, first_line
from sae_lm_eval.files.logs import logger_of
from sae_lm_eval.runs.sweep import Sweep
from sae_lm_eval.runtime.host_memory import HostMemoryError, raise_if_out_of_memory
from sae_lm_eval.runtime.journal import Journal
from sae_lm_eval.runtime.progress import ConsoleProgress

logger = logger_of(__name__)

LOCAL = "local"
REACHED_WITHIN = 10  # seconds
RETRIES = 3  # of a part whose worker died
PARTS = "parts"  # what the journal calls the parts that are done


class Part(NamedTuple):
    """The requests of a task, for a group of variants that are run together; `missing` are those to be evaluated.

    `made_of` stands for what the model and the variants are made of.
    """

    group: tuple[str, ...]
    missing: tuple[str, ...]
    task: str
    bos: bool
    made_of: str = ""

    @property
    def key(self) -> bytes:
        return hashlib.sha256(repr((self.group, self.task, self.made_of)).encode()).digest()


def run_on_cluster(address: str, sweep: Sweep, parts: Sequence[Part], journal: Journal, shown: ConsoleProgress) -> None:
    """Have a cluster answer `parts` of a sweep, and keep each part's answers in `journal` as it comes in.

    A part whose worker dies is begun again elsewhere. Parts that `journal` has are not asked for.

    Raises `UserError` where there is no Ray or no cluster, a worker cannot do what is asked, or workers keep dying.
    """
    ray, left = _ray(), [part for part in parts if journal.get(PARTS, part.key) is None]
    if not left:
        return
    try:
        packed = pickle.dumps(sweep)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"An object of this run cannot be sent to workers ({first_line(error)}): name it python:FILE.py:FUNCTION."
        ) from error
    with _cluster(ray, address):
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        answers_of = ray.remote(answers).options(max_retries=RETRIES, num_gpus=gpus, name="sae_lm_eval")
        shown.at("the cluster answers")
        pending = {answers_of.remote(packed, part): part for part in left}
        while pending:
            (done,), _ = ray.wait(list(pending), num_returns=1)
            part = pending.pop(done)
            journal.put_all([*_taken(ray, done, part), (PARTS, part.key, b"")])
            shown.counted(len(left) - len(pending), len(left), "parts")


def answers(packed: bytes, part: Part) -> list[tuple[str, bytes, bytes]]:
    """What a worker answers of a part, as a journal keeps it."""
    return _worker(packed).answers(part)


@functools.lru_cache(maxsize=1)
def _worker(packed: bytes) -> _Worker:
    """Kept in the worker's process, so that the model is loaded once for all of its parts."""
    return _Worker(pickle.loads(packed))


class _Worker:
    def __init__(self, sweep: Sweep):
        os.environ["TQDM_DISABLE"] = "1"  # bars that nobody sees

        from sae_lm_eval.runs.model_pool import LoadedSweep
        from sae_lm_eval.runs.settings import lm_eval_config

        self.loaded = LoadedSweep(sweep, lm_eval_config(sweep))
        self.group: tuple[str, ...] | None = None
        self.models: dict[str, Any] = {}
        self.journal = Journal()

    def answers(self, part: Part) -> list[tuple[str, bytes, bytes]]:
        if part.group != self.group:
            self.group = None
            self.models.clear()
            self.loaded.forget()
            variants = {name: self.loaded.variant(name) for name in part.group}
            self.models = self.loaded.joined(variants, self.journal, part.bos)
            self.group = part.group
        for name, lm in self.models.items():
            if name in part.missing:
                task = self.loaded.tasks["tasks"][part.task]
                try:
                    self.loaded.evaluate(name, lm, tasks=[task], bootstrap_iters=0, check_integrity=False)
                except HostMemoryError:
                    raise
                except UserError as error:  # told of when the answers are looked at
                    logger.info("%s cannot be scored on %s: %s", name, part.task, error)
        return self.journal.drain()


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs Ray, which is not installed: pip install 'sae-lm-eval[ray]'.") from None
    return ray


@contextmanager
def _cluster(ray: Any, address: str) -> Iterator[None]:
    """Inside the scope, this process is connected to a cluster; to one that it was connected to before in any case."""
    if ray.is_initialized():
        yield
        return
    try:
        if (match := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address)) is not None:
            # Ray itself tries for minutes.
            socket.create_connection((match[1].strip("[]"), int(match[2])), timeout=REACHED_WITHIN).close()
        ray.init(address, **({"include_dashboard": False} if address == LOCAL else {}))
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"No Ray cluster answers at '{address}' ({first_line(error)}). Start one with `ray start --head`, or give "
            f"--ray {LOCAL}."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _taken(ray: Any, done: Any, part: Part) -> list[tuple[str, bytes, bytes]]:
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise_if_out_of_memory(error.cause)
        raise UserError(f"A worker could not answer {part.task}: {error_sentence(error.cause)}") from error
    except ray.exceptions.RayError as error:
        raise UserError(
            f"Workers died {1 + RETRIES} times at {part.task} with {', '.join(part.group)}: {first_line(error)} "
            f"The same command continues."
        ) from error
