"""Edits as a ruler: the look-up where the ladder is known, its refusals and bounds, and the report's sentence."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from runs import answers, question, write_run

from sae_lm_eval.capability import ruler as ruler_module
from sae_lm_eval.capability.ruler import SCALES, Ladder, ladders_of, ruled, ruler, ruler_by_category
from sae_lm_eval.comparison.compare import paired_comparison
from sae_lm_eval.errors import UserError
from sae_lm_eval.report import assemble, ruler_tables, writer
from sae_lm_eval.runs.sweep import LADDERS, variant_requests
from sae_lm_eval.splicing.edit_spec import edit_of

SHARES = tuple(round(0.05 * number, 2) for number in range(1, 17))
COUNT = 200


def ladder(kind, values):
    return Ladder(kind, {}, SCALES[kind][0], dict.fromkeys(values, ()))


def costs(strengths, rng, *, seeds=1, spread=0.0):
    """(seeds, documents) of edits of these strengths, whose cost in nats/token is 2 strength^2.

    A document matters as much to each of them; what a seed has drawn moves all documents.
    """
    matters = rng.gamma(4, 0.25, COUNT)
    moved = [np.exp(spread * rng.normal(size=(seeds, 1))) for _ in strengths]
    noise = [rng.gamma(20, 1 / 20, (seeds, COUNT)) for _ in strengths]
    return [2 * s**2 * m * matters * n / COUNT for s, m, n in zip(strengths, moved, noise, strict=True)]


def ruled_ladder(strengths, own, kind="prune", **kwargs):
    rungs = costs((*strengths, own), np.random.default_rng(0), **kwargs)
    return ruled(ladder(kind, strengths), rungs[:-1], rungs[-1][0], [np.arange(COUNT)])


def test_what_is_a_rung_costs_what_the_rung_does():
    rungs = costs(SHARES, np.random.default_rng(0))
    estimate = ruled(ladder("prune", SHARES), rungs, rungs[7][0], [np.arange(COUNT)])
    assert (estimate.strength, estimate.low, estimate.high) == pytest.approx((0.4, 0.4, 0.4))


@pytest.mark.slow
@pytest.mark.parametrize(("strength", "seeds", "spread"), [(0.17, 1, 0), (0.33, 1, 0), (0.58, 1, 0), (0.33, 3, 0.05)])
def test_intervals_hold_the_known_strength(strength, seeds, spread):
    rng, estimates = np.random.default_rng([3, seeds, round(100 * strength)]), []
    for _ in range(200):
        *rungs, own = costs((*SHARES, strength), rng, seeds=seeds, spread=spread)
        # A dictionary has no seed of its own.
        own = own[0] / np.exp(0) if not spread else costs((strength,), np.random.default_rng(rng.integers(2**32)))[0][0]
        estimates.append(ruled(ladder("prune", SHARES), rungs, own, [np.arange(COUNT)], draws=200, rng=rng))
    held = np.mean([estimate.low <= strength <= estimate.high for estimate in estimates])
    assert held >= 0.90, held
    assert abs(np.median([estimate.strength / strength - 1 for estimate in estimates])) < 0.02


def test_what_costs_nothing_is_no_edit_and_what_costs_more_has_a_bound():
    assert ruled_ladder(SHARES, 0.0).strength == 0
    assert ruled_ladder(SHARES, 1.2).bound == "more than 0.8"
    rungs = costs((0.1, 0.5, 0.8), np.random.default_rng(1))
    bits = ladder("quantize", (8.0, 4.0, 3.0))
    assert ruled(bits, rungs, rungs[0][0] / 10, [np.arange(COUNT)]).bound == "more than 8"
    assert ruled(bits, rungs, 2 * rungs[2][0], [np.arange(COUNT)]).bound == "less than 3"
    between = ruled(bits, rungs, (rungs[1][0] + rungs[2][0]) / 2, [np.arange(COUNT)])
    assert between.strength == pytest.approx(3.5, abs=0.1)
    assert 3 <= between.high <= between.low <= 4  # a cost that is greater is one of fewer bits


@pytest.mark.parametrize(
    ("kind", "low", "high", "bounds"),
    [
        ("prune", 0.3, 0.4, "30% to 40%"),
        ("prune", 0.3, None, "30% or more"),
        ("quantize", 4.0, 3.0, "3.0 to 4.0"),
        ("quantize", 4.0, None, "up to 4.0"),
        ("quantize", None, 3.0, "3.0 or more"),
        ("lowrank", 0.4, None, "up to 40%"),
        ("quantize", None, None, "no bound"),
    ],
)
def test_an_end_beyond_the_ladder_is_told_on_its_side(kind, low, high, bounds):
    ends = {"strength": 0.35 if kind != "quantize" else 3.5, "low": low, "high": high, "level": 0.95}
    row = {"variant": "k4", "kind": kind, "ladder": f"{kind}?weights=mlp", "cost": "drop", **ends}
    (sentence,) = ruler_tables.ruler_sentences(pd.DataFrame([row], dtype=object), {"k4": "k4"})
    assert f"({bounds})" in sentence


def test_costs_that_fall_on_the_way_are_pooled():
    rungs = costs((0.1, 0.3, 0.2, 0.6), np.random.default_rng(2))
    own = costs((0.25,), np.random.default_rng(2))[0][0]
    estimate = ruled(ladder("prune", (0.1, 0.2, 0.3, 0.6)), rungs, own, [np.arange(COUNT)])
    assert 0.1 < estimate.low <= estimate.strength <= estimate.high < 0.6


def test_a_ladder_without_cost_and_few_documents_are_refused():
    nothing = [np.random.default_rng(i).normal(0, 1, (1, COUNT)) / COUNT for i in range(3)]
    estimate = ruled(ladder("noise", (0.1, 0.2, 0.4)), nothing, nothing[0][0], [np.arange(COUNT)])
    assert estimate.reason == "the strongest rung costs nothing that can be told from 0"
    ladder_costs = costs(SHARES, np.random.default_rng(0))
    own = np.where(np.arange(COUNT) == 3, np.nan, ladder_costs[0][0])
    estimate = ruled(ladder("prune", SHARES), ladder_costs, own, [np.arange(COUNT)])
    assert estimate.reason == "a cost of some documents is not finite"
    few = [rung[:, :9] for rung in costs(SHARES, np.random.default_rng(0))]
    assert "9 documents are too few" in ruled(ladder("prune", SHARES), few, few[0][0], [np.arange(9)]).reason


# -- in runs ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A run of 200 questions: each tenth that is pruned loses a tenth of them, and a dictionary 50."""

    def put(name, wrong, record):
        right = answers({"task": [0.0] * wrong + [1.0] * (200 - wrong)})
        write_run(tmp_path / name, right, config={"sae_lm_eval": record}, model=name)

    put("baseline", 0, {"splice": "none"})
    put("k4", 50, {"splice": "reconstruction"})
    for tenths in (1, 2, 3, 4):
        edit = {"name": f"prune?share=0.{tenths}", "kind": "prune", "share": tenths / 10, "weights": "mlp"}
        put(f"pruned_{tenths}", 20 * tenths, {"splice": "edit", "edit": edit})
    return tmp_path


def comparison_of(folder):
    return paired_comparison(
        folder / "baseline", [path for path in sorted(folder.iterdir()) if path.name != "baseline"]
    )


def test_the_report_says_what_else_costs_as_much(folder):
    comparison = comparison_of(folder)
    (pruning,) = ladders_of(comparison.variants)
    assert (pruning.name, list(pruning.rungs)) == ("prune?weights=mlp", [0.1, 0.2, 0.3, 0.4])
    (row,) = ruler(comparison).to_dict("records")
    assert (row["cost"], row["strength"]) == ("drop", pytest.approx(0.25))
    assert row["low"] <= 0.25 <= row["high"]
    contents = writer.files(assemble.build(comparison))
    sentence = next(s for s in assemble.build(comparison).headline if "costs as much" in s)
    assert sentence.startswith("By its drop k4 costs as much as pruning 25% (")
    assert sentence.endswith(") of the MLP weights.")
    for name in ("report.html", "report.md", "appendix.tex"):
        assert "What else costs as much" in contents[name].decode()


# Wrong answers of 100 by category: for each tenth that is pruned, with the dictionary, and what follows by hand.
HIT = {
    "alike": (10, 25, 0.25),
    "spared": (20, 30, 0.15),
    "hit": (5, 18, 0.36),
    "kept": (10, 0, 0.0),
    "lost": (10, 90, "more than 0.4"),
    "untouched": (0, 50, "the strongest rung costs nothing that can be told from 0"),
}


def test_each_category_has_a_strength_of_its_own(tmp_path):
    """Categories are a field of the documents of two tasks, each of which has half of the questions of each."""

    def put(name, wrong, record):
        rng, samples = np.random.default_rng(0), {}
        for task in ("one", "two"):
            right = [(category, float(at >= wrong[category])) for at in range(100) for category in HIT]
            samples[task] = [question(task, i, value, rng, category) for i, (category, value) in enumerate(right)]
        write_run(tmp_path / name, samples, config={"sae_lm_eval": record}, model=name)

    put("baseline", dict.fromkeys(HIT, 0), {"splice": "none"})
    put("k4", {category: hit[1] for category, hit in HIT.items()}, {"splice": "reconstruction"})
    for tenths in (1, 2, 3, 4):
        edit = {"name": f"prune?share=0.{tenths}", "kind": "prune", "share": tenths / 10, "weights": "mlp"}
        wrong = {category: tenths * hit[0] for category, hit in HIT.items()}
        put(f"pruned_{tenths}", wrong, {"splice": "edit", "edit": edit})
    others = [path for path in sorted(tmp_path.iterdir()) if path.name != "baseline"]
    comparison = paired_comparison(tmp_path / "baseline", others, categories={"subject": {"field": "subject"}})
    rows = {row["alias"]: row for row in ruler_by_category(comparison).to_dict("records")}
    assert set(rows) == set(HIT)
    for category, (_, _, expected) in HIT.items():
        row = rows[category]
        if isinstance(expected, str):
            assert expected in (row["bound"], row["reason"])
            assert row["strength"] is None
        else:
            assert row["strength"] == pytest.approx(expected, abs=0.003)
            assert row["low"] <= row["strength"] <= (row["high"] or 0.4)
    (table,) = ruler_tables.category_ruler_table(ruler_by_category(comparison), {rows["hit"]["variant"]: "k4"})
    headings, (cells,) = [column.heading for column in table.columns], table.rows
    shown = dict(zip(headings, (cell.text for cell in cells), strict=True))
    assert (shown["alike"], shown["lost"], shown["untouched"]) == ("25%", "more than 0.4", "n/a")
    alone = paired_comparison(
        tmp_path / "baseline", others, categories={"all": {"field": "subject", "values": ["hit"]}}
    )
    assert ruler_by_category(alone).empty, "one category is no comparison of categories"


def test_a_text_is_paired_by_document(folder, monkeypatch):
    """The documents come in another order in each file, and the ladder's costs are 2 strength^2 of each."""
    matters = np.random.default_rng(0).gamma(4, 0.25, COUNT)

    def text(strength, order, documents=range(COUNT)):
        rows = [[at, 2 * strength**2 * matters[at], 1] for at in documents]
        frame = pd.DataFrame({"kl": rows, "doc_hash": [f"hash {at}" for at in documents]})
        return frame.iloc[np.random.default_rng(order).permutation(len(frame))].reset_index(drop=True)

    comparison = comparison_of(folder)
    texts = {f"pruned_{tenths}": text(tenths / 10, tenths) for tenths in (1, 2, 3, 4)} | {"k4": text(0.25, 9)}
    by_folder = {results.file.parents[1].name: results.name for results in comparison.variants}
    monkeypatch.setattr(
        ruler_module, "fidelity_texts", lambda _: {by_folder[name]: table for name, table in texts.items()}
    )
    row = ruler(comparison).query("cost == 'KL'").iloc[0]
    assert row["strength"] == pytest.approx(0.25, abs=0.005)
    assert row["high"] - row["low"] < 0.01, "what documents have in common drops out"
    texts["k4"] = text(0.25, 9, range(1, COUNT + 1)[:-1])
    row = ruler(comparison).query("cost == 'KL'").iloc[0]
    assert row["reason"] == "the edits were measured on other documents"


def test_sets_of_questions_are_resampled_as_one(folder):
    alone, together = (
        ruler(
            paired_comparison(folder / "baseline", [p for p in folder.iterdir() if p.name != "baseline"], docs_by=field)
        ).iloc[0]
        for field in (None, "text")
    )
    assert together["strength"] == alone["strength"]
    assert together["low"] == pytest.approx(alone["low"], abs=0.03)


@pytest.mark.parametrize(
    ("kind", "seeds", "ending"),
    [("prune", 1, ")"), ("noise", 1, "), and not what another seed"), ("noise", 3, ") and the seeds of noise")],
)
def test_the_caption_tells_what_the_interval_covers(kind, seeds, ending):
    row = {"variant": "k4", "kind": kind, "ladder": kind, "cost": "drop", "strength": 0.3, "low": 0.2, "high": 0.4}
    frame = pd.DataFrame([{**row, "level": 0.95, "seeds": seeds}], dtype=object)
    (table,) = ruler_tables.ruler_table(frame, {"k4": "k4"})
    assert f"(the same of the variant and the edits{ending}" in table.caption


def test_a_run_without_a_ladder_has_no_ruler(folder):
    assert ruler(paired_comparison(folder / "baseline", [folder / "k4", folder / "pruned_1"])).empty


def test_controls_are_ladders_of_the_run_as_a_whole():
    specs = ["world#blocks.2.hook_resid_post.k4", "world#blocks.2.hook_resid_post.k32", {"edit": "prune?share=0.3"}]
    requests = variant_requests(specs, ["prune", "zero", "noise"])
    edits = [request.arguments["edit"] for request in requests if "edit" in request.arguments]
    assert sorted(edits) == sorted([*LADDERS["prune"], *LADDERS["noise"]])
    assert all(edit_of(edit) is not None for of_kind in LADDERS.values() for edit in of_kind)
    assert [request.arguments["splice"] for request in requests if "splice" in request.arguments] == ["zero"]
    with pytest.raises(UserError, match="controls: 'prun' is unknown"):
        variant_requests(specs, ["prun"])
    json.dumps([request.record for request in requests])
