"""Tables as a command prints them: drawn on a terminal, and elsewhere a line a row, its cells parted by tabs."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from sae_lm_eval.files.escaping import printable, terminal
from sae_lm_eval.report.formatting import MINUS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    from sae_lm_eval.report.formatting import ReportTable

SQUEEZED = 1.2  # names may be broken over lines, numbers hardly
NAME = 12  # letters of a name's line at least, where it is broken over lines


@dataclass(frozen=True)
class TextTable:
    """Headings and rows of text; the columns at `words` stand to the left, those of numbers to the right.

    Rows at the indices `blocks` begin something new, and are set apart.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    words: Collection[int] = (0,)
    blocks: Collection[int] = ()


def print_table(console: Console, table: TextTable, *narrower: TextTable) -> None:
    """Print a table; on a terminal for which it is too wide, the first of `narrower` that fits, or else the last."""
    if not console.is_terminal:
        _print_lines(console, table)
        return
    tables = (table, *narrower)
    console.print(drawn(next((each for each in tables if width(console, each) <= console.width), tables[-1])))


def print_sentence(console: Console, sentence: str, *, soft_wrap: bool = False) -> None:
    """Print text that stands in no table; it is no markup, and moves nothing. Lines to be copied are `soft_wrap`."""
    from rich.text import Text

    console.print(Text(printable(sentence)), soft_wrap=soft_wrap)


def has_room(console: Console, table: TextTable) -> bool:
    """Whether a table can be read here: on a terminal hardly a cell of it is broken over lines."""
    return not console.is_terminal or width(console, table) <= SQUEEZED * console.width


def print_facts(console: Console, title: str, facts: dict[str, str]) -> None:
    """Print what is known of one thing: a line a fact, below its title."""
    print_table(console, TextTable((title, ""), list(facts.items()), words=(0, 1)))


def print_grouped(console: Console, table: TextTable, by: int = 1) -> None:
    """Print a table; on a terminal its first `by` columns stand once, above the rows that share them."""
    from rich.table import Table as Grid

    if not console.is_terminal:
        _print_lines(console, table)
        return
    lines = [list(line[by:]) for line in (table.headings, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    while sum(widths) + len(widths) > console.width and max(widths) > 8:
        widths[widths.index(max(widths))] -= 1

    def print_lines_of(lines: Sequence[Sequence[str]]) -> None:
        grid = Grid.grid(padding=(0, 1, 0, 0))
        for width in widths:
            grid.add_column(width=width, overflow="fold")
        for line in lines:
            grid.add_row(*(_cell(cell) for cell in line))
        console.print(grid)

    print_lines_of(lines[:1])
    for shared, group in groupby(table.rows, key=lambda row: row[:by]):
        console.print(_cell(", ".join(shared), style="bold"))
        print_lines_of([row[by:] for row in group])
    console.print()


def _print_lines(console: Console, table: TextTable) -> None:
    """A line a row, for programs: no cell holds a tab or a line break, and a minus sign is the one that they read."""
    title = [[table.title]] if table.title else []
    for line in (*title, table.headings, *table.rows):
        cells = (terminal(cell).replace(MINUS, "-") for cell in line)
        print("\t".join(cells), file=console.file)


def drawn(table: TextTable, *, gap: int = 1, whole_numbers: bool = False, columns: int = 0) -> Grid:
    """The table as rich draws it, with `gap` blanks more between columns; whatever a cell holds is text, not markup.

    Where there is little room, `whole_numbers` breaks the headings of numbers and never the numbers. On a terminal of
    so many `columns` a name breaks behind a mark, if there is one column of names.
    """
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    title = _cell(table.title, style="bold") if table.title else None
    look: dict[str, Any] = {"box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "padding": (0, gap, 0, 0)}
    grid = Grid(title=title, title_justify="left", **look)
    for index, heading in enumerate(table.headings):
        is_number, cell = index not in table.words, _cell(heading)
        if whole_numbers and is_number:
            letters = _letters_of(heading, [row[index] for row in table.rows])
            cell = Text("\n").join(map(_cell, broken(heading, letters)))
        justify = "right" if is_number else "left"
        grid.add_column(cell, justify=justify, overflow="fold", no_wrap=whole_numbers and is_number)
    room = _room_of_names(table, gap, columns) if whole_numbers and columns else 0
    for index, row in enumerate(table.rows):
        cells = [_cell(cell) for cell in row]
        for at in table.words if room else ():
            cells[at] = Text("\n").join(map(_cell, broken(terminal(row[at]), room)))
        grid.add_row(*cells, end_section=index + 1 in table.blocks)
    return grid


def _room_of_names(table: TextTable, gap: int, columns: int) -> int:
    """Letters that the one column of names has on a terminal; 0 where there are several."""
    if len(table.words) != 1:
        return 0
    numbers = [at for at in range(len(table.headings)) if at not in table.words]
    taken = sum(_letters_of(table.headings[at], [row[at] for row in table.rows]) for at in numbers)
    return max(NAME, columns - taken - (gap + 1) * len(numbers) - gap)


def broken(text: str, letters: int) -> list[str]:
    """Lines of at most so many letters, which end behind a blank or a mark where they can."""
    lines = [""]
    for part in filter(None, re.split(r"(?<=[\s_/.,#])", text)):
        if len((lines[-1] + part).rstrip()) > letters and lines[-1]:
            lines.append("")
        lines[-1] += part
        while len(lines[-1].rstrip()) > letters:
            lines[-1:] = [lines[-1][:letters], lines[-1][letters:]]
    return [line.rstrip() for line in lines] if text.strip() else [text]


def width(console: Console, table: TextTable) -> int:
    """Columns of a terminal that take the table without breaking a line."""
    from rich.measure import Measurement

    return Measurement.get(console, console.options.update(max_width=10_000), drawn(table)).maximum


def _cell(text: str, style: str = "") -> Text:
    """Text as it stands in a table on a terminal: it is no markup, and moves nothing."""
    from rich.text import Text

    return Text(terminal(text), style=style)


def _letters_of(heading: str, cells: Sequence[str]) -> int:
    """Letters that a column of numbers needs, its heading broken at blanks and marks; names can be broken anywhere."""
    return max([*map(len, re.split(r"\s|(?<=[_/])", heading)), *map(len, cells)], default=1)


def _widths(table: ReportTable) -> list[int]:
    return [
        _letters_of(column.heading, [row[at].text for row in table.rows]) for at, column in enumerate(table.columns)
    ]


def _letters(table: ReportTable, gap: int, name: int | None = NAME) -> int:
    """How wide a report's table is on a terminal, with so many blanks between columns; names of at most `name`."""
    texts = [column.align == "left" for column in table.columns]
    widths = zip(_widths(table), texts, strict=True)
    return sum(gap + (min(name, width) if text and name is not None else width) for width, text in widths) - gap


def fits_a_terminal(console: Console, table: ReportTable) -> bool:
    """Whether the numbers of a report's table stand on their lines, and its texts have some room; always in a pipe."""
    return not console.is_terminal or _letters(table, gap=1) <= console.width


def with_intervals(table: ReportTable) -> ReportTable:
    """The table with what stands below a cell's number behind it, so that a terminal with room for that shows it."""
    rows = tuple(tuple(replace(cell, text=f"{cell.text} {cell.detail}".strip()) for cell in row) for row in table.rows)
    return replace(table, rows=rows)


def fitting_table(console: Console, table: ReportTable) -> ReportTable | None:
    """The table for this terminal, less as many of its spare columns as it takes; None where that is not enough."""
    spare = [at for at, column in enumerate(table.columns) if column.spare]
    spare.sort(key=lambda at: (-table.columns[at].spare, -at))
    for gone in (spare[:count] for count in range(len(spare) + 1)):
        columns, *rows = (
            tuple(cell for at, cell in enumerate(line) if at not in gone) for line in (table.columns, *table.rows)
        )
        narrow = replace(table, columns=columns, rows=tuple(rows))
        if fits_a_terminal(console, narrow):
            return narrow
    return None


def print_report_table(console: Console, table: ReportTable) -> None:
    """A table of the report: on a terminal without its intervals, elsewhere all of it, a line a row."""
    on_terminal = console.is_terminal
    text_table = TextTable(
        [column.heading for column in table.columns],
        [[cell.text if on_terminal else f"{cell.text} {cell.detail}".strip() for cell in row] for row in table.rows],
        table.title,
        words=[at for at, column in enumerate(table.columns) if column.align == "left"],
        blocks=table.blocks,
    )
    if on_terminal:
        gap = int(_letters(table, gap=2, name=None) <= console.width)
        console.print(_cell(table.title, style="bold"))
        text_table = replace(text_table, title="")
        console.print(drawn(text_table, gap=gap, whole_numbers=True, columns=console.width))
    else:
        _print_lines(console, text_table)
    console.print()
