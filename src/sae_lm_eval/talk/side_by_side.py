"""What the columns wrote, and which tokens are hit, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sae_lm_eval.report.formatting import nats, share
from sae_lm_eval.scoring.detokenize import Decode, Detokenizer, token_label, visible
from sae_lm_eval.scoring.parting import parting
from sae_lm_eval.talk.conversation import Answer
from sae_lm_eval.talk.sampling import Continuation
from sae_lm_eval.talk.token_categories import CategoryKl

Written = Continuation | Answer


class Columns:
    """Texts side by side, the baseline's first, also while they are written: each token is decoded once."""

    def __init__(self, decode: Decode, texts: Sequence[Written] = ()) -> None:
        self.decode = decode
        self.texts: Sequence[Written] = ()
        self.pieces: list[list[str]] = []
        self._streams: list[Detokenizer] = []
        self.update(texts)

    def update(self, texts: Sequence[Written]) -> None:
        if not self._streams:
            self._streams = [Detokenizer(self.decode, text.prompt) for text in texts]
            self.pieces = [[] for _ in texts]
        for text, stream, pieces in zip(texts, self._streams, self.pieces, strict=True):
            pieces += [stream.add(token) for token in text.ids[len(pieces) :]]
        self.texts = texts

    def table(self, console: Console, lines: int | None = None) -> Table:
        """A column each, with only the last `lines` lines where these are given."""
        table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False, padding=(0, 2, 0, 0), show_footer=True)
        width = max(8, (console.width - 2) // max(1, len(self.texts)) - 3)  # at most what a cell gets
        cells = []
        for text, pieces in zip(self.texts, self.pieces, strict=True):
            parted = None if text.column.variant is None else parting(self.texts[0].ids, text.ids)
            name, foot = Text(text.column.name, overflow="fold"), Text(self._foot(text, pieces, parted), style="dim")
            table.add_column(name, foot, ratio=1, overflow="fold")
            cell = Text(overflow="fold")
            for index, piece in enumerate(pieces):
                cell.append(visible(piece), style="bold reverse" if index == parted else "")
            cells.append(_last_lines(cell, console, width, lines))
        table.add_row(*cells)
        return table

    def _foot(self, text: Written, pieces: Sequence[str], parted: int | None) -> str:
        if not text.ids:
            return "nothing yet"
        length = text.ended or f"{len(text.ids)} tokens"
        if text.column.variant is None:
            return length
        if parted is None:
            return f"as the baseline; {length}"
        ours, theirs = (token_label(of_column[parted]) for of_column in (self.pieces[0], pieces))
        return f"parts at token {parted + 1}: {theirs} for {ours}; {length}"


def _last_lines(text: Text, console: Console, width: int, lines: int | None) -> Text:
    return text if lines is None else Text("\n").join(list(text.wrap(console, width))[-lines:])


def category_table(variant: str, rows: Sequence[CategoryKl]) -> Table:
    """The rows of a variant, with the worst token of each."""
    table = Table(title=Text(variant), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("category")
    for name in ("tokens", "mean KL (nats)", "share of all KL"):
        table.add_column(name, justify="right")
    table.add_column("worst", overflow="fold")
    group = None
    for row in rows:
        if row.group != group:
            group = row.group
            table.add_row(Text(group, style="bold"))
        worst = Text()
        for example in row.worst[:1]:
            worst.append(visible(example.before[-20:])).append(token_label(example.token), style="bold reverse")
            worst.append(f" ({nats(example.kl)})")
        table.add_row(f"  {row.category}", str(row.tokens), nats(row.mean), share(row.share), worst)
    return table
