"""A table is drawn on a terminal, whose width it keeps to, and is lines of tabs for programs."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sae_lm_eval.cli.tables import TextTable, broken, has_room, print_grouped, print_report_table, print_table
from sae_lm_eval.report.formatting import Cell, ReportTable, TableColumn

TABLE = TextTable(
    ("task", "drop", "95%\ninterval"), [("[red]a", "\N{MINUS SIGN}1.2", "x\ty"), ("two", "10.0", "1 to 2")], "All tasks"
)
NARROW = TextTable(("task", "drop"), [row[:2] for row in TABLE.rows])


def printed(*tables: TextTable, columns: int | None = None) -> str:
    """What is printed on a terminal of so many columns, or into a pipe."""
    file = io.StringIO()
    print_table(Console(file=file, force_terminal=columns is not None, color_system=None, width=columns), *tables)
    return file.getvalue()


def test_a_pipe_gets_every_cell_in_a_line_a_row():
    lines = printed(TABLE, NARROW).splitlines()
    assert lines == ["All tasks", "task\tdrop\t95% interval", "[red]a\t-1.2\tx y", "two\t10.0\t1 to 2"]


def test_a_pipe_is_as_wide_as_its_rows():
    long = TextTable(("name",), [("n" * 500,)])
    assert printed(long).splitlines()[-1] == "n" * 500


def test_a_terminal_gets_columns_and_no_markup():
    said = printed(TABLE, columns=80)
    assert "\t" not in said
    assert "[red]a" in said
    assert "\N{MINUS SIGN}1.2" in said
    minus, ten = (
        line.index(drop) + len(drop) for line, drop in zip(said.splitlines()[-2:], ("1.2", "10.0"), strict=True)
    )
    assert minus == ten, "numbers stand to the right"


@pytest.mark.parametrize(("columns", "there"), [(80, True), (15, False)])
def test_a_narrow_terminal_gets_the_narrower_table(columns, there):
    said = printed(TABLE, NARROW, columns=columns)
    assert ("1 to 2" in said) is there
    assert "10.0" in said
    assert max(map(len, said.splitlines())) <= columns


@pytest.mark.parametrize(("columns", "room"), [(80, True), (8, False), (None, True)])
def test_room_for_a_table(columns, room):
    console = Console(file=io.StringIO(), force_terminal=columns is not None, width=columns)
    assert has_room(console, TABLE) is room


def test_what_rows_share_stands_once_on_a_terminal_and_in_each_line_of_a_pipe():
    table = TextTable(("work", "layer", "loss"), [("A", "1", "2.5"), ("A", "2", "2.6"), ("B", "1", "2.7")])
    said = []
    for is_terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=is_terminal, color_system=None, width=40)
        print_grouped(console, table)
        said.append(console.file.getvalue().split("\n"))
    assert [line.strip() for line in said[0]].count("A") == 1
    assert said[1][1:4] == ["A\t1\t2.5", "A\t2\t2.6", "B\t1\t2.7"]


def test_a_table_of_the_report_moves_nothing_on_a_terminal():
    hostile = "[red]\x1b[2J\u202ename"
    rows = ((Cell(hostile), Cell("1.2", detail="[0.1, 2.0]")),)
    table = ReportTable("drops", hostile, "", (TableColumn(hostile, "left"), TableColumn(f"drop {hostile}")), rows)
    file = io.StringIO()
    print_report_table(Console(file=file, force_terminal=True, color_system=None, width=80), table)
    assert file.getvalue().count("[red]<U+001B>[2J<U+202E>name") == 4
    assert "\x1b[2J" not in file.getvalue()
    assert "\u202e" not in file.getvalue()


def test_names_break_behind_a_mark_and_headings_too():
    cells = tuple(Cell("1.0*") for _ in range(5))
    names = ("width_16k_canonical_of_the_release", "k4")
    headings = ("stem", "social_sciences", "humanities", "overall", "other")
    columns = (TableColumn("variant", "left"), *map(TableColumn, headings))
    table = ReportTable("t", "What each variant loses", "", columns, tuple((Cell(name), *cells) for name in names))
    file = io.StringIO()
    print_report_table(Console(file=file, force_terminal=True, color_system=None, width=60), table)
    lines = [line.strip() for line in file.getvalue().splitlines()]
    assert lines[0] == "What each variant loses"
    assert any(line.startswith("social_") for line in lines)
    assert any(line.startswith("width_16k_canonical_ ") for line in lines)
    assert "of_the_release" in lines
    assert all(len(line) <= 60 for line in lines)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("width_1k_canonical", ["width_1k_", "canonical"]),
        ("averylongnamewithoutmarks", ["averylongn", "amewithout", "marks"]),
        ("95% interval", ["95%", "interval"]),
        ("", [""]),
        ("k4", ["k4"]),
    ],
)
def test_lines_end_behind_a_mark_where_they_can(text, lines):
    assert broken(text, 10) == lines
