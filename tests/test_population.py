"""Intervals over tasks and sets of documents, tasks at chance, detectable drops, and the one table by command."""

from __future__ import annotations

import io
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from runs import answers, question, write_run
from scipy import stats
from typer.testing import CliRunner

from sae_lm_eval.cli.main import app
from sae_lm_eval.comparison.clusters import by_cluster, degrees_of_freedom, interval_over_clusters
from sae_lm_eval.comparison.compare import paired_comparison
from sae_lm_eval.comparison.floor import above_chance_p
from sae_lm_eval.comparison.pairs import NONE_RIGHT
from sae_lm_eval.comparison.power import detectable_drop
from sae_lm_eval.errors import UserError
from sae_lm_eval.report import assemble
from sae_lm_eval.report.drop_tables import overall_tables
from sae_lm_eval.report.headline import headline


def test_with_equal_weights_it_is_students_interval():
    drops = np.random.default_rng(0).normal(3, 5, 12)
    usual = stats.ttest_1samp(drops, 0).confidence_interval(0.95)
    assert interval_over_clusters(drops, np.full(12, 7.0), level=0.95) == pytest.approx((usual.low, usual.high))


def test_the_variance_is_unbiased_whatever_the_weights():
    rng, weights = np.random.default_rng(0), np.array([1.0, 1, 2, 3, 5, 8, 13])
    draws = rng.normal(size=(4000, len(weights)))
    share = weights / weights.sum()
    own = 1 - 2 * share + share @ share
    means = draws @ share
    variances = ((draws - means[:, None]) ** 2) @ (share**2 / own)
    assert variances.mean() == pytest.approx(share @ share, rel=0.03)
    held = [low <= 0 <= high for low, high in (interval_over_clusters(drops, weights, level=0.95) for drops in draws)]
    assert np.mean(held) > 0.94, "with weights so unequal it covers more than it says"


@pytest.mark.parametrize(("drops", "weights"), [([1.0], [1]), ([2.0, 2.0, 2.0], [1, 2, 3]), ([1.0, 2.0], [1, 0])])
def test_no_interval_where_nothing_varies(drops, weights):
    assert np.isnan(interval_over_clusters(drops, weights, level=0.95)).all()


def test_a_set_may_lie_in_several_tasks():
    changes, labels = [np.array([1.0, 0.0]), np.array([0.0, -1.0, 1.0])], [np.array(["a", "b"]), np.array(["b"] * 3)]
    drops, weights = by_cluster(changes, [0.5, 0.5], labels)
    assert weights == pytest.approx([0.25, 0.75])
    assert float(drops @ weights) == pytest.approx(0.5 * 0.5 + 0.5 * 0.0)


@pytest.mark.parametrize(("n", "changed"), [(200, 0.0), (1000, 0.1), (5000, 0.3)])
def test_a_detectable_drop_is_seen_four_times_in_five(n, changed):
    drop = detectable_drop([1.0], [changed * n], [n])
    share = max(changed, drop)
    counts = np.random.default_rng(0).multinomial(n, [(share + drop) / 2, (share - drop) / 2, 1 - share], size=2000)
    p = stats.binom.cdf(counts[:, :2].min(1), counts[:, :2].sum(1), 0.5) * 2
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.06)


def test_so_few_questions_show_no_drop():
    assert np.isnan(detectable_drop([1.0], [1], [3]))


@pytest.fixture
def out(tmp_path):
    """Eleven tasks of 100 questions, of which the last is at chance, in two groups, and a control."""
    rng = np.random.default_rng(0)
    right = {f"t{index}": rng.binomial(1, 0.25 if index == 10 else 0.8, 100).tolist() for index in range(11)}
    groups = {
        "stem": ([f"t{index}" for index in range(6)], "sized"),
        "arts": ([f"t{i}" for i in range(6, 11)], "sized"),
    }
    splices = {"k4": "reconstruction", "zero": "zero"}
    for name, keeps in (("baseline", 1.0), ("k4", 0.9), ("zero", 0.4)):
        kept = {task: [answer * rng.binomial(1, keeps) for answer in values] for task, values in right.items()}
        config = {"sae_lm_eval": {"splice": splices[name], "splices": []}} if name in splices else None
        write_run(tmp_path / name, answers(kept), groups=groups, config=config)
    return tmp_path


def test_a_task_at_chance_is_no_part_of_overall(out):
    comparison = paired_comparison(out / "baseline", [out / "k4"])
    overall = comparison.drops.query("section == 'overall'").iloc[0]
    assert (overall["tasks"], overall["n"]) == (10, 1000)
    assert any("leaves out 1 of 11 tasks" in note and note.endswith("t10.") for note in comparison.notes)
    (everything,) = [cut for cut in comparison.cuts if cut.section == "overall"]
    assert everything.tasks == [f"t{number}" for number in range(10)], "of equivalent compute and the ruler too"
    tasks = comparison.drops.query("section == 'task' and name != 't10'")
    usual = stats.ttest_1samp(tasks["drop"], 0).confidence_interval(0.95)
    assert (overall["tasks_low"], overall["tasks_high"]) == pytest.approx((usual.low, usual.high))
    assert comparison.drops.query("section == 'group'")["tasks_low"].isna().all(), "fewer than ten tasks"


@pytest.mark.parametrize("per_set", [1, 4, 10])
def test_a_task_with_nothing_right_is_no_part_of_overall_whatever_its_sets_are(tmp_path, per_set):
    """A task of texts that are written has no chance of guessing right, so that nothing is tested over sets."""
    rng = np.random.default_rng(0)
    for name, keeps in (("baseline", 1.0), ("k4", 0.8)):
        samples = {
            task: [question(task, i, right * rng.binomial(1, keeps), rng, f"p{i // per_set}") for i in range(100)]
            for task, right in (("some", 1), ("none", 0))
        }
        samples["none"] = [{**line, "filtered_resps": ["a text"]} for line in samples["none"]]
        write_run(tmp_path / name, samples)
    comparison = paired_comparison(tmp_path / "baseline", [tmp_path / "k4"], docs_by="subject")
    overall = comparison.drops.query("section == 'overall'").iloc[0]
    assert overall["tasks"] == 1
    assert any(note.endswith("answers nothing right: none.") for note in comparison.notes)


def test_documents_of_a_passage_belong_together(tmp_path):
    rng = np.random.default_rng(0)
    for name, wrong in (("baseline", ()), ("k4", (0, 1, 2))):
        samples = {"one": [question("one", i, float(i // 5 not in wrong), rng, f"p{i // 5}") for i in range(100)]}
        write_run(tmp_path / name, samples)
    alone, together = (
        paired_comparison(tmp_path / "baseline", [tmp_path / "k4"], docs_by=field).drops.iloc[0]
        for field in (None, "subject")
    )
    assert [alone["drop"], together["drop"]] == pytest.approx([15.0, 15.0])
    assert together["interval"] == "cluster-robust, by subject"
    assert together["high"] - together["low"] > 1.8 * (alone["high"] - alone["low"])
    assert together["p"] == pytest.approx(0.25, abs=0.02), "three sets that all lost"
    with pytest.raises(UserError, match=r"no document has a field 'subjet'[.] Did you mean 'subject'"):
        paired_comparison(tmp_path / "baseline", [tmp_path / "k4"], docs_by="subjet")


def test_a_document_that_is_there_twice_says_no_more_than_once(tmp_path):
    rows = {}
    for copies in (1, 2):
        for name, wrong in (("baseline", 0.2), ("k4", 0.4)):
            rng, draws = np.random.default_rng(len(name)), np.random.default_rng([7, len(name)])
            lines = [question("one", i, float(draws.random() > wrong), rng, f"p{i}") for i in range(60)]
            lines = [{**line, "doc_id": copies * i + copy} for i, line in enumerate(lines) for copy in range(copies)]
            write_run(tmp_path / str(copies) / name, {"one": lines})
        folder = tmp_path / str(copies)
        by = {
            field: paired_comparison(folder / "baseline", [folder / "k4"], docs_by=field) for field in (None, "subject")
        }
        rows |= {(copies, field): comparison.drops.iloc[0] for field, comparison in by.items()}
    once, twice, ignored = rows[1, "subject"], rows[2, "subject"], rows[2, None]
    for name in ("low", "high", "margin_low", "margin_high", "above_chance_low", "above_chance_high", "detectable"):
        assert twice[name] == pytest.approx(once[name]), name
    for low, high in (("margin_low", "margin_high"), ("above_chance_low", "above_chance_high")):
        assert twice[high] - twice[low] > 1.3 * (ignored[high] - ignored[low])
        assert once[high] - once[low] == pytest.approx(rows[1, None][high] - rows[1, None][low], rel=0.1)
    assert twice["detectable"] > 1.3 * ignored["detectable"]
    assert once["detectable"] == pytest.approx(rows[1, None]["detectable"], rel=0.15)


def test_the_test_against_chance_counts_sets():
    """Of answers that are alike in a set, more are right by luck; a set each is the exact binomial test."""
    rng, chance = np.random.default_rng(0), 0.25
    right = (rng.random(40) < 0.4).astype(float)
    alone = above_chance_p(right, np.full(40, chance), np.arange(40))
    assert alone == pytest.approx(stats.binomtest(int(right.sum()), 40, chance, alternative="greater").pvalue)
    rejected = [
        above_chance_p(np.repeat((rng.random(40) < chance).astype(float), 10), np.full(400, chance), labels)
        for labels in [np.repeat(np.arange(40), 10)]
        for _ in range(400)
    ]
    assert np.mean(np.array(rejected) < 0.05) < 0.09
    assert above_chance_p(np.ones(20), np.full(20, chance), np.repeat([0, 1], 10)) == pytest.approx(chance**2)


def test_a_task_that_generates_nothing_right_is_at_the_floor(tmp_path):
    rng = np.random.default_rng(0)
    for name, share in (("baseline", 0.8), ("k4", 0.5)):
        samples = {
            "choices": [question("choices", i, float(rng.random() < share), rng) for i in range(200)],
            "texts": [{**question("texts", i, 0.0, rng), "target": "x", "filtered_resps": ["y"]} for i in range(200)],
        }
        write_run(tmp_path / name, samples)
    comparison = paired_comparison(tmp_path / "baseline", [tmp_path / "k4"])
    rows = comparison.drops.set_index(["section", "name"])
    assert rows.loc[("task", "texts"), "above_chance_reason"] == NONE_RIGHT
    assert (rows.loc[("overall", "overall"), "tasks"], rows.loc[("overall", "overall"), "n"]) == (1, 200)
    assert any("answers nothing right: texts." in note for note in comparison.notes)
    output = " ".join(CliRunner().invoke(app, ["table", str(tmp_path), "--by", "task"]).output.split())
    assert "0.0\N{DOUBLE DAGGER}" in output
    assert "\N{DOUBLE DAGGER} the baseline answers nothing right: it has nothing to lose there." in output


def test_no_drop_can_be_seen_that_is_more_than_the_baseline_has(tmp_path):
    right = {"baseline": [1.0, 1.0] + [0.0] * 38, "k4": [1.0, 0.0] + [0.0] * 38}
    for name, scores in right.items():
        write_run(tmp_path / name, answers({"one": scores}))
    comparison = paired_comparison(tmp_path / "baseline", [tmp_path / "k4"])
    assert np.isnan(comparison.drops["detectable"]).all()
    shaped = assemble.shape(comparison)
    (table,) = overall_tables(shaped.rows, shaped.significance)
    assert "n/a: more than the baseline has to lose" in table.caption


def test_sets_that_lost_alike_do_not_tell_what_would_be_seen(tmp_path):
    for name in ("baseline", "same"):
        write_run(tmp_path / name, answers({"one": [1.0] * 30 + [0.0] * 10, "two": [1.0] * 40}))
    comparison = paired_comparison(tmp_path / "baseline", [tmp_path / "same"], docs_by="text")
    shaped = assemble.shape(comparison)
    (table,) = overall_tables(shaped.rows, shaped.significance)
    assert "n/a: the sets of documents do not differ in what they lost." in table.caption
    assert "more than the baseline" not in table.caption
    said = " ".join(headline(comparison, shaped.summary()))
    assert "The smallest drop that these questions can detect is unknown: the sets of documents do not differ" in said
    assert "loses most" not in said
    assert "too few" not in said


def test_many_sets_take_no_room_for_each_pair_of_them():
    drops, weights = np.random.default_rng(0).normal(size=200_000), np.random.default_rng(1).gamma(2, size=200_000)
    low, high = interval_over_clusters(drops, weights, level=0.95)
    share = weights / weights.sum()
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(share**2 @ (drops - share @ drops) ** 2), rel=1e-3)


def freedom_of_the_matrix(weights):
    """Squared trace over squared norm, in fractions."""
    weights = [Fraction(weight) for weight in weights]
    share = [weight / sum(weights) for weight in weights]
    square = sum(weight**2 for weight in share)
    scale = [weight**2 / (1 - 2 * weight + square) for weight in share]
    norm = sum(
        a * b * ((i == j) - v - w + square) ** 2
        for i, (a, v) in enumerate(zip(scale, share, strict=True))
        for j, (b, w) in enumerate(zip(scale, share, strict=True))
    )
    return float(square**2 / norm)


@given(st.lists(st.integers(1, 20) | st.floats(-7, 7).map(lambda power: 10.0**power), min_size=2, max_size=25))
@example([1e5] + 20 * [1])
@example([5e4] + 10 * [1])
@example([1e10] + 20 * [1])
@example([1e10, 1e10] + 5 * [1])
@example([1e9, 1e5, 1])
@example([1, 1])
def test_the_degrees_of_freedom_are_those_of_the_whole_matrix(weights):
    share = np.array(weights, dtype=float)
    freedom = degrees_of_freedom(share / share.sum())
    assert freedom == pytest.approx(freedom_of_the_matrix(weights), rel=1e-9)
    assert 1 <= freedom <= len(weights) - 1


@pytest.mark.parametrize("heavy", [1e3, 1e5, 1e7, 1e10])
def test_the_interval_of_a_cluster_with_nearly_all_documents_is_that_of_exact_arithmetic(heavy):
    drops, weights = np.random.default_rng(0).normal(size=21), np.array([heavy] + 20 * [1.0])
    share, exact = [Fraction(weight) / Fraction(weights.sum()) for weight in weights], list(map(Fraction, drops))
    mean, square = sum(w * d for w, d in zip(share, exact, strict=True)), sum(w**2 for w in share)
    variance = sum(w**2 / (1 - 2 * w + square) * (d - mean) ** 2 for w, d in zip(share, exact, strict=True))
    low, high = interval_over_clusters(drops, weights, level=0.9)
    half = stats.t.ppf(0.95, freedom_of_the_matrix(weights)) * np.sqrt(float(variance))
    assert [low, high] == pytest.approx([float(mean) - half, float(mean) + half], rel=1e-9)


def run_table(out, *options):
    result = CliRunner().invoke(app, ["table", str(out), *options])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_table_in_each_format(out):
    frame = pd.read_csv(io.StringIO(run_table(out, "--format", "csv")))
    assert list(frame["variant"]) == ["baseline", "k4", "zero"]
    drops = paired_comparison(out / "baseline", [out / "k4", out / "zero"]).drops
    names = {"k4": drops["variant"].unique()[0], "zero": drops["variant"].unique()[1]}
    for variant, name in names.items():
        for group in ("stem", "arts"):
            row = drops[(drops["variant"] == name) & (drops["name"] == group)].iloc[0]
            cells = frame.set_index("variant").loc[variant]
            assert [cells[group], cells[f"{group} low"], cells[f"{group} high"]] == row[
                ["drop", "low", "high"]
            ].tolist()
    lines = run_table(out, "--format", "markdown").splitlines()
    assert lines[0] == "| variant | stem | arts | overall |"
    assert [line.split("|")[1].strip() for line in lines[2:5]] == ["baseline", "k4", "zero"]
    tex = run_table(out, "--format", "latex")
    assert tex.count(r"\midrule") == 3, "controls are set apart"
    assert r"{\scriptsize {}[" in tex


def test_the_order_is_lm_evals_or_that_of_the_drops(out):
    rows = (run_table(out, "--by", "task", "--format", "csv", *more) for more in ((), ("--sort", "drop")))
    plain, sorted_by_drop = (pd.read_csv(io.StringIO(row)) for row in rows)
    assert [column for column in plain.columns if column.startswith("t") and " " not in column] == [
        f"t{i}" for i in range(11)
    ]
    tasks = [column for column in sorted_by_drop.columns if column.startswith("t") and " " not in column]
    of_reconstruction = sorted_by_drop.set_index("variant").loc["k4", tasks]
    assert of_reconstruction.is_monotonic_decreasing, "a control has no say"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--by", "subject"], "by 'subject' is unknown"),
        (["--by", "category"], "nothing to show by category: give --categories FILE; --by group or --by task or"),
        (["--format", "html"], "format 'html' is unknown"),
        (["--sort", "size"], "sort 'size' is unknown"),
    ],
)
def test_mistakes_are_told(out, options, says):
    result = CliRunner().invoke(app, ["table", str(out), *options])
    assert isinstance(result.exception, UserError)
    assert says in str(result.exception)
