"""`sae-lm-eval leaderboard`: many runs on one page that asks for nothing else."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_report import FIDELITY, HOSTILE, QUESTIONS, SPLICE, WORSE, write_run
from typer.testing import CliRunner

from sae_lm_eval.cli.main import app
from sae_lm_eval.errors import UserError
from sae_lm_eval.exchange.leaderboard import read_leaderboard
from sae_lm_eval.exchange.run_folders import run_folders

COSTS = ("delta CE", "KL", "effective compute", "L0")
GROUPS = {"animals": ["birds", "fish_x"]}


def named(dictionary: str) -> list[dict[str, Any]]:
    return [{**SPLICE, "dictionary": dictionary}]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs of two models, one of them with groups."""
    folder = tmp_path / "runs"
    write_run(folder / "first" / "baseline", QUESTIONS, splice="none", groups=GROUPS)
    write_run(folder / "first" / "good", QUESTIONS, groups=GROUPS, splices=named("r#good"))
    write_run(folder / "first" / "bad", WORSE, groups=GROUPS, splices=named("r#bad"), fidelity=FIDELITY)
    write_run(folder / "second" / "baseline", QUESTIONS, splice="none", pretrained="pythia")
    write_run(folder / "second" / "zero", WORSE, splice="zero", pretrained="pythia")
    return folder


def command(*arguments: Any) -> str:
    result = CliRunner().invoke(app, ["leaderboard", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


class Page(html.parser.HTMLParser):
    """Rows of the table as texts, addresses that the page names, and what it would run."""

    def __init__(self, text: str):
        super().__init__()
        self.rows: list[list[str]] = []
        self.addresses: list[str] = []
        self.ids: set[str] = set()
        self.tags: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action") and value]
        self.ids |= {given["id"] or ""} if "id" in given else set()
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        self.inside = tag in ("td", "th", "a", "small", "wbr")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1] and self.inside:
            self.rows[-1][-1] += data


def test_every_variant_is_a_row_with_its_model_drops_and_costs(runs, tmp_path):
    page = tmp_path / "page.html"
    assert "with 3 variants" in command(runs, "--output_path", page)
    parsed = Page(page.read_text())
    head, *rows = ([cell.strip() for cell in row] for row in parsed.rows)
    assert head == [
        *("dictionary", "overall drop", "model", "mode", "baseline (%)"),
        *("animals", "birds", "fish_x", "plants", *(f"{cost} on sae_fidelity" for cost in COSTS), "questions", "run"),
    ]
    by_name = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert [row[0] for row in rows] == ["r#good", "r#bad", SPLICE["dictionary"]]
    assert by_name["r#bad"]["overall drop"].startswith("28.3")
    assert by_name["r#good"]["overall drop"].startswith("0.0")
    assert by_name["r#bad"]["baseline (%)"] == "88.3"
    assert by_name["r#bad"]["L0 on sae_fidelity"].startswith("32.0")
    assert by_name["r#good"]["L0 on sae_fidelity"] == "n/a"
    assert [row["model"] for row in by_name.values()] == ["gpt2", "gpt2", "pythia"]
    assert by_name["r#bad"]["questions"] == "animals, plants; 0-shot; limit 4"
    assert by_name["r#bad"]["run"].startswith("first: bad")


def test_each_row_leads_to_its_provenance(runs, tmp_path):
    page = tmp_path / "page.html"
    command(runs, "--output_path", page)
    parsed, text = Page(page.read_text()), page.read_text()
    assert [address for address in parsed.addresses if address.startswith("#row-")] == ["#row-1", "#row-2", "#row-3"]
    assert {"row-1", "row-2", "row-3"} <= parsed.ids
    assert "lm_eval --model sae_hf --model_args" in text
    assert text.count("<dt>dictionary</dt>") == 3


def test_the_page_asks_for_nothing_and_runs_nothing_of_the_results(tmp_path):
    bad = f"{HOSTILE}\u202e\x1b[31m"
    answers, groups = {"a": [1] * 9, "b": [0, 1] * 9}, {bad: ["b"]}
    write_run(tmp_path / "run" / "baseline", answers, splice="none", groups=groups)
    write_run(tmp_path / "run" / "bad", answers, splices=named(bad), pretrained=bad, groups=groups)
    page = tmp_path / "page.html"
    command(tmp_path / "run", "--output_path", page)
    text = page.read_text()
    parsed = Page(text)
    assert parsed.tags.count("script") == 1
    assert all(address.startswith("#") for address in parsed.addresses)
    assert not set("\u202e\x1b") & set(text)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'")


def test_a_run_that_cannot_be_read_is_named_and_the_others_are_shown(runs, tmp_path):
    (file,) = (runs / "second" / "zero").glob("*/results_*.json")
    file.write_text("{")
    said = " ".join(command(runs, "--output_path", tmp_path / "page.html").split())
    assert "Note: Left out is the run second: " in said
    assert "cannot be read as JSON" in said
    assert "with 2 variants" in said
    assert "Left out is the run second" in (tmp_path / "page.html").read_text()
    with pytest.raises(UserError, match=r"None of 1 runs can be shown\. Left out is the run second"):
        command(runs / "second", "--output_path", tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()


def test_runs_are_found_once_and_told_apart(runs, tmp_path):
    assert run_folders([runs, runs / "first", runs / "second" / ".."]) == [runs / "first", runs / "second"]
    write_run(tmp_path / "later" / "first" / "baseline", QUESTIONS, splice="none")
    write_run(tmp_path / "later" / "first" / "good", QUESTIONS, splices=named("r#good"))
    board = read_leaderboard([runs, tmp_path / "later"], lambda _: None)
    assert {row.run for row in board.rows} == {"runs/first", "later/first", "second"}


def test_mistakes_are_told_in_a_sentence_and_nothing_is_replaced(runs, tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        command(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"Neither '.*baseline' nor a folder directly in it holds the results of a run"):
        command(runs / "first" / "baseline")
    with pytest.raises(UserError, match=r"is a folder\. Name the page in it"):
        command(runs, "--output_path", tmp_path)
    mine = tmp_path / "mine.html"
    mine.write_text("<p>mine</p>")
    with pytest.raises(UserError, match="is there, and this command did not make it"):
        command(runs, "--output_path", mine)
    assert mine.read_text() == "<p>mine</p>"
    page = tmp_path / "page.html"
    command(runs, "--output_path", page)
    first = page.read_text()
    command(runs, "--output_path", page)
    assert page.read_text() == first


def test_filters_name_what_there_is(runs, tmp_path):
    page = tmp_path / "page.html"
    command(runs, "--output_path", page)
    choices = re.findall(r'<option value="([^"]*)">', page.read_text())
    assert {"gpt2", "pythia", "reconstruction", "zero"} <= set(choices)


def changed(run: Path, **raw: Any) -> None:
    """Other entries in a run's results, those of `config` beside its own."""
    for file in run.glob("*/*/results_*.json"):
        content = json.loads(file.read_text())
        config = {**content["config"], **raw.get("config", {})}
        file.write_text(json.dumps({**content, **raw, "config": config}))


@pytest.mark.parametrize(
    ("raw", "ending"),
    [
        ({"chat_template": "{{ a }}"}, r"limit 4; chat template [0-9a-f]{6}"),
        ({"system_instruction": "Be brief."}, r"limit 4; system instruction [0-9a-f]{6}"),
        ({"n-shot": {"birds": 2, "fish_x": 2, "plants": 2}, "config": {"fewshot_seed": 7}}, "limit 4; few-shot seed 7"),
        ({"config": {"fewshot_seed": 7}}, "limit 4"),
        ({"config": {"limit": None}}, "0-shot"),
        (
            {
                "config": {"limit": None},
                "n-samples": {task: {"original": 1000, "effective": 20} for task in QUESTIONS},
            },
            "60 of 3,000 documents",
        ),
    ],
)
def test_what_was_asked_tells_apart_what_cannot_be_compared(runs, raw, ending):
    changed(runs / "second", **raw)
    (row,) = read_leaderboard([runs / "second"], lambda _: None).rows
    assert re.search(f"{ending}$", row.questions)
    assert (row.model, row.overall.text) == ("pythia", "28.3*")


def test_a_models_revision_stands_behind_its_name(runs):
    changed(runs / "second", config={"model_revision": "step1000"})
    changed(runs / "first", config={"model_revision": "main"})
    board = read_leaderboard([runs], lambda _: None)
    assert {row.model for row in board.rows} == {"gpt2", "pythia@step1000"}


def test_costs_on_other_texts_are_other_columns(runs):
    write_run(runs / "second" / "k4", WORSE, pretrained="pythia", fidelity=FIDELITY)
    for file in (runs / "second" / "k4").glob("*/results_*.json"):
        file.write_text(file.read_text().replace("sae_fidelity", "sae_fidelity_prose"))
    costs = read_leaderboard([runs], lambda _: None).costs
    assert [name for name in costs if name.startswith("KL")] == ["KL on sae_fidelity", "KL on prose"]


def test_groups_of_one_alias_are_two_columns(runs):
    for file in (runs / "second").glob("*/*/results_*.json"):
        content = json.loads(file.read_text())
        for task in ("birds", "plants"):
            content["results"][task]["alias"] = "living"
        file.write_text(json.dumps(content))
    board = read_leaderboard([runs], lambda _: None)
    headings = board.categories
    assert {headings["birds"], headings["plants"]} == {"living (birds)", "living (plants)"}
    assert headings["animals"] == "animals"
    zero = next(row for row in board.rows if row.variant == "zero")
    assert [zero.categories[name].value for name in ("birds", "plants")] == pytest.approx([40, 5])


def test_a_baseline_at_chance_is_marked_and_the_marks_are_told(tmp_path):
    guesses = [int(at % 4 == 0) for at in range(40)]
    for name, splice in (("baseline", "none"), ("k4", "reconstruction")):
        write_run(tmp_path / "run" / name, {"birds": guesses, "fish_x": guesses}, splice=splice)
    board = read_leaderboard([tmp_path / "run"], lambda _: None)
    (row,) = board.rows
    assert (row.overall.text, row.baseline.text) == ("0.0‡", "25.0‡")
    assert row.categories["birds"].text == "0.0‡"
    command(tmp_path / "run", "--output_path", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "it has nothing to lose there." in page
    assert "1 variant of 1 model" in page
