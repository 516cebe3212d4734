"""What comes back with an adapter, from files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from runs import answers, write_run

from sae_lm_eval.capability import recovery as recovery_module
from sae_lm_eval.capability.recovery import recovery, squares_of
from sae_lm_eval.comparison.compare import Comparison, paired_comparison
from sae_lm_eval.comparison.restored import ACCURACY, PairedLosses
from sae_lm_eval.report.recovery_table import recovery_sentences, recovery_table

SPLICE = {"dictionary": "k4", "hook_in": "a", "hook_out": "a", "weights_checksum": "1", "mode": "reconstruction"}
LORA = {"name": "lora", "weights_checksum": "2", "settings_checksum": "3"}


RECORDS = {
    "baseline": {"splice": "none"},
    "k4": {"splices": [SPLICE], "splice": "reconstruction"},
    "both": {"splices": [SPLICE], "splice": "reconstruction", "adapter": LORA},
    "lora": {"splice": "adapter", "adapter": LORA},
}


def compared(folder: Path, right: dict[str, np.ndarray], records: dict[str, dict[str, Any]] = RECORDS) -> Comparison:
    """Results of variants, of which `right` says which questions each answers."""
    for name, scores in right.items():
        write_run(folder / name, answers({"t": scores}), config={"model": "sae_hf", "sae_lm_eval": records[name]})
    return paired_comparison(folder / "baseline", [folder / name for name in right if name != "baseline"])


def four(folder: Path, right: dict[str, np.ndarray]) -> pd.DataFrame:
    return recovery(compared(folder, right))


def test_what_comes_back_is_what_is_left_of_the_drop(tmp_path):
    right = {name: np.zeros(200) for name in ("baseline", "k4", "both", "lora")}
    for name, count in {"baseline": 160, "k4": 80, "both": 112, "lora": 150}.items():
        right[name][:count] = 1
    frame = four(tmp_path, right)
    row = next(row for row in frame.to_dict("records") if row["section"] == "overall")
    assert (row["drop"], row["drop_adapted"], row["drop_alone"]) == pytest.approx((40, 24, 5))
    assert row["share"] == pytest.approx(0.4)
    assert row["share_low"] < 0.4 < row["share_high"]
    (table,) = recovery_table(frame, {"k4": "k4"})
    assert [cell.text for cell in table.rows[0]] == ["k4", "lora", "accuracy", "200", "40.0", "24.0", "40.0%", "5.0"]
    (sentence,) = recovery_sentences(frame, {"k4": "k4"})
    assert sentence.startswith("With the adapter lora 40.0% (")
    assert sentence.endswith(") of the drop of k4 comes back; alone it costs 5.0 points.")


def test_nothing_all_and_what_cannot_be_told(tmp_path):
    right = {name: np.tile([1.0, 0.0, 1.0, 1.0], 30) for name in ("baseline", "k4", "both")}
    right["k4"][::4] = 0
    right["both"][::4] = 0
    frame = four(tmp_path / "nothing", right).to_dict("records")
    assert frame[0]["share"] == 0
    assert frame[0]["drop_alone"] is None
    right["both"] = right["baseline"]
    assert four(tmp_path / "all", right).to_dict("records")[0]["share"] == 1
    right["k4"] = right["baseline"]
    (row, *_) = four(tmp_path / "none", right).to_dict("records")
    assert (row["share"], row["reason"]) == (None, "the drop does not exclude 0")


def test_the_interval_holds_the_share_that_it_was_drawn_from():
    """200 questions each, of which the dictionary loses .3 and the adapter brings .4 of those back, and loses .05."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        baseline = (rng.random(200) < 0.8).astype(float)
        lost = (baseline == 1) & (rng.random(200) < 0.3)
        back, more = lost & (rng.random(200) < 0.4), (baseline == 1) & ~lost & (rng.random(200) < 0.05)
        losses = {"dictionary": lost.astype(float), "both": (lost & ~back).astype(float) + more}
        own = PairedLosses(ACCURACY, baseline, losses)
        estimate = own.share(losses["dictionary"] - losses["both"], "dictionary", 0.95)
        held += estimate.low <= 0.4 - 0.05 * 0.7 / 0.3 <= estimate.high
    assert 0.92 < held / 400 < 0.99


def test_an_interval_on_text_knows_how_long_documents_are(tmp_path, monkeypatch):
    """What is lost per token is nearly the same of all documents, and their lengths are not."""
    rng = np.random.default_rng(0)
    tokens = np.linspace(20, 1000, 30).round()
    comparison = compared(tmp_path, dict.fromkeys(RECORDS, np.ones(4)))
    names = {results.file.parents[1].name: results.name for results in comparison.variants}

    def text(per_token: float) -> pd.DataFrame:
        sums = per_token * tokens * rng.uniform(0.99, 1.01, len(tokens))
        rows = [[at, float(total), int(count)] for at, (total, count) in enumerate(zip(sums, tokens, strict=True))]
        nothing = [len(rows), 0.0, 0]
        return pd.DataFrame({"kl": [*rows, nothing], "doc_hash": [f"hash {at}" for at in range(len(rows) + 1)]})

    texts = {names[name]: text(cost) for name, cost in {"k4": 0.1, "both": 0.06, "lora": 0.02}.items()}
    monkeypatch.setattr(recovery_module, "fidelity_texts", lambda _: texts)
    (row,) = recovery(comparison).query("measure == 'KL'").to_dict("records")
    assert row["n"] == len(tokens)
    lost = sum(entry[1] for entry in texts[names["k4"]]["kl"])
    assert row["drop"] == pytest.approx(lost / tokens.sum())
    for value, low, high in (("drop", "low", "high"), ("drop_adapted", "adapted_low", "adapted_high")):
        assert 0 < row[high] - row[low] < 0.02 * row[value]
        assert row[low] < row[value] < row[high]
    assert row["share"] == pytest.approx(0.4, abs=0.01)


BFLOAT16 = {"splices": [{**SPLICE, "dtype": "bfloat16"}], "splice": "reconstruction"}


def with_best(adapter: dict[str, str] | None = None, **changes) -> dict[str, Any]:
    best = {"text": "a.txt", "tokens": 100, "sha256": "1", **changes}
    return {**RECORDS["k4"], "best_layers": best, **({} if adapter is None else {"adapter": adapter})}


@pytest.mark.parametrize(
    ("changed", "adapters"),
    [
        ({}, ["lora"]),
        ({"lora": {"splice": "adapter", "adapter": {**LORA, "settings_checksum": "4"}}}, [None]),
        ({"both": {**RECORDS["both"], "kl_at_answers": {}, "packages": {"peft": "1"}}}, ["lora"]),
        ({"k4": BFLOAT16}, []),
        ({"k4": {**RECORDS["k4"], "mean": {"text": "a.txt"}}}, []),
        ({"other": RECORDS["k4"]}, []),
        ({"other": BFLOAT16}, ["lora"]),
        ({"other": RECORDS["lora"]}, [None]),
        ({"k4": with_best(kl_alone={"2": 0.1}), "both": with_best(kl_alone={"2": 0.2}, adapter=LORA)}, ["lora"]),
        ({"k4": with_best(sha256="1"), "both": with_best(sha256="2", adapter=LORA)}, []),
    ],
)
def test_results_are_a_square_that_differ_in_the_adapter_alone(tmp_path, changed, adapters):
    records = {**RECORDS, **changed}
    comparison = compared(tmp_path, dict.fromkeys(records, np.ones(4)), records)
    folders = {results.name: results.file.parents[1].name for results in comparison.variants}
    squares = squares_of(comparison.variants)
    assert [square.alone and folders[square.alone.name] for square in squares] == adapters
    assert {folders[square.dictionary.name] for square in squares} <= {"k4"}
