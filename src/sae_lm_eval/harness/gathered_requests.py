"""Requests that come at about the same time from several threads or tasks are answered together, on one thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")
QUIET = 0.1  # seconds without a further request after which those that have come are answered


class GatheredRequests(Generic[Request, Answer]):
    """Answers requests by `answer`, as many at once as have come before `quiet` seconds pass without another.

    Args:
        answer: an answer for each request, in order, or the exception that a request ends with.
        quiet: in seconds.
    """

    def __init__(
        self, answer: Callable[[Sequence[Request]], Sequence[Answer | BaseException]], quiet: float = QUIET
    ) -> None:
        self._answer, self._quiet = answer, quiet
        self._lock = threading.Lock()
        self._running: tuple[threading.Thread, SimpleQueue[tuple[Request, Future[Answer]] | None]] | None = None

    def ask(self, request: Request) -> Future[Answer]:
        """The answer to come; a request that is cancelled before its turn is not answered."""
        future: Future[Answer] = Future()
        with self._lock:
            if self._running is None:
                queue = SimpleQueue()
                thread = threading.Thread(target=self._run, args=(queue,), name="sae_hf", daemon=True)
                self._running = thread, queue
                thread.start()
            self._running[1].put((request, future))
        return future

    def close(self) -> None:
        """Answer what was asked, and nothing more; the next request starts anew."""
        with self._lock:
            running, self._running = self._running, None
            if running is not None:
                running[1].put(None)
        if running is not None:
            running[0].join()

    def _run(self, queue: SimpleQueue[tuple[Request, Future[Answer]] | None]) -> None:
        is_open = True
        while is_open:
            gathered = [queue.get()]
            while gathered[-1] is not None:
                try:
                    gathered.append(queue.get(timeout=self._quiet))
                except Empty:
                    break
            is_open = gathered[-1] is not None
            batch = [pair for pair in gathered if pair is not None and pair[1].set_running_or_notify_cancel()]
            if batch:
                self._give(batch)

    def _give(self, batch: Sequence[tuple[Request, Future[Answer]]]) -> None:
        try:
            answers: Sequence[Answer | BaseException] = self._answer([request for request, _ in batch])
        except BaseException as error:  # the thread lives on, and who asked is told
            answers = [error] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if isinstance(answer, BaseException):
                future.set_exception(answer)
            else:
                future.set_result(answer)
