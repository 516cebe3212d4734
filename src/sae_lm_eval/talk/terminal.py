"""The prompt in the terminal: answers grow side by side, commands begin with a slash."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.live import Live

from sae_lm_eval.errors import UserError, one_of
from sae_lm_eval.files.reading import at_home
from sae_lm_eval.runtime.text_files import check_writable
from sae_lm_eval.scoring.detokenize import visible
from sae_lm_eval.splicing.choices import whole
from sae_lm_eval.splicing.splice_arguments import MODES
from sae_lm_eval.talk.chosen import Sampling, temperature_of
from sae_lm_eval.talk.conversation import Conversation, Exchange, Model, exchange_record
from sae_lm_eval.talk.html_page import render
from sae_lm_eval.talk.passages import of_exchange
from sae_lm_eval.talk.sampling import Continuation
from sae_lm_eval.talk.side_by_side import Columns

PROMPT = "> "


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C is only remembered inside the scope, so that a step ends and takes its hooks off; a second one raises."""
    pressed: list[int] = []

    def remember(signum: int, _frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(signum)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def show(conversation: Conversation, prompt: str, console: Console) -> Exchange:
    """Ask, let the answers grow on the screen, and leave them there, as far as they came before Ctrl-C."""
    columns = Columns(conversation.model.decode)
    # On a screen of its own: what is resized there leaves nothing behind.
    growing = Live(
        get_renderable=lambda: columns.table(console, max(1, console.height - 6)),
        console=console, screen=True, refresh_per_second=12,
    )  # fmt: skip
    shows = console.is_terminal and not console.is_dumb_terminal
    with interruptible() as interrupted, growing if shows else contextlib.nullcontext():

        def watch(texts: Sequence[Continuation]) -> bool:
            columns.update(texts)
            return not interrupted()

        exchange = conversation.answer(prompt, watch)
    console.print(columns.table(console))
    if exchange.beyond:
        console.print(f"The last {exchange.beyond} tokens lie beyond the context that a dictionary was trained on.")
    return exchange


class Session:
    """What is asked and set at the prompt."""

    def __init__(self, model: Model, sampling: Sampling, system: str | None) -> None:
        self.model, self.console = model, Console()
        self.conversation = Conversation(model, sampling, system)
        self.exchanges: list[Exchange] = []
        self.commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/system": (self.set_system, "TEXT: a system prompt, in a new conversation; nothing takes it away"),
            "/temperature": (self.set_temperature, "T: 0 takes the likeliest token"),
            "/seed": (self.set_seed, "N: of the noise that all columns are given"),
            "/splice": (self.set_splice, f"MODE, in a new conversation: {', '.join(MODES)}"),
            "/new": (self.start_anew, "a new conversation"),
            "/save": (self.save, "FILE: all answers so far, as a page if its name ends in .html, as jsonl otherwise"),
            "/help": (self.help, "this"),
        }

    def run(self) -> None:
        """Until Ctrl-D, or Ctrl-C at the prompt."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # gives input() its history and keys
        typed = sys.stdin.isatty() and self.console.is_terminal
        if typed:
            self.say(f"{self.model.name}, {self.model.format}. /help lists the commands; Ctrl-D leaves.")
        while True:
            try:
                line = input(PROMPT if typed else "")
            except (EOFError, KeyboardInterrupt):
                if typed:
                    self.console.print()
                return
            try:
                self.take(line)
            except UserError as error:
                self.say(str(error), style="red")
            except KeyboardInterrupt:
                self.say("Interrupted.")

    def take(self, line: str) -> None:
        """Answer a line, or carry out the command that it is."""
        if not line.strip():
            return
        if not line.startswith("/"):
            self.ask(line)
            return
        name, _, rest = line.partition(" ")
        self.commands[one_of(name, self.commands, "Command")][0](rest.strip())

    def ask(self, prompt: str) -> None:
        if self.console.is_terminal:
            exchange = show(self.conversation, prompt, self.console)
        else:
            exchange = self.conversation.answer(prompt)
            print(json.dumps(exchange_record(exchange), ensure_ascii=False), flush=True)
        self.exchanges.append(exchange)

    def say(self, text: str, style: str = "dim") -> None:
        """A remark, which is no answer: on stderr where answers go to a program."""
        console = self.console if self.console.is_terminal else Console(stderr=True)
        console.print(visible(text), style=style, markup=False, highlight=False)

    def set_system(self, text: str) -> None:
        self.conversation = Conversation(self.model, self.conversation.sampling, text or None)
        self.say("A new conversation, without a system prompt." if not text else "A new conversation.")

    def start_anew(self, _text: str = "") -> None:
        self.conversation = Conversation(self.model, self.conversation.sampling, self.conversation.system)
        self.say("A new conversation.")

    def set_temperature(self, text: str) -> None:
        self._set(temperature=temperature_of(text))

    def set_seed(self, text: str) -> None:
        self._set(seed=whole(int(text) if text.isdecimal() else text, "/seed", least=0))

    def _set(self, **changes: Any) -> None:
        self.conversation.sampling = replace(self.conversation.sampling, **changes)
        self.say(", ".join(f"{name} {value}" for name, value in changes.items()))

    def set_splice(self, mode: str) -> None:
        self.model.set_splice(mode)
        self.start_anew()

    def save(self, file: str) -> None:
        if not file:
            raise UserError("/save needs a file's name, as in /save talk.html or /save talk.jsonl.")
        if not self.exchanges:
            raise UserError("There is nothing to save: nothing has been answered yet.")
        path = at_home(file)
        check_writable(path)
        if path.suffix == ".html":
            page = render(self.model, [of_exchange(self.model, exchange) for exchange in self.exchanges])
            path.write_text(page, encoding="utf-8")
        else:
            lines = [json.dumps(exchange_record(exchange), ensure_ascii=False) for exchange in self.exchanges]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.say(f"Written: {path}")

    def help(self, _text: str = "") -> None:
        self.say("\n".join(f"{name} {what}" for name, (_, what) in self.commands.items()))
