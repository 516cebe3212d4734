"""Drops over several choices of in-context examples: laws, the coverage, and the command's parts."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from runs import answers, write_run

from sae_lm_eval.comparison.compare import paired_comparison
from sae_lm_eval.comparison.paired_statistics import bonett_price_interval
from sae_lm_eval.comparison.shots import drop_over_seeds, over_seeds
from sae_lm_eval.errors import UserError
from sae_lm_eval.results.results import read_results
from sae_lm_eval.runs.fewshot_seeds import seeds_of, with_seed


def drawn(rng: np.random.Generator, seeds: int, questions: int, spread: float) -> np.ndarray:
    """A mean probability of .2 of losing an answer, moved by the examples by `spread` and by the question a little."""
    of_seed = rng.normal(0, spread, seeds)[:, None]
    of_question = rng.uniform(-0.1, 0.1, questions)[None, :]
    return (rng.random((seeds, questions)) < np.clip(0.2 + of_seed + of_question, 0, 1)).astype(float)


@pytest.mark.parametrize(
    ("seeds", "questions", "spread"), [(3, 100, 0.05), (5, 100, 0.05), (5, 400, 0.03), (3, 200, 0)]
)
def test_the_interval_holds_the_drop_over_all_examples(seeds, questions, spread):
    rng = np.random.default_rng(0)
    held = [
        low <= 20 <= high
        for _, low, high, _ in (drop_over_seeds(drawn(rng, seeds, questions, spread)) for _ in range(1500))
    ]
    assert np.mean(held) >= 0.93


def test_one_choice_of_examples_alone_covers_too_little():
    rng, held = np.random.default_rng(0), []
    for _ in range(800):
        lost = int(drawn(rng, 1, 400, 0.05).sum())
        low, high = bonett_price_interval([1.0], [lost], [0], [400])
        held.append(low <= 0.2 <= high)
    assert np.mean(held) < 0.7


def test_seeds_that_agree_say_what_one_says():
    """The same answers for every seed: Bonett and Price's interval, but for Student's quantile."""
    row = np.r_[np.ones(30), -np.ones(10), np.zeros(160)]
    drop, low, high, between = drop_over_seeds(np.stack([row] * 4))
    assert (drop, between) == (10, 0)
    expected = 100 * np.array(bonett_price_interval([1.0], [30], [10], [200]))
    assert [low, high] == pytest.approx(expected, abs=0.2)


def test_the_order_of_seeds_and_questions_does_not_matter_and_signs_mirror():
    rng = np.random.default_rng(3)
    answers_of = rng.integers(-1, 2, (4, 30)).astype(float)
    estimate = drop_over_seeds(answers_of)
    assert drop_over_seeds(answers_of[::-1, rng.permutation(30)]) == pytest.approx(estimate)
    drop, low, high, between = drop_over_seeds(-answers_of)
    assert (-drop, -high, -low, between) == pytest.approx(estimate)


@pytest.mark.parametrize("shape", [(1, 5), (3, 0)])
def test_too_few_seeds_or_questions(shape):
    with pytest.raises(ValueError, match="needs two seeds or more and a question"):
        drop_over_seeds(np.zeros(shape))


def comparison(folder, seed, *, questions=40):
    rng = np.random.default_rng(seed)
    paths = [
        write_run(folder / f"{name}{seed}", answers({"one": rng.binomial(1, p, questions).tolist()}), model=name)
        for name, p in (("base", 0.9), ("k4", 0.6))
    ]
    baseline, variant = map(read_results, paths)
    return paired_comparison(baseline, [variant], draws=100)


def test_rows_by_task_and_over_all(tmp_path):
    comparisons = {seed: comparison(tmp_path, seed) for seed in (1, 2, 3)}
    table = over_seeds(comparisons)
    assert table["task"].tolist() == ["overall", "one"]
    each = [own.drops.set_index("section").loc["task", "drop"] for own in comparisons.values()]
    row = table.iloc[1]
    assert row["drop"] == pytest.approx(np.mean(each))
    assert row["between_seeds"] == pytest.approx(np.std(each, ddof=1))
    assert (row["seeds"], row["n"]) == (3, 40)
    assert row["low"] < row["drop"] < row["high"]
    with pytest.raises(UserError, match="needs two seeds or more"):
        over_seeds({1: comparisons[1]})
    with pytest.raises(UserError, match="seed 4 asked other questions"):
        over_seeds({1: comparisons[1], 4: comparison(tmp_path, 4, questions=30)})


def test_the_flag_takes_different_numbers():
    assert seeds_of("1,2,30") == [1, 2, 30]
    for wrong, says in (("1", "two different numbers"), ("1,1", "two different"), ("a,b", "numbers joined by commas")):
        with pytest.raises(UserError, match=says):
            seeds_of(wrong)
    assert with_seed(None, 7) == [0, 1234, 1234, 7]
    assert with_seed([1, 2, 3, 4], 7) == [1, 2, 3, 7]
    assert with_seed(5, 7) == [5, 5, 5, 7]


def test_the_command_runs_each_seed_and_joins_them(tmp_path):
    from typer.testing import CliRunner

    from sae_lm_eval.cli.main import app

    line = "run --model_args pretrained=world --sae world#blocks.2.hook_resid_post.k4 --tasks sae_world_homes --limit 6"
    flags = f"{line} --device cpu --num_fewshot 2 --fewshot_seeds 1,2 --output_path".split()
    said = CliRunner().invoke(app, [*flags, str(tmp_path / "out")])
    assert said.exit_code == 0, said.output
    frame = pd.read_csv(tmp_path / "out" / "over_seeds.csv")
    assert frame["task"].tolist() == ["overall", "sae_world_homes"]
    assert (frame["seeds"] == 2).all()
    seeds = [
        read_results(tmp_path / "out" / f"fewshot_seed_{seed}" / "baseline").config["fewshot_seed"] for seed in (1, 2)
    ]
    assert seeds == [1, 2]


def test_seeds_are_told_without_the_statistics():
    code = "import sys; import sae_lm_eval.runs.fewshot_seeds as f; print(f.seeds_of('1,2'), 'scipy' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["[1,", "2]", "False"]


def test_a_split_is_counted_without_being_read():
    from types import SimpleNamespace

    from sae_lm_eval.runs.model_pool import _check_shots

    class Split:
        def __len__(self):
            return 3

        def __iter__(self):
            raise AssertionError("the split was read")

    def task(documents):
        return SimpleNamespace(config=SimpleNamespace(num_fewshot=None), fewshot_docs=lambda: documents)

    _check_shots(3, {"one": task(Split()), "two": task(iter("abc"))})
    for documents in (Split(), iter("abc")):
        with pytest.raises(UserError, match="num_fewshot=4: one has 3 documents to take examples from"):
            _check_shots(4, {"one": task(documents)})
