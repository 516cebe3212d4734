"""Equivalent compute by tasks: the inversion where the curve is known, its refusals and bounds."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import jsonschema
import numpy as np
import pandas as pd
import pytest
from runs import answers, curve, write_run

from sae_lm_eval import schema
from sae_lm_eval.capability.family import COLUMNS, NAME, category_curves, cut_scores, equivalents, read_task_family
from sae_lm_eval.capability.inversion import FamilyScores, equivalent_compute
from sae_lm_eval.capability.published_scores import drawn_drops, published_equivalents
from sae_lm_eval.comparison.compare import paired_comparison
from sae_lm_eval.errors import UserError
from sae_lm_eval.report import assemble, writer
from sae_lm_eval.report.capability_figure import capability_pictures
from sae_lm_eval.report.capability_tables import equivalents_of
from sae_lm_eval.report.findings import findings
from sae_lm_eval.report.formatting import significant
from sae_lm_eval.runs.members import Member
from sae_lm_eval.runs.task_family import measure_tasks

COMPUTE = np.geomspace(0.01, 1, 9)


def ability(compute):
    """Of a model that was trained on a share of the compute: between guessing and knowing."""
    return 1.2 * np.log(compute) + 2.0


def family_scores(fraction, rng, *, documents=400, noise=0.0, ability=ability, kind="accuracy"):
    """Answers of the models, and of one as good as that trained on `fraction`: right or wrong, or margins in nats."""
    difficulty = rng.normal(0, 1.5, documents)
    abilities = np.append(ability(COMPUTE), ability(fraction))
    margins = abilities[:, None] - difficulty + rng.normal(0, 1, (len(abilities), documents))
    if kind == "accuracy":
        guessed = rng.random(margins.shape) < 0.25
        margins = np.where(margins > 0, 1.0, guessed.astype(float))
    weights = np.full(documents, 1 / documents)
    return FamilyScores(COMPUTE, margins[:-1], len(COMPUTE) - 1, margins[-1], weights, [np.arange(documents)])


def test_no_drop_is_the_whole_compute_to_the_bit():
    scores = family_scores(0.3, np.random.default_rng(0))
    same = FamilyScores(scores.compute, scores.members, scores.own, scores.members[-1], scores.weights, scores.strata)
    assert equivalent_compute(same).fraction == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["accuracy", "margin"])
@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.6])
def test_intervals_hold_the_known_fraction(fraction, kind):
    rng = np.random.default_rng([7, round(100 * fraction)])
    trials = [equivalent_compute(family_scores(fraction, rng, kind=kind), draws=200, rng=rng) for _ in range(150)]
    low, high = (
        np.array([getattr(trial, end) or fill for trial in trials]) for end, fill in (("low", 0), ("high", math.inf))
    )
    held = np.mean((low <= fraction) & (fraction <= high))
    assert 0.90 <= held <= 0.98, held
    logs = [math.log(trial.fraction / fraction) for trial in trials if trial.fraction]
    assert len(logs) >= 145
    assert abs(np.median(logs)) < 0.15


def test_a_flat_curve_is_refused():
    flat = family_scores(0.3, np.random.default_rng(1), ability=lambda compute: np.full_like(compute, 1.0, dtype=float))
    equivalent = equivalent_compute(flat)
    assert equivalent.fraction is None
    assert equivalent.reason.startswith("flat curve")


def test_beyond_the_curves_ends_there_is_a_bound():
    scores = family_scores(1e-4, np.random.default_rng(2), kind="margin")
    equivalent = equivalent_compute(scores)
    assert (equivalent.fraction, equivalent.bound) == (None, "< 0.01")
    better = FamilyScores(
        scores.compute, scores.members, scores.own, scores.members[-1] + 1, scores.weights, scores.strata
    )
    assert equivalent_compute(better).bound == "> 1"


def test_too_little_is_refused():
    scores = family_scores(0.3, np.random.default_rng(3))
    two = FamilyScores(COMPUTE[-2:], scores.members[-2:], 1, scores.spliced, scores.weights, scores.strata)
    assert equivalent_compute(two).reason == "a curve needs 3 models, and 2 were measured"


def test_scores_that_fall_on_the_way_are_pooled_and_told():
    scores = family_scores(0.3, np.random.default_rng(4), kind="margin")
    members = scores.members[[0, 2, 1, *range(3, 9)]]
    equivalent = equivalent_compute(FamilyScores(COMPUTE, members, 8, scores.spliced, scores.weights, scores.strata))
    assert "falls with compute at 1 of 8 steps" in equivalent.flags[0]


def test_documents_that_belong_together_are_resampled_as_one():
    scores = family_scores(0.3, np.random.default_rng(0))
    twice = {name: np.repeat(getattr(scores, name), 2, axis=-1) for name in ("members", "spliced", "weights")}
    twice["weights"] = twice["weights"] / 2
    count = len(scores.weights)
    doubled = replace(scores, **twice, strata=[np.arange(2 * count)], sets=np.repeat(np.arange(count), 2).astype(str))
    once, together = equivalent_compute(scores, rng=0), equivalent_compute(doubled, rng=0)
    alone = equivalent_compute(replace(doubled, sets=None), rng=0)
    assert together.fraction == pytest.approx(once.fraction)
    assert [np.log(together.low), np.log(together.high)] == pytest.approx(
        [np.log(once.low), np.log(once.high)], rel=0.1
    )
    assert np.log(together.high / together.low) > 1.25 * np.log(alone.high / alone.low)
    few = replace(doubled, sets=np.repeat(np.arange(9), 2 * count // 9 + 1)[: 2 * count].astype(str))
    assert equivalent_compute(few).reason == "9 sets of documents are too few to be resampled"


def test_sets_of_documents_reach_the_family(family):
    comparison = paired_comparison(family / "baseline", [family / "k4"], docs_by="text")
    (measured,) = {
        id(entry.scores.sets): entry for entry in cut_scores(comparison, read_task_family(family / NAME))[:1]
    }.values()
    assert len(set(measured.scores.sets)) == 100


@pytest.fixture
def family(tmp_path):
    """A run of 100 questions and a family that knows 40, 60, 80 and, as the original, 90 of them; k4 knows 70."""
    rights = {"baseline": 90, "k4": 70, "a": 40, "b": 60, "c": 80}
    for name, right in rights.items():
        where = tmp_path / "out" if name in ("baseline", "k4") else tmp_path
        record = {"splice": "none" if name == "baseline" else "reconstruction"}
        write_run(
            where / name, answers({"task": [1.0] * right + [0.0] * (100 - right)}), config={"sae_lm_eval": record}
        )
    rows = [
        "model,results,flops",
        "gpt2,baseline,1e18",
        *(f"{n},../{n},{c}" for n, c in zip("abc", (1e16, 1e17, 5e17), strict=True)),
    ]
    (tmp_path / "out" / NAME).write_text("\n".join(rows) + "\n")
    return tmp_path / "out"


def test_a_run_is_placed_on_its_family(family):
    comparison = paired_comparison(family / "baseline", [family / "k4"])
    frame = equivalents(cut_scores(comparison, read_task_family(family / NAME)))
    row = frame[(frame["section"] == "task") & (frame["measure"] == "score")].iloc[0]
    assert row["drop"] == pytest.approx(0.2)
    assert 1e17 / 1e18 < row["fraction"] < 5e17 / 1e18
    assert row["low"] < row["fraction"] < row["high"]
    table = findings(comparison).table()
    overall = frame[frame["section"] == "overall"].iloc[0]
    assert table.iloc[-1]["equivalent compute"] == overall["fraction"]
    assert table.iloc[-1]["equivalent compute low"] == overall["low"]
    files = writer.files(assemble.build(comparison))
    rows = pd.read_csv(io.BytesIO(files["equivalents.csv"]))
    assert list(rows.columns) == [*COLUMNS, "schema"] == list(schema.schema("equivalents")["properties"])
    for record in json.loads(rows.to_json(orient="records")):
        jsonschema.validate(record, schema.schema("equivalents"))
    written = rows[(rows["section"] == "task") & (rows["measure"] == "score")].iloc[0]
    assert written["fraction"] == pytest.approx(row["fraction"])
    assert "figures/equivalent-compute.svg" in files
    for name in ("report.html", "report.md", "appendix.tex"):
        text = files[name].decode()
        assert "Equivalent compute" in text
        assert significant(row["fraction"], 2) in text


def test_a_variant_falls_on_the_curve_where_its_score_is(family):
    comparison = paired_comparison(family / "baseline", [family / "k4"])
    measured = cut_scores(comparison, read_task_family(family / NAME))
    (curve,) = [curve for curve in category_curves(measured) if curve.section == "task"]
    assert curve.share == pytest.approx((0.01, 0.1, 0.5, 1))
    (variant,) = curve.variants
    assert [share for share, _ in curve.knots] == pytest.approx([0.01, 0.1, 0.5, 1])
    assert len(capability_pictures([curve], {variant: "k4"})) == 1


def test_a_run_at_chance_has_no_fraction_by_score(tmp_path):
    """Four choices, of which the original and every model of the family get a quarter right."""
    for name, seed in (("baseline", 0), ("k4", 1), ("a", 2), ("b", 3)):
        right = np.random.default_rng(seed).random(200) < 0.25
        record = {"splice": "none" if name == "baseline" else "reconstruction"}
        write_run(tmp_path / name, answers({"task": right.astype(float).tolist()}), config={"sae_lm_eval": record})
    rows = ["model,results,flops", "gpt2,baseline,1e18", "a,a,1e16", "b,b,1e17"]
    (tmp_path / NAME).write_text("\n".join(rows) + "\n")
    comparison = paired_comparison(tmp_path / "baseline", [tmp_path / "k4"])
    frame = equivalents(cut_scores(comparison, read_task_family(tmp_path / NAME)))
    by_score = frame[frame["measure"] == "score"]
    assert len(by_score) == 2
    assert (by_score["reason"] == "the original itself is not clearly above chance").all()
    assert by_score["fraction"].isna().all()
    by_margin = frame[frame["measure"] != "score"]
    assert by_margin["reason"].str.startswith("flat curve").all()


def test_a_family_of_something_else_is_refused_in_a_sentence(family):
    comparison = paired_comparison(family / "baseline", [family / "k4"])
    file = family / NAME
    text = file.read_text()
    file.write_text(text.replace("gpt2,", "gpt3,"))
    with pytest.raises(UserError, match="lacks the run's own model, gpt2"):
        equivalents(cut_scores(comparison, read_task_family(file)))
    write_run(family.parent / "d", answers({"task": [1.0] * 100}), shots=5)
    file.write_text(text + "d,../d,2e17\n")
    with pytest.raises(UserError, match=r"none of this run.* differ in the shots of task: 0 and 5"):
        equivalents(cut_scores(comparison, read_task_family(file)))
    assert "differ in the shots" in equivalents_of(comparison).notes[0]
    assert "differ in the shots" in writer.files(assemble.build(comparison))["report.md"].decode()
    others = answers({"task": [1.0] * 100})
    for sample in others["task"]:
        sample["prompt_hash"] = sample["prompt_hash"][::-1]
    write_run(family.parent / "e", others)
    file.write_text(text + "e,../e,2e17\n")
    with pytest.raises(UserError, match=r"none of this run.* prompt"):
        equivalents(cut_scores(comparison, read_task_family(file)))
    write_run(family.parent / "f", answers({"task": [1.0] * 60}))
    file.write_text(text + "f,../f,2e17\n")
    with pytest.raises(UserError, match=r"none of this run"):
        equivalents(cut_scores(comparison, read_task_family(file)))
    file.write_text("model,results\ngpt2,baseline\n")
    with pytest.raises(UserError, match="need a column flops, or params and tokens"):
        read_task_family(file)
    file.write_text(text.replace("1e+16", "-1"))
    with pytest.raises(UserError, match="a has no usable FLOPs"):
        read_task_family(file)


def test_tasks_are_asked_as_a_run_was(tmp_path):
    for given in ({}, {"like": tmp_path, "task": "wikitext"}):
        with pytest.raises(UserError, match="--tasks asks what the run --like was asked"):
            curve(models="gpt2", tasks=True, **given)
    with pytest.raises(UserError, match="is no folder that `sae-lm-eval run` wrote"):
        curve(models="world", tasks=True, like=tmp_path)


def test_a_text_of_the_users_is_asked_of_the_family(tmp_path, monkeypatch):
    own = {"model_num_parameters": 1000}
    for name in ("baseline", "k4"):
        write_run(tmp_path / "run" / name, answers({"sums": [0.5] * 4}), config=own)
    text = {"sae_fidelity_text": {"file": "mine.txt"}}
    model = {"pretrained": "world", "dtype": "float32"}
    record = {"model_args": model, "tasks": "sae_fidelity_text", "metadata": {**model, **text}}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    calls = []

    def evaluate(sweep, config, folder):
        calls.append((sweep, config))
        raise UserError("asked")

    monkeypatch.setattr("sae_lm_eval.runs.task_family.evaluate", evaluate)
    with pytest.raises(UserError, match="asked"):
        measure_tasks([Member("world", "step2616")], tmp_path / "run")
    ((sweep, config),) = calls
    assert sweep.settings["metadata"] == text
    assert config.metadata["sae_fidelity_text"] == {"file": "mine.txt"}
    assert config.metadata["pretrained"] != "world"


def pythia_run(folder, model, task, right, shots=0):
    """Of 400 questions the original gets `right[0]` right and the variant `right[1]`."""
    for name, count in zip(("baseline", "k4"), right, strict=True):
        record = {"splice": "none" if name == "baseline" else "reconstruction"}
        answered = answers({task: [1.0] * count + [0.0] * (400 - count)})
        write_run(folder / name, answered, config={"sae_lm_eval": record}, model=f"EleutherAI/{model}", shots=shots)
    return paired_comparison(folder / "baseline", [folder / "k4"])


def test_published_accuracies_place_a_drop_on_the_training(tmp_path):
    comparison = pythia_run(tmp_path, "pythia-1.4b", "sciq", (346, 280))  # .865 to .700, as after 3000 of 143000 steps
    (row,) = published_equivalents(comparison).to_dict("records")
    assert row["fraction"] == pytest.approx(3 / 143, rel=0.05)
    assert row["low"] < row["fraction"] < row["high"] < 0.1
    text = writer.files(assemble.build(comparison))["report.md"].decode()
    assert "Equivalent compute by published scores" in text
    assert "on other prompts than today" in text


def test_a_drop_is_drawn_by_the_two_sides_of_its_interval():
    drawn = drawn_drops(0.02, 0.015, 0.06, 0.95, 200_000, np.random.default_rng(0))
    assert np.quantile(drawn, [0.025, 0.5, 0.975]) == pytest.approx([0.015, 0.02, 0.06], rel=0.02)
    assert set(drawn_drops(0.02, float("nan"), float("nan"), 0.95, 5, np.random.default_rng(0))) == {0.02}


def test_a_published_curve_that_is_flat_is_refused(tmp_path):
    (row,) = published_equivalents(pythia_run(tmp_path, "pythia-70m", "logiqa", (92, 85))).to_dict("records")
    assert row["reason"].startswith("flat curve")
    assert row["fraction"] is None or np.isnan(row["fraction"])


def test_no_other_model_nor_shots_have_published_accuracies(tmp_path):
    assert published_equivalents(pythia_run(tmp_path / "a", "pythia-1.4b", "sciq", (346, 280), shots=5)).empty
    assert published_equivalents(pythia_run(tmp_path / "b", "gpt2", "sciq", (346, 280))).empty
