"""What a comparison shows of itself in a notebook, and makes there."""

from __future__ import annotations

import pytest
from runs import answers, write_run

import sae_lm_eval
from sae_lm_eval.errors import UserError

HOSTILE = "<script>"


@pytest.fixture
def comparison(tmp_path):
    right = {"baseline": [1, 1, 1, 1, 0, 1, 1, 1] * 10, "variant": [1, 0, 1, 1, 0, 1, 0, 1] * 10}
    folders = [
        write_run(tmp_path / name, answers({HOSTILE: scores, "two": scores}), model=name)
        for name, scores in right.items()
    ]
    return sae_lm_eval.compare(folders[0], folders[1], draws=100)


def test_it_shows_itself(comparison):
    assert repr(comparison) == "<1 variant of baseline, compared: variant>"
    page = comparison._repr_html_()
    assert "<table" in page
    assert "loses 25.0 percentage points" in page
    assert "<script" not in page
    assert "&lt;script" in page


def test_its_table_has_the_numbers_of_its_drops(comparison):
    drop = comparison.drops.query("section == 'overall'")["drop"].item()
    assert comparison.table().set_index("variant").loc["variant", "overall"] == drop == pytest.approx(25)
    assert list(comparison.table("overall")) == ["variant", "overall", "overall low", "overall high", "overall p"]


def test_its_figures_and_its_report(comparison, tmp_path):
    assert comparison.plot().axes
    with pytest.raises(UserError, match="drop-by-category"):
        comparison.plot("drops")
    page = comparison.report(tmp_path / "report")
    assert page.read_text().startswith("<!doctype html>")
    assert (tmp_path / "report" / "drops.csv").exists()


def test_results_are_read_by_the_package(tmp_path):
    written = write_run(tmp_path / "a", answers({"one": [1.0, 0.0]}))
    assert sae_lm_eval.read_results(written).tasks == ["one"]
