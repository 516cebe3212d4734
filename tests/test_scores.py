"""`sae-lm-eval report --scores`: scores of other projects, joined to what the same dictionaries cost."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet
from scipy.stats import spearmanr
from test_report import FIDELITY, QUESTIONS, SPLICE, write_run
from typer.testing import CliRunner

from sae_lm_eval.cli.main import app
from sae_lm_eval.errors import UserError
from sae_lm_eval.exchange import rank_correlation as ranks
from sae_lm_eval.exchange.dictionary_names import DictionaryName
from sae_lm_eval.exchange.rank_correlation import LEAST, LEAST_FOR_INTERVAL, rank_correlation, spearman
from sae_lm_eval.exchange.saebench_results import LEFT_OUT
from sae_lm_eval.exchange.score_files import read_scores
from sae_lm_eval.exchange.score_join import partners_of
from sae_lm_eval.exchange.scores import DictionaryScore, ScoreKind
from sae_lm_eval.report.formatting import MINUS

EXAMPLE = Path(__file__).parents[1] / "examples" / "saebench_world"
RELEASE, SITE = "world", "blocks.2.hook_resid_post"
# Compute and wrong answers by k.
COSTS = {
    4: (0.1, 20),
    8: (0.3, 14),
    16: (0.2, 10),
    32: (0.5, 6),
    64: (0.7, 2),
    128: (0.9, 0),
}


def result(eval_type: str = "autointerp", release: str | None = RELEASE, **metrics: Any) -> dict[str, Any]:
    return {
        "eval_type_id": eval_type,
        "eval_config": {},
        "eval_result_metrics": {"any": metrics},
        "sae_lens_release_id": release,
        "sae_lens_id": f"{SITE}.k4",
    }


def saved(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def values(path: Path) -> dict[str, float]:
    return {score.kind.name: score.value for score in read_scores(path).scores}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Results of six dictionaries, of which a higher k costs less, but for one that lies off the frontier."""
    folder = tmp_path / "out"
    write_run(folder / "baseline", {task: [1] * 40 for task in QUESTIONS}, splice="none")
    for k, (compute, wrong) in COSTS.items():
        answers = {task: [0] * wrong + [1] * (40 - wrong) for task in QUESTIONS}
        fidelity = {**FIDELITY, "l0": float(k), "effective_compute": compute}
        splice = {**SPLICE, "dictionary": f"{RELEASE}#{SITE}.k{k}"}
        write_run(folder / f"k{k}", answers, fidelity=fidelity, splices=[splice])
    return folder


def table(path: Path, rows: dict[int, float], name: str = "judge") -> Path:
    ids = [f"{SITE}.k{k}" for k in rows]
    pd.DataFrame({"release": RELEASE, "sae_id": ids, name: list(rows.values())}).to_csv(path, index=False)
    return path


def report(out: Path, scores: Path, target: Path) -> str:
    result = CliRunner().invoke(app, ["report", str(out), "--scores", str(scores), "--output_path", str(target)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0
    return result.output


def test_of_saebench_the_headline_numbers_are_read(tmp_path):
    content = result("absorption_first_letter", mean_absorption_fraction_score=0.2, std_dev_num_split_features=1.0)
    (score,) = read_scores(saved(tmp_path / "a.json", content)).scores
    assert (score.kind.name, score.kind.origin) == (
        "mean_absorption_fraction_score",
        "SAEBench absorption_first_letter",
    )
    assert not score.kind.higher_is_better
    assert str(score.dictionary) == f"{RELEASE}#{SITE}.k4"


def test_saebenchs_own_mark_of_an_undefined_number_is_no_score(tmp_path):
    content = result("core", ce_loss_score=-1, kl_div_score=0.9, explained_variance=math.nan, frac_alive=None)
    assert values(saved(tmp_path / "core.json", content)) == {"kl_div_score": 0.9}


def test_an_eval_that_is_not_known_gives_all_its_numbers(tmp_path):
    assert values(saved(tmp_path / "new.json", result("new_eval", a=1, b=0.5, c="text", d=True))) == {"a": 1, "b": 0.5}


@pytest.mark.parametrize("eval_type", ["scr", "tpp"])
def test_scr_and_tpp_are_left_out_with_one_sentence(tmp_path, eval_type):
    folder = tmp_path / "scores"
    saved(folder / "scr.json", result(eval_type, scr_metric_threshold_10=0.4))
    with pytest.raises(UserError, match="SCR and TPP are left out"):
        read_scores(folder)
    saved(folder / "deeper" / "autointerp.json", result(autointerp_score=0.8))
    score_set = read_scores(folder)
    assert [score.kind.name for score in score_set.scores] == ["autointerp_score"]
    assert score_set.notes == (LEFT_OUT,)
    assert LEFT_OUT.count(".") == 2
    assert "2605.18229" in LEFT_OUT


def test_delphis_balanced_accuracy_is_over_the_examples_of_all_latents(tmp_path):
    run = tmp_path / "runs" / "first"
    saved(run / "run_config.json", {"sparse_model": "org/sae", "other": 1})
    examples = {
        "layers.4_latent7": [(True, True), (True, False), (False, False)],
        "layers.4_latent9": [(True, True), (False, True), (False, False), (False, None)],
        "layers--5_latent1": [(True, True)],
    }
    for name, rows in examples.items():
        content = [{"activating": active, "prediction": said, "str_tokens": ["a"]} for active, said in rows]
        saved(run / "scores" / "detection" / f"{name}.txt", content)
    (score,) = read_scores(tmp_path / "runs").scores  # of layers/5 no example is silent
    assert score.value == (2 / 3 + 2 / 3) / 2
    assert str(score.dictionary) == "org/sae#layers.4"
    assert score.kind.origin == "delphi detection"
    assert score.dictionary.fits(DictionaryName.of_spec("sparsify:org/sae#layers.4"))


def test_predictions_of_delphis_judge_count_from_a_half_on_whatever_number_they_are(tmp_path):
    """delphi writes what its judge answered, such as [1, 2, 0], and compares it with 0.5; NaN is no answer there."""
    saved(tmp_path / "run_config.json", {"sparse_model": "org/sae"})
    said = [(True, 2), (True, 0.5), (True, 0.4), (True, math.nan), (False, -1), (False, 7), (False, 0), (False, 0.1)]
    content = [{"activating": active, "prediction": prediction} for active, prediction in said]
    saved(tmp_path / "scores" / "fuzz" / "layers.4_latent7.txt", content)
    (score,) = read_scores(tmp_path).scores
    assert score.value == pytest.approx((2 / 3 + 3 / 4) / 2)


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[1]", '[{"activating": 1}]', '[{"activating": true, "prediction": "x"}]'),
        *(f'[{{"activating": true, "prediction": {value}}}]' for value in ('"0.9"', "[1]", "{}")),
        '[{"activating": true, "activating": false, "prediction": 1}]',
    ],
)
def test_damaged_examples_of_delphis_are_told_in_a_sentence(tmp_path, content):
    saved(tmp_path / "run_config.json", {"sparse_model": "org/sae"})
    path = saved(tmp_path / "scores" / "fuzz" / "layers.4_latent7.txt", [])
    path.write_text(content)
    with pytest.raises(UserError, match="latent7"):
        read_scores(tmp_path)


@pytest.mark.parametrize(
    ("names", "columns", "sentence"),
    [
        (["sae", "judge", "judge"], [["a"], [1.0], [2.0]], "has the column 'judge' twice"),
        (["sae", "judge", "when"], [["a"], [1.0], pa.array([2**40], pa.timestamp("s"))], "is no sound Parquet file"),
        (["release", "sae_id", "judge"], [["a"], [[1]], [1.0]], "Row 1 of .* names no dictionary: 'sae_id' is"),
    ],
)
def test_an_odd_parquet_file_is_told_in_a_sentence(names, columns, sentence, tmp_path):
    parquet.write_table(
        pa.Table.from_arrays([pa.array(cells) for cells in columns], names=names), tmp_path / "a.parquet"
    )
    with pytest.raises(UserError, match=sentence):
        read_scores(tmp_path / "a.parquet")


def test_every_column_of_numbers_of_a_table_is_a_score(tmp_path):
    frame = pd.DataFrame(
        {
            "sae": ["saelens:world#a", "sparsify:org/x#layers.1@abc"],
            "judge": [0.5, None],
            "absorption (lower is better)": [1, 2],
            "remark": ["good", None],
        }
    )
    frame.to_csv(tmp_path / "scores.csv", index=False)
    frame.to_parquet(tmp_path / "scores.parquet")
    for path in (tmp_path / "scores.csv", tmp_path / "scores.parquet"):
        score_set = read_scores(path)
        assert {(str(score.dictionary), score.kind.name, score.value) for score in score_set.scores} == {
            ("world#a", "judge", 0.5),
            ("world#a", "absorption", 1.0),
            ("org/x#layers.1@abc", "absorption", 2.0),
        }
        assert [score.kind.higher_is_better for score in score_set.scores] == [True, False, False]
        assert score_set.notes == (f"These columns of {path.name} hold texts, and are no scores: remark.",)


def test_the_index_of_a_table_is_no_score(tmp_path):
    frame = pd.DataFrame({"sae": ["world#a", "world#b"], "judge": [0.5, 0.7]}, index=[3, 5])
    frame.to_csv(tmp_path / "once.csv")
    pd.read_csv(tmp_path / "once.csv").to_csv(tmp_path / "twice.csv")
    frame.to_parquet(tmp_path / "once.parquet")
    for path in tmp_path.iterdir():
        assert {score.kind.name for score in read_scores(path).scores} == {"judge"}


def test_ids_that_are_numbers_stay_as_they_are_written(tmp_path):
    (tmp_path / "scores.csv").write_text("release,sae_id,judge\nr,8,0.5\nr,,0.7\n")
    assert {str(score.dictionary) for score in read_scores(tmp_path / "scores.csv").scores} == {"r#8", "r"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sea,judge\na,1\n", "names no dictionary: it needs a column 'sae' .* It has sea, judge"),
        ("sae,judge\n,1\nb,2\n", "Row 1 of .* names no dictionary: 'sae' is None"),
        ("sae,judge\n", "has no rows"),
        ("sae,judge\na,good\n", "holds no scores of dictionaries. These columns"),
        ("sae,judge\na,1\na,2\n", "a has two values of judge .*: 1 and 2, in"),
    ],
)
def test_tables_without_scores_are_told_in_a_sentence(tmp_path, content, message):
    (tmp_path / "scores.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        read_scores(tmp_path / "scores.csv")


def test_what_is_no_score_file_is_told(tmp_path):
    with pytest.raises(UserError, match="There is no file or folder of scores"):
        read_scores(tmp_path / "nothing")
    (tmp_path / "scores.txt").write_text("a")
    with pytest.raises(UserError, match=r"is none of \.json, \.csv, \.parquet"):
        read_scores(tmp_path / "scores.txt")
    (tmp_path / "a.json").write_text('{"eval_type_id": ')
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_scores(tmp_path / "a.json")
    with pytest.raises(UserError, match="names its dictionary in sae_lens_release_id"):
        read_scores(saved(tmp_path / "b.json", result(release=None, autointerp_score=1)))


def test_a_result_of_a_dictionary_without_a_name_is_named_beside_the_others(tmp_path):
    saved(tmp_path / "a.json", result(release=None, autointerp_score=1))
    saved(tmp_path / "b.json", result(autointerp_score=0.5))
    score_set = read_scores(tmp_path)
    assert [score.value for score in score_set.scores] == [0.5]
    assert score_set.notes == ("No scores of dictionaries are in a.json.",)


@pytest.mark.parametrize(
    ("scored", "specs", "joined", "reason"),
    [
        ({"r#x@A": 1, "r#x@B": 2}, ["r#x"], {}, "r#x has scores of several revisions"),
        ({"r#x@A": 1, "r#x": 2}, ["r#x"], {"r#x": 2}, ""),
        ({"r#x@A": 1, "r#x@B": 2}, ["r#x@B"], {"r#x@B": 2}, ""),
        ({"r#x@A": 1, "r#x@B": 2}, ["r#x@B", "r#x"], {"r#x@B": 2}, "r#x has scores of several revisions"),
        ({"r#x@A": 1}, ["r#x", "r#x@A"], {"r#x@A": 1}, ""),
        ({"r#x": 1}, ["r#x@A", "r#x@B"], {}, "The score of r#x fits variants of several revisions"),
        ({"r#x": 1}, ["r#x@A"], {"r#x@A": 1}, ""),
        ({"r#x@A": 1}, ["r#x@B"], {}, ""),
    ],
)
def test_revisions_that_leave_it_open_whose_a_score_is_join_nothing(scored, specs, joined, reason):
    kind = ScoreKind("judge", "a test")
    scores = [DictionaryScore(kind, DictionaryName.of_spec(spec), value, "f") for spec, value in scored.items()]
    partners, unclear = partners_of(scores, [DictionaryName.of_spec(spec) for spec in specs])
    assert {str(name): score.value for name, score in partners.items()} == joined
    assert bool(unclear) == bool(reason)
    assert all(reason in sentence for sentence in unclear)


def test_huge_scores_are_in_the_tables_and_not_drawn(out, tmp_path):
    scores = table(tmp_path / "scores.csv", dict(zip(COSTS, (1e308, -1e308, 1, 2, 3, 4), strict=True)))
    report(out, scores, tmp_path / "report")
    assert "judge (scores.csv) has values too large to be drawn" in (tmp_path / "report" / "report.md").read_text()
    assert not (tmp_path / "report" / "figures" / "score-1.svg").exists()
    assert 1e308 in list(pd.read_csv(tmp_path / "report" / "scores.csv")["value"])


def test_of_an_unknown_eval_higher_is_taken_to_be_better(tmp_path):
    (new,) = read_scores(saved(tmp_path / "new.json", result("new_eval", a=1))).scores
    (autointerp,) = read_scores(saved(tmp_path / "known.json", result(autointerp_score=1))).scores
    assert (new.kind.better, autointerp.kind.better) == ("taken to be higher", "higher")


def test_a_loaders_name_stands_at_the_start():
    specs = ("saelens:a#b", "a#b", "/data/aa:1/x", "/data/bb:1/x", "https://aa:1/x")
    assert [str(DictionaryName.of_spec(spec)) for spec in specs] == ["a#b", "a#b", *specs[2:]]


def test_ranks_are_correlated_as_scipy_does():
    rng = np.random.default_rng(1)
    for _ in range(20):
        x, y = rng.integers(0, 6, (2, 12))
        assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)


def test_a_correlation_that_says_nothing_is_undefined_for_a_reason():
    few = rank_correlation([1, 2, 3], [1, 2, 3], ("drop", "score"))
    assert (few.rho, few.reason) == (None, f"fewer than {LEAST} dictionaries")
    same = rank_correlation([1] * 6, range(6), ("drop", "score"))
    assert (same.rho, same.reason) == (None, "the drop of all 6 is the same")


def test_the_interval_holds_the_truth_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(ranks, "DRAWS", 499)
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        x, noise = rng.normal(size=(2, LEAST_FOR_INTERVAL))
        correlation = rank_correlation(list(x), list(0.6 * x + 0.8 * noise), ("drop", "score"))
        truth = 6 / math.pi * math.asin(0.6 / 2)  # Spearman's of the bivariate normal (Pearson 1907)
        held += correlation.low is None or correlation.low <= truth <= (correlation.high or 0)
    assert 0.92 < held / 400 < 0.99


def test_perfect_ranks_have_no_interval():
    correlation = rank_correlation(range(9), range(9), ("drop", "score"))
    assert (correlation.rho, correlation.low, correlation.high) == (pytest.approx(1), None, None)
    assert correlation.reason == "no interval: where all ranks agree, so do all draws"


def test_a_report_holds_scores_against_costs(out, tmp_path):
    scores = table(tmp_path / "scores.csv", {4: 0.9, 8: 0.8, 16: 0.7, 32: 0.6, 64: 0.5, 256: 0.4})
    said = report(out, scores, tmp_path / "report")
    assert "Scores against costs" in said
    assert f"Scored, but no variant here: {RELEASE}#{SITE}.k256." in said.replace("\n", " ")
    assert "Variants without a score: k128." in said.replace("\n", " ")
    frame = pd.read_csv(tmp_path / "report" / "scores.csv")
    assert list(frame["variant"]) == ["k4", "k8", "k16", "k32", "k64"]
    assert list(frame["effective_compute"]) == [COSTS[k][0] for k in (4, 8, 16, 32, 64)]
    assert list(frame["L0"]) == [4, 8, 16, 32, 64]
    assert list(frame["drop"]) == pytest.approx([100 * COSTS[k][1] / 40 for k in (4, 8, 16, 32, 64)])
    for name in ("report.html", "report.md", "appendix.tex"):
        text = (tmp_path / "report" / name).read_text()
        assert "Scores against costs" in text
        assert "Scores of each dictionary" in text
    assert (tmp_path / "report" / "figures" / "score-1.svg").is_file()
    markdown = (tmp_path / "report" / "report.md").read_text()
    row = next(line for line in markdown.splitlines() if line.startswith("| judge | scores.csv"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:4] == ["higher", "5"]
    assert cells[4:7] == [f"{MINUS}0.90", "1.00", f"{MINUS}1.00"]
    assert cells[7] == "no interval: fewer than 8 dictionaries"
    each = [line for line in markdown.splitlines() if line.startswith("| judge (scores.csv)")]
    assert ["effective compute" in line for line in each] == [True, True, False, True, True]


@pytest.mark.parametrize("record", [{"latent_edits": "keep_top=2"}, {"splice_input": "clean"}])
def test_a_score_is_not_joined_to_a_changed_splice_of_its_dictionary(out, tmp_path, record):
    splice = {**SPLICE, "dictionary": f"{RELEASE}#{SITE}.k4"}
    answers = {task: [0] * 40 for task in QUESTIONS}
    write_run(out / "a_changed", answers, fidelity=FIDELITY, splices=[splice], **record)
    scores = table(tmp_path / "scores.csv", {4: 0.9, 8: 0.8})
    report(out, scores, tmp_path / "report")
    assert list(pd.read_csv(tmp_path / "report" / "scores.csv")["variant"]) == ["k4", "k8"]
    for k in COSTS:
        shutil.rmtree(out / f"k{k}")
    with pytest.raises(UserError, match="No variant is a reconstruction by one dictionary as it is"):
        report(out, scores, tmp_path / "other")


def test_an_interval_stands_below_its_correlation_and_the_caption_says_what_it_covers(out, tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "LEAST_FOR_INTERVAL", 5)
    report(out, table(tmp_path / "scores.csv", {4: 0.9, 8: 0.8, 16: 0.7, 32: 0.6, 64: 0.5}), tmp_path / "report")
    markdown = (tmp_path / "report" / "report.md").read_text()
    row = next(line for line in markdown.splitlines() if line.startswith("| judge | scores.csv"))
    assert re.fullmatch(rf"{MINUS}0\.90 \\\[{MINUS}1\.00, [\d.{MINUS}]+\\\]", row.strip("| ").split(" | ")[4])
    assert "no interval: where all ranks agree, so do all draws" in row
    assert "it covers which dictionaries were taken from others like them" in markdown


def test_dictionaries_without_a_cost_are_counted(out, tmp_path):
    (file,) = (out / "k128").glob("*/results_*.json")
    content = json.loads(file.read_text())
    del content["results"]["sae_fidelity"]["effective_compute,none"]
    file.write_text(json.dumps(content))
    report(out, table(tmp_path / "scores.csv", dict(zip(COSTS, (0.9, 0.7, 0.8, 0.5, 0.6, 0.4), strict=True))), tmp_path)
    lines = (tmp_path / "report.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith("| judge | scores.csv"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[3] == "6"
    assert [cell.partition(" ")[2] for cell in cells[4:7]] == ["n = 5", "", ""]


def test_what_is_no_plain_file_is_not_read(tmp_path):
    saved(tmp_path / "a.json", result(autointerp_score=0.5))
    os.mkfifo(tmp_path / "b.json")
    (tmp_path / "c.csv").mkdir()
    assert len(read_scores(tmp_path).scores) == 1


def test_fewer_than_five_dictionaries_have_no_correlation_but_their_values(out, tmp_path):
    report(out, table(tmp_path / "scores.csv", {4: 0.9, 8: 0.8}), tmp_path / "report")
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "fewer than 5 dictionaries" in markdown
    assert len(pd.read_csv(tmp_path / "report" / "scores.csv")) == 2


def test_scores_of_other_dictionaries_are_refused_before_anything_is_written(out, tmp_path):
    scores = table(tmp_path / "scores.csv", {5: 0.9})
    with pytest.raises(UserError, match=rf"the scores are of {RELEASE}#{SITE}.k5; the variants of .*k4,.*and 3 more"):
        report(out, scores, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_the_example_has_the_embedded_worlds_dictionaries():
    score_set = read_scores(EXAMPLE)
    assert len(score_set.scores) == 9
    assert {score.dictionary.release for score in score_set.scores} == {"world"}
    for path in EXAMPLE.glob("*.json"):
        assert "Synthetic values" in json.loads(path.read_text())["eval_result_unstructured"]["note"]
