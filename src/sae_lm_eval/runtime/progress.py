"""How far a run is: a bar on a terminal, a line now and then elsewhere, and what libraries say in a file."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sae_lm_eval.files.escaping import printable
from sae_lm_eval.runtime.time_left import DOCUMENTS, REQUESTS, TEXTS, TimeLeft

if TYPE_CHECKING:
    from types import FrameType

    from rich.console import Console

OURS = "lm_eval.sae_lm_eval"
EVERY = 60.0  # seconds between lines where there is no terminal


class Progress:
    """Counts the requests of a forward pass after the other, and what they took; this one shows nothing.

    `tokens` and `seconds` are of requests that were run and not of texts, `requests` of all and of what the journal
    had.
    """

    def __init__(self) -> None:
        self.requests = self.recalled_requests = self.tokens = 0
        self.seconds = 0.0
        self.kind = REQUESTS  # of the pass under way
        self.written = 0  # tokens of the texts of the pass under way
        self.time_left = TimeLeft()
        self.total = self.done = 0  # requests of the pass under way
        self.requested_tokens = 0  # tokens of all passes so far, whether they were run or not
        self._since = self._began = time.monotonic()
        self._lengths: Sequence[int] = ()
        self._tokens = 0  # of the pass under way
        self._tasks: Sequence[str | None] = ()
        self._left: Counter[str | None] = Counter()
        self._known: set[int] = set()

    def begin(self, lengths: Sequence[int], tasks: Sequence[str | None], kind: str = REQUESTS) -> None:
        """A pass over requests of so many tokens each begins; `tasks` names the task of each, or is empty.

        `kind` is one of `time_left`'s.
        """
        self._lengths, self._tasks = lengths, tasks if len(tasks) == len(lengths) else ()
        self._left, self._known = Counter(self._tasks), set()
        self.kind, self.written = kind, 0
        self.total, self.done = len(lengths), 0
        self._tokens = sum(lengths)
        self.requested_tokens += self._tokens if kind == REQUESTS else 0
        self._since = self._began = time.monotonic()
        self.time_left.begin(kind)

    def recalled(self, number: int) -> None:
        """The journal has the answer to that request; to be told before `answered`."""
        self._known.add(number)

    def answered(self, number: int) -> None:
        self.done += 1
        self.requests += 1
        if self._tasks:
            self._left[self._tasks[number]] -= 1
        now = time.monotonic()
        if number in self._known:
            self.recalled_requests += 1
        elif self.kind == REQUESTS:
            self.tokens += self._lengths[number]
            self.seconds += now - self._since
        self._since = now
        self._step()

    def documents(self, total: int) -> None:
        """So many documents are scored from now on."""
        self.kind, self.total, self.done, self._tasks, self._left = DOCUMENTS, total, 0, (), Counter()
        self.time_left.begin(DOCUMENTS)

    def scored(self, documents: int) -> None:
        """So many more documents are scored."""
        self.done += documents
        self._step()

    def wrote(self, tokens: int) -> None:
        """So many more tokens of texts are written, by all models together."""
        self.written += tokens
        self.show()

    def _step(self) -> None:
        if self.done >= self.total:
            self.time_left.end()
        self.show()

    def show(self) -> None:
        """Called after each answer."""

    @property
    def rate(self) -> float | None:
        """Tokens of prompts a second, each counted once however many variants read it; None before any was run."""
        return self.tokens / self.seconds if self.tokens and self.seconds else None

    @property
    def written_rate(self) -> float | None:
        """Tokens of texts a second, by all models together in the pass under way; None before any was written."""
        took = time.monotonic() - self._began
        return self.written / took if self.written and took else None

    @property
    def seconds_left(self) -> tuple[float, bool]:
        """Of all that is scheduled, and whether that is all of it; see `TimeLeft.seconds`."""
        of_pass = None
        if self.kind == REQUESTS and self.rate is not None and self.total:
            of_pass = (self.total - self.done) * (self._tokens / self.total) / self.rate
        return self.time_left.seconds(self.done / self.total if self.total else 0.0, of_pass)

    @property
    def tasks_done(self) -> tuple[int, int]:
        """Of the pass under way: tasks of which nothing is left, and all."""
        return sum(count <= 0 for count in self._left.values()), len(self._left)


class ConsoleProgress(Progress):
    """Progress on `console`: a bar on a terminal, and elsewhere a line every `EVERY` seconds and for each variant.

    Inside its scope Ctrl-C raises `KeyboardInterrupt`, and again at the next step where a library has swallowed that.
    """

    def __init__(self, console: Console, variants: int):
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars
        from rich.table import Column

        super().__init__()
        self.console, self.variants, self.finished = console, variants, 0
        self.group = self._numbers = ""
        self._told = time.monotonic()
        self._interrupted = self._handles = False
        doing = TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
        numbers = TextColumn("{task.fields[numbers]}", table_column=Column(no_wrap=True))
        bar = BarColumn(bar_width=12, table_column=Column(min_width=12))
        self._bars = Bars(
            doing,
            bar,
            numbers,
            console=console,
            transient=True,
            expand=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._bar = self._bars.add_task("loading", total=None, numbers="")
        self._over = threading.Event()

    def __enter__(self) -> ConsoleProgress:
        of_python = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        self._handles = of_python and threading.current_thread() is threading.main_thread()
        if self._handles:
            signal.signal(signal.SIGINT, self._interrupt)
        if self.console.is_terminal:
            self._bars.start()
        else:  # whatever is under way, and however long it says nothing
            threading.Thread(target=self._say_every_minute, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self.console.is_terminal:  # elsewhere rich would leave an empty line
            self._bars.stop()
        if self._handles:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True
        signal.default_int_handler(number, frame)

    def _go_on(self) -> None:
        if self._interrupted:
            raise KeyboardInterrupt

    def found_finished(self, variants: int) -> None:
        """So many were finished before this run began."""
        self.finished += variants

    def at(self, what: str) -> None:
        """Say what is under way."""
        self._go_on()
        self.group = what
        self._numbers = ""
        self._bars.update(self._bar, description=self._doing(), total=None, numbers="")
        self._say_now_and_then()

    def turn(self, title: str, name: str) -> None:
        """A model's turn to be evaluated begins; `title` says which pass it is in."""
        self.time_left.begin_turn(name)
        self.total = self.done = 0
        self.at(f"{title}{name}")

    def variant_done(self, name: str) -> None:
        self.time_left.end_turn()
        self.finished += 1
        self._bars.update(self._bar, description=self._doing())
        if not self.console.is_terminal:
            self.say(f"{name} is done: {self.finished} of {self.variants}.")

    def say(self, sentence: str) -> None:
        self.console.print(printable(sentence), markup=False, highlight=False, soft_wrap=True)

    def counted(self, done: int, total: int, what: str) -> None:
        """So many of what is under way are done."""
        self._tell(done, total, f"{done:,}/{total:,} {what}")

    def _doing(self) -> str:
        return f"{self.finished} of {self.variants} done; {self.group}"

    def show(self) -> None:
        self._tell(self.done, self.total, self.numbers())

    def _tell(self, done: int, total: int, numbers: str) -> None:
        self._go_on()
        self._bars.update(self._bar, total=total, completed=done, numbers=numbers)
        self._numbers = numbers
        self._say_now_and_then()

    def _say_every_minute(self) -> None:
        while not self._over.wait(EVERY / 4):
            self._say_now_and_then()

    def _say_now_and_then(self) -> None:
        if not self.console.is_terminal and time.monotonic() - self._told > EVERY:
            self._told = time.monotonic()
            self.say(": ".join(filter(None, [self._doing(), self._numbers])))

    def numbers(self) -> str:
        """What the pass under way has done, and the time left of the run."""
        if self.done >= self.total:
            return ", ".join(["metrics and files", *self._time_left()])
        parts = [f"{self.done:,}/{self.total:,} {self.kind}"]
        done, tasks = self.tasks_done
        parts += [f"{done}/{tasks} tasks"] if tasks else []
        if self.kind == REQUESTS and self.rate:
            parts += [f"{self.rate:,.0f} tokens/s"]
        if self.kind == TEXTS and self.written_rate:
            parts += [f"{self.written:,} tokens written, {self.written_rate:,.0f} a second"]
        return ", ".join([*parts, *self._time_left()])

    def _time_left(self) -> list[str]:
        seconds, is_all = self.seconds_left
        if not seconds:
            return []
        return [f"{duration(seconds)} left" if is_all else f"more than {duration(seconds)} left"]


def duration(seconds: float) -> str:
    """`0:45` or `2:03:10`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


@contextmanager
def counting(documents: int, title: str | None, progress: Progress | None) -> Iterator[Callable[[int], object]]:
    """What is to be told of documents as they are scored: the progress of a run, or else a bar called `title`."""
    from tqdm import tqdm

    if progress is not None:
        progress.documents(documents)
        yield progress.scored
    else:
        with tqdm(total=documents, disable=title is None, desc=title) as bar:
            yield bar.update


@contextmanager
def quiet(log: Path, *, aloud: bool = True) -> Iterator[Console]:
    """Inside the scope, whatever is written to stdout and stderr goes into `log`; the console is the real stderr,
    or nothing at all.

    Bars of libraries and of the commands that they start ignore what would switch them off, so the file descriptors
    themselves are led elsewhere. Warnings of our own are on the console too.
    """
    from rich.console import Console

    with ExitStack() as scope:
        sys.stdout.flush()
        sys.stderr.flush()
        file = scope.enter_context(open(log, "a", encoding="utf-8"))
        real = scope.enter_context(os.fdopen(os.dup(2), "w", encoding="utf-8"))
        console = Console(file=real, quiet=not aloud)
        for descriptor in (1, 2):
            saved = os.dup(descriptor)
            scope.callback(_give_back, descriptor, saved)
            os.dup2(file.fileno(), descriptor)
        handler = _Aloud(console)
        logging.getLogger(OURS).addHandler(handler)
        scope.callback(logging.getLogger(OURS).removeHandler, handler)
        yield console


def _give_back(descriptor: int, saved: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the log's disk may be full
            stream.flush()
    os.dup2(saved, descriptor)
    os.close(saved)


class _Aloud(logging.Handler):
    """Prints warnings, each once: a run of many variants meets the same thing again and again."""

    def __init__(self, console: Console):
        super().__init__(logging.WARNING)
        self.console = console
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() in self._said:
            return
        self._said.add(record.getMessage())
        self.console.print(record.getMessage(), markup=False, highlight=False, soft_wrap=True)
