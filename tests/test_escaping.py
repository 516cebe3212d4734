"""Texts of somebody else's do nothing where they are shown."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from rich.console import Console
from runs import answers, write_run
from typer.testing import CliRunner

from sae_lm_eval.cli.main import app
from sae_lm_eval.cli.tables import TextTable, print_grouped, print_sentence, print_table
from sae_lm_eval.errors import UserError
from sae_lm_eval.files.escaping import for_spreadsheets, markup, terminal
from sae_lm_eval.files.logs import logger_of
from sae_lm_eval.report.figures import GREYS, Picture
from sae_lm_eval.report.formatting import Cell, ReportTable, TableColumn
from sae_lm_eval.report.latex import tex
from sae_lm_eval.report.render import inline_svg, table_html
from sae_lm_eval.results.results import read_results
from sae_lm_eval.runtime.placed_files import place_files

EVIL = "\x1b[31mred\x07 \u202eright\u2066 \ud800 \x9b2J [/red] \r\n\u2028end"


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("show", [print_table, print_grouped])
def test_tables(is_terminal, show):
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=300, color_system=None)
    show(console, TextTable(("a", EVIL), [(EVIL, "x"), ("y", EVIL)], EVIL))
    text = console.file.getvalue()
    text.encode()
    assert "\x1b[31m" not in text
    assert not set("\u202e\u2066\ud800\x9b\x07\r\u2028") & set(text)
    assert "[/red]" in text
    assert "<U+202E>right" in text


def test_errors_and_markup():
    assert str(UserError(f"'{EVIL}'")).startswith("'<U+001B>[31mred<U+0007> <U+202E>right<U+2066> <U+D800>")
    assert terminal("a\r\nb\tc") == "a b c"
    assert markup("[/red]") == r"\[/red]"


def test_sentences_on_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=300, color_system=None)
    print_sentence(console, f"'{EVIL}' is left out.")
    text = console.file.getvalue()
    assert "[/red]" in text
    assert not set("\x1b\u202e\u2066\ud800\x9b\x07\r\u2028") & set(text)


def test_what_is_logged(caplog):
    with caplog.at_level(logging.WARNING):
        logger_of("sae_lm_eval.somewhere").warning("'%s' is %d bytes", EVIL, 3)
    (record,) = caplog.records
    assert record.getMessage().endswith("end' is 3 bytes")
    assert not set("\x1b\u202e\u2066\ud800\x9b\x07\r\u2028") & set(record.getMessage())


def test_every_logger_of_the_package_is_one_of_these():
    package = Path(__file__).parents[1] / "src" / "sae_lm_eval"
    modules = [path for path in package.rglob("*.py") if "getLogger(f" in path.read_text()]
    assert [path.name for path in modules] == ["logs.py"]


def test_cells_that_spreadsheets_would_run():
    frame = pd.DataFrame({"name": ["=1+1", "@x", "-2", "a=b"], "drop": [-1.0, 2.0, 3.0, 4.0]})
    assert for_spreadsheets(frame)["name"].tolist() == ["'=1+1", "'@x", "'-2", "a=b"]
    assert for_spreadsheets(frame)["drop"].tolist() == frame["drop"].tolist()
    assert list(for_spreadsheets(frame.rename(columns={"drop": "=1+1"}))) == ["name", "'=1+1"]
    assert list(frame) == ["name", "drop"]


def test_pages_and_notebooks_name_marks_of_direction():
    table = ReportTable("t", EVIL, EVIL, (TableColumn(EVIL),), ((Cell(EVIL, 1.0, EVIL),),))
    html = table_html(table)
    assert "&lt;U+202E&gt;right" in html
    assert not set("\x1b\u202e\u2066\ud800\x9b\x07\r\u2028") & set(html)


def test_a_result_shows_itself_on_one_line(tmp_path):
    write_run(tmp_path, answers({"one": [1.0]}), model=EVIL)
    shown = repr(read_results(tmp_path))
    assert "<U+202E>right" in shown
    assert not set("\n\x1b\u202e\u2066\ud800\x9b\x07\r\u2028") & set(shown)


@pytest.mark.parametrize("command", [["report"], ["export", "--hub", "org/name", "--dry_run"]], ids=["report", "hub"])
def test_no_folder_in_the_results_is_written_through_a_link(command, tmp_path):
    for name in ("baseline", "other"):
        write_run(tmp_path / "out" / name, answers({"one": [1.0, 0.0]}))
    (tmp_path / "elsewhere").mkdir()
    for name in ("report", "hub"):
        (tmp_path / "out" / name).symlink_to(tmp_path / "elsewhere")
    said = CliRunner().invoke(app, [command[0], str(tmp_path / "out"), *command[1:]])
    assert "is a symbolic link, which is not written through. Remove it" in str(said.exception)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_no_file_is_placed_through_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "figures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="figures' is a symbolic link, which is not written through"):
        place_files({"a.txt": b"", "figures/a.svg": b""}, tmp_path / "report", what="It", otherwise="Other place.")
    assert not list((tmp_path / "elsewhere").iterdir())
    (tmp_path / "report" / "a.txt").symlink_to(tmp_path / "mine")
    place_files({"a.txt": b"new"}, tmp_path / "report", what="It", otherwise="Other place.")
    assert (tmp_path / "report" / "a.txt").read_bytes() == b"new"
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("text", ["[a] b", "*a"])
def test_a_first_cell_is_no_argument_of_the_row_before(text):
    assert tex(text).startswith("{}" + text[0])
    assert not tex("a" + text).startswith("{}")


def test_controls_are_seen_on_a_dark_page():
    figure = Figure()
    figure.subplots().plot([0, 1], color=GREYS[0])
    svg = inline_svg(Picture("p", "t", "c", "a", figure))
    assert "var(--grey-1)" in svg
    assert GREYS[0] not in svg
