"""Comparisons of result folders: laws, lm_eval's own numbers, independent oracles, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from runs import answers, question, write_run
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from terminals import terminal

from sae_lm_eval.comparison.compare import paired_comparison
from sae_lm_eval.comparison.multiplicity import stars_changed
from sae_lm_eval.comparison.pairs import NO_CHOICES, NOT_ABOVE
from sae_lm_eval.errors import UserError
from sae_lm_eval.report import assemble, writer
from sae_lm_eval.results import find
from sae_lm_eval.results.results import read_results

STAMP = "2026-01-01T00-00-00.000000"
GROUPS = {"sized": (["one", "two"], "sized"), "unsized": (["one", "two"], "unsized")}
NUMBERS = ["n", "baseline", "score", "drop", "low", "high", "p", "p_adjusted", "margin_change"]


def drawn(seed: int, *, accuracy: float = 0.8) -> dict[str, list[float]]:
    rng = np.random.default_rng(seed)
    return {"one": rng.binomial(1, accuracy, 120).tolist(), "two": rng.binomial(1, accuracy, 30).tolist()}


@pytest.fixture
def folders(tmp_path):
    """A baseline and a worse variant on two tasks of unlike size."""
    return (
        write_run(tmp_path / "baseline", answers(drawn(0)), groups=GROUPS),
        write_run(tmp_path / "variant", answers(drawn(1, accuracy=0.6)), groups=GROUPS, model="other"),
    )


def rows(*paths: Path, **options) -> pd.DataFrame:
    baseline, *variants = (read_results(path) for path in paths)
    return paired_comparison(baseline, variants, draws=500, **options).drops.set_index(["section", "name"])


# -- laws -----------------------------------------------------------------------------------------------------


def test_a_run_beside_itself_lost_nothing(folders):
    table = rows(folders[0], folders[0])
    assert (table["drop"] == 0).all()
    assert (table["p"] == 1).all()
    assert ((table["low"] < 0) & (table["high"] > 0)).all()
    assert (table[["lost", "gained", "margin_change"]] == 0).all(axis=None)


def test_swapping_negates_the_drop(folders):
    there, back = rows(*folders), rows(*reversed(folders))
    for column, mirrored in (("drop", "drop"), ("low", "high"), ("margin_change", "margin_change")):
        np.testing.assert_allclose(there[column], -back[mirrored], atol=1e-9)
    assert there["lost"].tolist() == back["gained"].tolist()
    assert there["gained"].tolist() == back["lost"].tolist()
    np.testing.assert_allclose(there["p"], back["p"], atol=0.05)  # the permutation's draws mirror each other


def test_the_order_of_lines_does_not_matter(folders):
    before = rows(*folders)
    for folder, seed in zip(folders, (1, 2), strict=True):
        for file in (folder / "model").glob("samples_*"):
            lines = file.read_text().splitlines(keepends=True)
            np.random.default_rng(seed).shuffle(lines)
            file.write_text("".join(lines))
    pd.testing.assert_frame_equal(rows(*folders), before)


def test_each_variant_has_the_rows_it_has_alone(folders, tmp_path):
    third = write_run(tmp_path / "third", answers(drawn(2)), groups=GROUPS, model="third")
    both = rows(*folders, third)
    for folder, name in ((folders[1], "other"), (third, "third")):
        alone = rows(folders[0], folder).drop(columns="p_adjusted")
        pd.testing.assert_frame_equal(both[both["variant"] == name].drop(columns="p_adjusted"), alone)


# -- oracles --------------------------------------------------------------------------------------------------


def test_a_task_by_hand_and_by_statsmodels(folders):
    before, after = np.array(drawn(0)["one"]), np.array(drawn(1, accuracy=0.6)["one"])
    row = rows(*folders).loc[("task", "one")]
    lost, gained = int((before > after).sum()), int((after > before).sum())
    assert (row["lost"], row["gained"], row["n"]) == (lost, gained, 120)
    assert row["drop"] == pytest.approx(100 * (before.mean() - after.mean()))
    assert row["p"] == pytest.approx(mcnemar([[0, lost], [gained, 0]], exact=False, correction=False).pvalue)
    assert row["above_chance_lost"] == pytest.approx((before.mean() - after.mean()) / (before.mean() - 0.25))


def test_holm_goes_over_a_section_and_all_variants(folders, tmp_path):
    third = write_run(tmp_path / "third", answers(drawn(2)), groups=GROUPS, model="third")
    comparison = paired_comparison(
        read_results(folders[0]), [read_results(folder) for folder in (folders[1], third)], draws=500
    )
    for _, section in comparison.drops.groupby("section"):
        np.testing.assert_allclose(section["p_adjusted"], multipletests(section["p"], method="holm")[1])
    assert "over the 2 variants at once" in comparison.family
    assert "2 overall, 4 for groups, 4 for tasks" in comparison.family


def test_groups_carry_lm_evals_weights(folders):
    table = rows(*folders)
    for name in GROUPS:
        for folder, column in zip(folders, ("baseline", "score"), strict=True):
            assert table.loc[("group", name), column] == pytest.approx(read_results(folder).scores[name]["acc,none"])
    assert table.loc[("group", "sized"), "interval"] == "Tango"
    assert table.loc[("group", "unsized"), "interval"] == "Bonett-Price, stratified"
    mean = np.mean([table.loc[("task", name), "drop"] for name in ("one", "two")])
    assert table.loc[("group", "unsized"), "drop"] == pytest.approx(mean)


def test_a_group_whose_number_its_tasks_do_not_give_is_left_out(folders):
    for folder in folders:
        file = folder / "model" / f"results_{STAMP}.json"
        raw = json.loads(file.read_text())
        raw["results"]["sized"]["acc,none"] += 0.01
        file.write_text(json.dumps(raw))
    comparison = paired_comparison(read_results(folders[0]), [read_results(folders[1])], draws=500)
    assert "sized" not in comparison.drops["name"].tolist()
    assert "Group sized: acc,none is left out, for its tasks do not average to it." in comparison.notes


def test_real_runs_of_uneven_groups_equal_lm_evals_numbers(tmp_path):
    """The embedded world through lm_eval itself, in groups with and without weight_by_size."""
    import lm_eval
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    members = {"sized": ("trades", "pets"), "unsized": ("order", "villages")}
    for name, by_size in (("sized", "true"), ("unsized", "false")):
        (tmp_path / f"{name}.yaml").write_text(
            f"group: {name}\ntask: [{', '.join(f'sae_world_{member}' for member in members[name])}]\n"
            f"aggregate_metric_list:\n  - metric: acc\n    weight_by_size: {by_size}\n"
        )
    documents = {"trades": range(40), "pets": range(30, 40), "order": [0, 5, 9], "villages": range(20)}
    ids_by_task = {f"sae_world_{task}": list(ids) for task, ids in documents.items()}
    paths, manager = [], TaskManager(include_path=str(tmp_path))
    for splice in ("none", "zero"):
        paths.append(tmp_path / splice)
        arguments = {"pretrained": "world", "sae": "world#blocks.2.hook_resid_post.k4", "splice": splice}
        tracker = EvaluationTracker(output_path=str(paths[-1]))
        results = lm_eval.simple_evaluate(
            model="sae_hf",
            model_args={**arguments, "device": "cpu"},
            tasks=["sized", "unsized"],
            task_manager=manager,
            samples=ids_by_task,
            evaluation_tracker=tracker,
            bootstrap_iters=0,
        )
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        for task, lines in samples.items():
            tracker.save_results_samples(task_name=task, samples=lines)
    table = rows(*paths)
    runs = [read_results(path) for path in paths]
    for section, name in table.index.drop(("overall", "overall")):
        row = table.loc[(section, name)]
        assert [row["baseline"], row["score"]] == pytest.approx(
            [run.scores[name]["acc,none"] for run in runs], abs=1e-12
        )
    assert table.loc["group"]["interval"].to_dict() == {"sized": "Tango", "unsized": "Bonett-Price, stratified"}
    assert table.loc["group"]["n"].to_dict() == {"sized": 50, "unsized": 23}
    assert (table["margin_change"] < 0).all()
    assert runs[1].name == "world#blocks.2.hook_resid_post.k4 (zero)"
    comparison = paired_comparison(runs[0], runs[1:])
    shares = {cut.name: cut.weights for cut in comparison.cuts if cut.section == "group"}
    assert shares == {"sized": pytest.approx((0.8, 0.2)), "unsized": (0.5, 0.5)}
    documents = comparison.documents()
    assert documents.loc[documents["task"] == "sae_world_pets", "doc_id"].tolist() == ids_by_task["sae_world_pets"]


# -- what does not pair ---------------------------------------------------------------------------------------


def changed(folder: Path, edit, task: str = "one") -> Path:
    file = folder / "model" / f"samples_{task}_{STAMP}.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in edit(lines)))
    return folder


def with_value(number: int, **values):
    return lambda lines: [line | values if line["doc_id"] == number else line for line in lines]


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda lines: lines[:7] + lines[8:], r"1 of 120 answers of gpt2 to one are missing in other.* document 7 \("),
        (lambda lines: lines[:20], r"100 of 120 answers of gpt2 .*has --limit none.*Evaluate both on the same"),
        (
            with_value(9, prompt_hash="x"),
            r"Document 9 of one \(filter none\) was asked with another prompt .* 1 of 120",
        ),
        (with_value(3, doc_hash="x"), r"Document 3 of one \(filter none\) is another document"),
        (with_value(3, target_hash="x"), r"Document 3 of one \(filter none\) has another target"),
        (with_value(3, filter="strict"), r"1 of 120 answers .* document 3 \(filter none\)"),
        (with_value(3, doc_id=4), r"have document 4 of one twice"),
        (lambda lines: lines + lines[:1], r"samples of other have document 0 of one twice"),
        (with_value(3, metrics=["f1"], f1=1), r"one has 'acc' for other documents in other than in gpt2"),
    ],
)
def test_a_mismatch_is_named(folders, edit, says):
    changed(folders[1], edit)
    with pytest.raises(UserError, match=says):
        rows(*folders)


def test_other_tasks_and_other_shots_are_named(folders, tmp_path):
    lacks = write_run(tmp_path / "lacks", answers({"one": drawn(1)["one"], "three": [1]}), model="lacks")
    with pytest.raises(UserError, match=r"different tasks: only gpt2 has two; only lacks has three\."):
        rows(folders[0], lacks)
    shot = write_run(tmp_path / "shot", answers(drawn(1)), shots=5, model="shot")
    with pytest.raises(UserError, match=r"differ in the shots of one: 0 and 5"):
        rows(folders[0], shot)


def test_missing_samples_are_named(folders):
    (folders[1] / "model" / f"samples_two_{STAMP}.jsonl").unlink()
    with pytest.raises(UserError, match="answers of other to two are missing"):
        rows(*folders)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"level": 1.5}, "level=1.5 must lie between"),
        ({"metrics": "al"}, "Did you mean 'all'"),
        (
            {"categories": {"a": "onne"}},
            "Category 'a': 'onne' is no task or group of those asked. Did you mean 'one'",
        ),
        ({"categories": {"a": {"field": "topic"}}}, "no document has a field 'topic', only text"),
        ({"categories": {"a": {"feild": "text"}}}, "Category 'a' has feild: give 'field'"),
        ({"categories": {"a": []}}, r"Category 'a': \[\] is neither one of nor a list of tasks"),
        ({"categories": {"a": [["one"]]}}, r"Category 'a': \['one'\] is neither one of nor a list of tasks"),
        ({"categories": {"a": {"field": ["text"]}}}, r"Category 'a': \['text'\] is no name of a field"),
        ({"categories": {"a": {"field": "text", "values": []}}}, r"Category 'a', values: \[\] is neither"),
        ({"categories": {"a": {"field": "text", "tasks": []}}}, r"Category 'a', tasks: \[\] is neither"),
        ({"categories": {True: "one"}}, "True is no name of a category"),
        ({"categories": {" ": "one"}}, "' ' is no name of a category"),
        ({"categories": {1: "one", "1": "two"}}, "'1' names two categories"),
        (
            {"categories": {"a": {"field": "text"}, "a: one 1": "one"}},
            "categories: 'a: one 1' would be the name of two: of a value of a field, and of another category",
        ),
        ({"categories": {"overall": "one"}}, "'overall' is the name of all tasks together"),
        ({"categories": {"a": {"field": "text", "values": ["one 900"]}}}, "no document's text is 'one 900'. Did you"),
    ],
)
def test_mistaken_options_are_named(folders, options, says):
    with pytest.raises(UserError, match=says):
        rows(*folders, **options)
    with pytest.raises(UserError, match="name at least one variant"):
        rows(folders[0])


# -- what a row holds -----------------------------------------------------------------------------------------


def test_categories_by_task_and_by_field(tmp_path):
    rng = np.random.default_rng(0)
    subjects = ["law", "art", "law"]
    paths = []
    for name, right in (("a", [1, 1, 1, 0, 1, 1]), ("b", [0, 1, 1, 1, 0, 1])):
        samples = {
            task: [question(task, i, right[3 * k + i], rng, subjects[i]) for i in range(3)]
            for k, task in enumerate(("one", "two"))
        }
        paths.append(write_run(tmp_path / name, samples, groups={"all": (["one", "two"], "sized")}, model=name))
    categories = {
        "first": "one",
        "both": ["all"],
        "pattern": "*o",
        "by": {"field": "subject"},
        "art": {"field": "subject", "values": "art", "tasks": ["two"]},
    }
    table = rows(*paths, categories=categories).loc["category"]
    assert table["n"].to_dict() == {"first": 3, "both": 6, "pattern": 3, "by: law": 4, "by: art": 2, "art": 1}
    assert table.loc["by: law", ["lost", "gained"]].tolist() == [1, 1]
    assert table.loc["by: art", ["lost", "gained"]].tolist() == [1, 0]
    assert table.loc["by: art", "alias"] == "art"
    assert table.loc["art", ["baseline", "score"]].tolist() == [1, 0]


def test_accuracy_above_chance_is_undefined_where_there_is_hardly_any(tmp_path):
    low = [write_run(tmp_path / name, answers({"one": [1, 0, 0, 0] * 5}), model=name) for name in "ab"]
    row = rows(*low).loc[("task", "one")]
    assert pd.isna(row["above_chance_lost"])
    assert (row["chance"], row["above_chance_reason"]) == (0.25, NOT_ABOVE)


def generated(values: list[float], metric: str = "exact_match") -> list[dict]:
    lines = answers({"one": values})["one"]
    return [
        {**line, "filtered_resps": ["x"], "metrics": [metric], metric: value}
        for line, value in zip(lines, values, strict=True)
    ]


def test_generated_answers_have_neither_chance_nor_margin(tmp_path):
    paths = [write_run(tmp_path / name, {"one": generated([1, 1, 0] * 9)}, model=name) for name in "ab"]
    row = rows(*paths).loc[("task", "one")]
    assert (row["metric"], row["above_chance_reason"]) == ("exact_match", NO_CHOICES)
    assert row[["chance", "margin_change", "above_chance_lost", "kl"]].isna().all()


def test_word_perplexity_is_lm_evals_and_falls_with_lower_being_better(tmp_path):
    rng = np.random.default_rng(0)
    words = rng.integers(20, 200, 40)
    paths, nats = [], []
    for name, loss in (("a", 3.0), ("b", 3.2)):
        nats.append(words * rng.normal(loss, 0.1, 40))
        pairs = [[-value, int(size)] for value, size in zip(nats[-1], words, strict=True)]
        score = {"word_perplexity,none": float(np.exp(nats[-1].sum() / words.sum()))}
        lines = generated([0] * 40, "word_perplexity")
        samples = {"one": [{**line, "word_perplexity": pair} for line, pair in zip(lines, pairs, strict=True)]}
        lower = {"word_perplexity": False}
        paths.append(write_run(tmp_path / name, samples, {"one": score}, higher_is_better=lower, model=name))
    row = rows(*paths).loc[("task", "one")]
    assert (row["kind"], row["interval"], row["unit"]) == ("continuous", "paired bootstrap-t", "nats")
    assert row["drop"] == pytest.approx(np.log(row["score"] / row["baseline"]))
    assert row["ratio"] == pytest.approx(row["score"] / row["baseline"])
    assert row["ratio_low"] == pytest.approx(np.exp(row["low"]))
    assert 0 < row["low"] < row["drop"] < row["high"]
    assert row["p"] == pytest.approx(1 / 501)
    assert rows(*reversed(paths)).loc[("task", "one"), "drop"] == pytest.approx(-row["drop"])


def perplexities(folder: Path, nats: dict[str, np.ndarray], name: str) -> Path:
    """A run whose tasks have the mean log-likelihoods of their documents, and perplexities of them."""
    samples = {
        task: [
            {**line, "perplexity": -value}
            for line, value in zip(generated([0] * len(losses), "perplexity"), losses.tolist(), strict=True)
        ]
        for task, losses in nats.items()
    }
    scores = {task: {"perplexity,none": float(np.exp(losses.mean()))} for task, losses in nats.items()}
    return write_run(folder / name, samples, scores, higher_is_better={"perplexity": False}, model=name)


def test_a_perplexity_that_explodes_has_an_interval_of_ratios_above_zero(tmp_path):
    rng = np.random.default_rng(0)
    nats = {"a": rng.normal(3, 1, 30), "b": rng.normal(16.6, 4, 30)}
    row = rows(*(perplexities(tmp_path, {"one": losses}, name) for name, losses in nats.items())).loc[("task", "one")]
    assert 1 < row["ratio_low"] < row["ratio"] < row["ratio_high"]
    assert row["drop"] == pytest.approx(nats["b"].mean() - nats["a"].mean())
    assert row["low"] > 8


def test_few_documents_leave_the_interval_out_and_say_so(tmp_path):
    rng = np.random.default_rng(0)
    paths = [perplexities(tmp_path, {"one": rng.normal(3, 1, 3), "two": rng.normal(3, 1, 12)}, name) for name in "ab"]
    table = rows(*paths)
    assert table.loc[("task", "one"), ["low", "high", "ratio_low"]].isna().all()
    assert table.loc[("task", "one"), "caution"] == "n/a: a task has 3 documents, and the interval needs 5"
    assert table.loc[("task", "two"), "caution"].startswith("a task has 12 documents, fewer than 20")
    said = command(*paths)
    assert "nan" not in said.stdout
    assert "the interval needs 5: one." in " ".join(said.stdout.split())


def test_hundreds_of_tests_can_still_pass_holms_adjustment(tmp_path):
    """With 500 draws no p is below 1/501, and of 30 tests none could pass; the two that stand there get more."""
    rng = np.random.default_rng(0)
    before = {f"t{i}": rng.normal(3, 1, 24) for i in range(30)}
    after = {task: losses + rng.normal(2.0 if i < 2 else 0, 0.5, 24) for i, (task, losses) in enumerate(before.items())}
    paths = [perplexities(tmp_path, losses, name) for name, losses in (("a", before), ("b", after))]
    comparison = paired_comparison(
        *(lambda baseline, *variants: (baseline, variants))(*map(read_results, paths)), draws=500
    )
    drops = comparison.drops.set_index("name")
    assert drops.loc[["t0", "t1"], "p_adjusted"].max() < 0.01
    assert drops.loc["t2":, "p_adjusted"].min() > 0.05
    assert any("6,000 permutations in place of 500" in note for note in comparison.notes)


def test_the_share_above_chance_has_an_interval(folders):
    table = rows(*folders)
    share = table.loc[("task", "one")]
    assert share["above_chance_low"] < share["above_chance_lost"] < share["above_chance_high"]


def test_a_metric_that_documents_do_not_average_to_is_left_out(tmp_path):
    samples = {"one": generated([1, 0, 1]), "two": answers({"two": [1, 0]})["two"]}
    paths = [write_run(tmp_path / n, samples, {"one": {"exact_match,none": 0.9}}, model=n) for n in "ab"]
    comparison = paired_comparison(*[read_results(paths[0]), [read_results(paths[1])]], draws=100)
    assert comparison.drops.query("section == 'task'")["name"].tolist() == ["two"]
    assert comparison.notes[0].startswith("one: exact_match,none is left out, for its documents' values do not average")


def test_a_group_scored_by_another_metric_than_its_tasks_first_is_told(tmp_path):
    paths = []
    for name in "ab":
        lines = [{**line, "metrics": ["acc", "acc_norm"], "acc_norm": 1.0} for line in answers({"one": [1, 0]})["one"]]
        paths.append(write_run(tmp_path / name, {"one": lines}, groups={"g": (["one"], "sized")}, model=name))
        file = paths[-1] / "model" / f"results_{STAMP}.json"
        raw = json.loads(file.read_text())
        raw["results"]["g"] = {"alias": "g", "acc_norm,none": 1.0}
        file.write_text(json.dumps(raw))
    runs = [read_results(path) for path in paths]
    assert (
        paired_comparison(runs[0], runs[1:], draws=10)
        .notes[0]
        .startswith("Group g is left out: lm_eval scores it by acc_norm")
    )
    every = paired_comparison(runs[0], runs[1:], draws=10, metrics="all").drops.query("section == 'group'")
    assert every["metric"].tolist() == ["acc_norm"]


def test_margins_by_every_kind_of_target(tmp_path):
    logprobs, acc = [[-1.0, -3.0], [-2.0, -2.5], [-4.0, -1.0]], [1.0, 0.0, 0.0]
    expected = [2.0, -0.5, -3.0]
    for kind, targets in {
        "index": "010",
        "text": ["yes", "no", "yes"],
        "unknown": "???",
        "list": ["[0]", "[1]", "[0]"],
    }.items():
        lines = []
        for line, answer, target, right in zip(answers({"one": acc})["one"], logprobs, targets, acc, strict=True):
            arguments = {f"gen_args_{i}": {"arg_0": "q", "arg_1": f" {text}"} for i, text in enumerate(("yes", "no"))}
            resps = [[str(value), "False"] for value in answer]
            lines.append({**line, "filtered_resps": resps, "target": target, "acc": right, "arguments": arguments})
        results = read_results(write_run(tmp_path / kind, {"one": lines}))
        margins = paired_comparison(results, [results], draws=10).documents()["margin_baseline"]
        np.testing.assert_allclose(margins, expected, err_msg=kind)


def test_a_target_that_does_not_explain_the_accuracy_gives_no_margin(folders):
    for folder in folders:
        changed(folder, lambda lines: [line | {"target": "0"} for line in lines])
    table = rows(*folders)
    assert np.isnan(table.loc[("task", "one"), "margin_change"])
    assert not np.isnan(table.loc[("task", "two"), "margin_change"])


def test_kl_is_the_variants_own_weighted_by_positions(tmp_path, folders):
    measured = {"one": {"kl": 0.1, "positions": 30}, "two": {"kl": 0.4, "positions": 10}}
    config = {"sae_lm_eval": {"splices": [{"dictionary": "d"}], "kl_at_answers": measured}}
    variant = write_run(tmp_path / "kl", answers(drawn(1)), groups=GROUPS, config=config)
    table = rows(folders[0], variant)["kl"]
    assert table[("task", "two")] == 0.4
    assert table[("group", "sized")] == pytest.approx(0.175)
    assert rows(*folders)["kl"].isna().all()


def test_a_bos_token_on_one_side_is_told(tmp_path, folders):
    config = {"sae_lm_eval": {"splices": [{"dictionary": "d"}], "bos": "one BOS token is added to every prompt: ..."}}
    variant = read_results(write_run(tmp_path / "bos", answers(drawn(1)), groups=GROUPS, config=config))
    assert "with a BOS token" in paired_comparison(read_results(folders[0]), [variant], draws=10).notes[0]
    assert not [note for note in paired_comparison(variant, [variant], draws=10).notes if "BOS" in note]


def test_runs_of_one_name_are_told_apart(tmp_path, folders):
    other = write_run(tmp_path / "more", answers(drawn(1)), config={"model_args": {"dtype": "float16"}})
    same = write_run(tmp_path / "most", answers(drawn(1)))
    for folder in (other, same):
        raw = folder / "model" / f"results_{STAMP}.json"
        raw.write_text(raw.read_text())
    comparison = paired_comparison(read_results(same), [read_results(other), read_results(same)], draws=10)
    names = [comparison.baseline.name, *(run.name for run in comparison.variants)]
    assert len(set(names)) == 3
    assert names[1] == "gpt2 (dtype=float16)"


def test_folders_are_named_as_a_report_names_them(tmp_path, folders):
    comparison = paired_comparison(folders[0], folders[1:], draws=10)
    results = find.find_results(tmp_path)
    assert [comparison.baseline.name, comparison.variants[0].name] == [results[0].name, results[1][0].name]
    inner = paired_comparison(folders[0] / "model", folders[1] / "model", draws=10)
    assert [inner.baseline.name, inner.variants[0].name] == ["gpt2", "other"]
    elsewhere = write_run(tmp_path / "old" / "variant", answers(drawn(1)), groups=GROUPS, model="other")
    names = [run.name for run in paired_comparison(folders[0], [folders[1], elsewhere], draws=10).variants]
    assert names == [f"variant [{folder / 'model'}]" for folder in (folders[1], elsewhere)]


def test_stars_that_another_variant_takes_away_are_named(folders, tmp_path):
    """By Holm's definition, over the rows of the others alone and with the added ones."""
    runs = [read_results(folder) for folder in folders]
    more = [write_run(tmp_path / f"more{i}", answers(drawn(i)), groups=GROUPS, model=f"more{i}") for i in range(8)]
    alone, together = (
        paired_comparison(*runs, draws=500),
        paired_comparison(runs[0], [runs[1], *map(read_results, more)], draws=500),
    )
    added = [f"more{i}" for i in range(8)]
    said = stars_changed(together.drops, added, 0.95) or ""
    keys = ["section", "name", "alias"]
    both = alone.drops.merge(together.drops.query("variant == 'other'"), on=keys)
    lost = both[(both["p_adjusted_x"] < 0.05) & (both["p_adjusted_y"] >= 0.05)]["alias"].tolist()
    assert lost
    assert f"Lost its star: {', '.join(f'{alias} of other' for alias in lost)}." in said
    assert said.startswith("more0, more1,")
    assert stars_changed(together.drops, [], 0.95) is None
    assert stars_changed(alone.drops, ["other"], 0.95) is None, "there was nothing before it"


# -- the command ----------------------------------------------------------------------------------------------

HOSTILE = "[red]a|b[/red] \\ <i>&\u202e=1+1 名前"


def command(*arguments: object, columns: int = 80) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from sae_lm_eval.cli import main as cli; sys.argv[0] = 'sae-lm-eval'\n"
        "try: cli.main()\n"
        "finally: print(sorted({'torch', 'lm_eval', 'transformers'} & set(sys.modules)))"
    )
    line = [sys.executable, "-c", code, "compare", *map(str, arguments)]
    env = {**terminal(columns), "PATH": "", "PYTHONPATH": ":".join(sys.path), "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(line, capture_output=True, text=True, env=env, check=False)


def test_the_command_prints_80_columns_writes_csv_and_imports_no_model(folders, tmp_path):
    categories = tmp_path / "categories.yaml"
    categories.write_text(f"'{HOSTILE}': [one]\n")
    said = command(*folders, "--categories", categories, "--csv", tmp_path / "drops.csv")
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines()[-1] == "[]"
    assert max(len(line) for line in said.stdout.splitlines() if not line.startswith("Written: ")) <= 80
    assert HOSTILE[:12] in said.stdout
    frame = pd.read_csv(tmp_path / "drops.csv")
    assert frame["name"].tolist() == [
        "overall",
        "sized",
        "unsized",
        HOSTILE.replace("\u202e", "<U+202E>"),
        "one",
        "two",
    ]
    assert f"{frame['drop'][0]:.1f}" in said.stdout


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_name_keeps_room_beside_the_numbers(folders, columns):
    """Where numbers and names do not fit, columns go, and no name is cut into letters."""
    said = command(*folders, columns=columns)
    assert said.returncode == 0, said.stderr
    lines = said.stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert len([line for line in lines if line.startswith(("one ", "two "))]) == 2
    assert ("raw p" in said.stdout) is (columns == 200)


def test_the_command_writes_the_report_of_folders_that_lie_anywhere(folders, tmp_path):
    """The numbers are those of the same folders below one; two of one name are told apart."""
    third = write_run(tmp_path / "elsewhere" / "deep" / "third", answers(drawn(2)), groups=GROUPS)
    said = command(*folders, third, "--output_path", tmp_path / "made", "--draws", 500)
    assert said.returncode == 0, said.stderr
    assert "report.html" in said.stdout
    shutil.move(third, tmp_path / "third")
    again = assemble.build(assemble.compare_tasks(*find.find_results(tmp_path, "baseline"), draws=500))
    writer.write(again, tmp_path / "again")
    here, there = (pd.read_csv(tmp_path / name / "drops.csv") for name in ("made", "again"))
    assert here["variant"].nunique() == 2
    numbers = [*NUMBERS, "detectable"]
    pd.testing.assert_frame_equal(
        *(table.sort_values([*numbers])[numbers].reset_index(drop=True) for table in (here, there))
    )


@pytest.mark.parametrize("again", [(0, 0), (0, 1, 1)])
def test_a_run_is_compared_with_others_only(folders, again):
    said = command(*(folders[which] for which in again))
    assert said.returncode == 2
    assert "would be compared with itself: name each run once." in " ".join(said.stderr.split())


def test_swapped_arguments_are_noticed(folders, tmp_path):
    record = {"splices": [{"dictionary": "d", "hook_out": "h"}], "splice": "reconstruction"}
    spliced = write_run(tmp_path / "spliced", answers(drawn(1)), config={"sae_lm_eval": record}, groups=GROUPS)
    said = command(spliced, folders[0])
    assert said.returncode == 2
    assert "The baseline comes first, and spliced has a dictionary spliced in" in said.stderr
    (note,) = [note for note in paired_comparison(spliced, folders[0], draws=10).notes if "comes first" in note]
    assert "baseline is the untouched model" in note
    assert not [note for note in paired_comparison(folders[0], [spliced], draws=10).notes if "comes first" in note]
    assert not [note for note in paired_comparison(spliced, [spliced], draws=10).notes if "comes first" in note]


def test_documents_of_one_passage_are_clustered_by_the_command(tmp_path):
    runs = [
        {
            "one": [
                question("one", i, right, np.random.default_rng(0), f"passage {i // 6}")
                for i, right in enumerate(answers)
            ]
        }
        for answers in (drawn(0)["one"], drawn(1)["one"])
    ]
    paths = [write_run(tmp_path / name, answers) for name, answers in zip(("baseline", "variant"), runs, strict=True)]
    plain, by = tmp_path / "plain.csv", tmp_path / "by.csv"
    assert command(*paths, "--csv", plain).returncode == 0
    said = command(*paths, "--csv", by, "--docs_by", "subject")
    assert "subject" in said.stdout
    assert pd.read_csv(plain)["low"][0] != pd.read_csv(by)["low"][0]
    assert "no document has a field 'subjects'" in command(*paths, "--docs_by", "subjects").stderr


def test_the_command_tells_a_mistake_in_a_sentence(folders, tmp_path):
    said = command(folders[0], tmp_path / "nowhere")
    assert said.returncode == 2
    assert said.stderr.startswith("sae-lm-eval: There is no '")
    assert "Traceback" not in said.stderr
    (tmp_path / "bad.yaml").write_text("a: [")
    said = command(*folders, "--categories", tmp_path / "bad.yaml")
    assert "is not YAML" in said.stderr
    said = command(*folders, "--csv", tmp_path / "no" / "drops.csv")
    assert "cannot be written" in said.stderr


def test_fidelity_is_left_out_and_told(folders, tmp_path):
    """Its baseline is measured within each run, on documents whose metrics depend on the variant."""
    runs = []
    for folder, score in zip(folders, (3.0, 3.1), strict=True):
        samples = {"sae_fidelity_x": [question("sae_fidelity_x", 0, 1, np.random.default_rng(0))], **answers(drawn(0))}
        scores = {"sae_fidelity_x": {"ce_baseline,none": score}}
        runs.append(write_run(tmp_path / f"{folder.name} with fidelity", samples, scores, groups=GROUPS))
    comparison = paired_comparison(read_results(folders[0]), [read_results(run) for run in runs], draws=100)
    assert comparison.drops["name"].unique().tolist() == ["overall", "sized", "unsized", "one", "two"]
    (note,) = [note for note in comparison.notes if "report" in note]
    assert note.startswith("sae_fidelity_x: each run measured its own baseline")
    alone = answers({"sae_fidelity_x": [1.0]})
    only = write_run(tmp_path / "only", alone, {"sae_fidelity_x": {"ce_baseline,none": 3.0}})
    with pytest.raises(UserError, match=r"nothing else to compare.*`sae-lm-eval report` shows"):
        paired_comparison(read_results(only), [read_results(only)])


def test_a_log_of_inspect_without_inspect_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    log = tmp_path / "a.eval"
    log.write_bytes(b"")
    with pytest.raises(UserError, match=r"is not installed: pip install 'sae-lm-eval\[inspect\]'\."):
        paired_comparison(log, log)
