"""The noise floor: what two layouts of the same untouched model differ by, and what is marked for it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from runs import answers, write_run
from test_run import K4, evaluated, provenance, sweep

from sae_lm_eval.errors import UserError
from sae_lm_eval.report import assemble as build
from sae_lm_eval.report.fidelity_tables import NOISE
from sae_lm_eval.results import find as folders
from sae_lm_eval.runs.folder_names import AGAIN
from sae_lm_eval.runs.noise import measure_noise_floor
from sae_lm_eval.runs.sweep import sweep_of


class Layouts:
    """A model of five tokens whose logits move by `step` where a batch has more than one row."""

    device = "cpu"

    def __init__(self, step: float):
        self.step = step

    def _model_call(self, ids: torch.Tensor) -> torch.Tensor:
        logits = torch.nn.functional.one_hot((ids * 2 + 1) % 5, 5).float()
        logits[..., 0] += self.step * (len(ids) > 1)
        return logits


SEQUENCES = [[1, 2, 3], [4, 0], [2, 2, 2, 1], [3]]


def test_a_model_that_does_not_depend_on_the_layout_has_no_noise():
    floor = measure_noise_floor(Layouts(0.0), SEQUENCES, rows=3)
    assert (floor["kl"], floor["flips"], floor["ce_delta"]) == (0, 0, 0)
    assert (floor["tokens"], floor["sequences"], floor["rows"]) == (6, 3, [1, 3])


def test_the_floor_by_hand():
    step = 1.5
    floor = measure_noise_floor(Layouts(step), SEQUENCES, rows=3)
    kl = flips = rise = 0.0
    for ids in SEQUENCES[:3]:
        for token, following in pairwise(ids):
            alone = torch.zeros(5, dtype=torch.float64)
            alone[(2 * token + 1) % 5] += 1
            other = alone.clone()
            other[0] += step
            p, q = alone.log_softmax(-1), other.log_softmax(-1)
            kl += float((p.exp() * (p - q)).sum())
            flips += p.argmax() != q.argmax()
            rise += float(p[following] - q[following])
    assert floor["kl"] == pytest.approx(kl / 6, rel=1e-5)
    assert floor["flips"] == pytest.approx(float(flips) / 6)
    assert floor["ce_delta"] == pytest.approx(abs(rise) / 6, rel=1e-5)


def test_prompts_of_one_token_have_no_floor():
    with pytest.raises(UserError, match="no prompt of these tasks has two tokens"):
        measure_noise_floor(Layouts(0.0), [[1]], rows=2)


def test_the_baseline_again_is_a_row_of_a_run(tmp_path):
    plan = sweep(K4, controls=[AGAIN], batch_size=4)
    assert plan.once == (AGAIN,)
    assert len(plan.variants) == 1
    finished = evaluated(plan, tmp_path)
    assert [outcome.name for outcome in finished.outcomes][-1] == AGAIN
    floor = provenance(tmp_path / AGAIN)["noise_floor"]
    assert floor["rows"] == [1, 5]
    assert 0 <= floor["kl"] < 1e-6
    assert floor["ce_delta"] < 1e-5
    assert "noise_floor" not in provenance(tmp_path / "baseline")
    report = build.build(build.compare_tasks(*folders.find_results(tmp_path)))
    row = report.drops.set_index(["variant", "section"]).loc[(AGAIN, "overall")]
    assert (row["lost"], row["gained"]) == (0, 0)
    assert "noise-floor" in [table.name for table in report.tables]
    assert evaluated(plan, tmp_path).requests == 0  # nothing is left to run


def test_the_same_run_without_it_is_another(tmp_path):
    from sae_lm_eval.runtime.run_folder import remember

    remember(tmp_path, {"model_args": {}, "once": [AGAIN]})
    with pytest.raises(UserError, match="holds a run with other once"):
        remember(tmp_path, {"model_args": {}})
    assert sweep_of({"model_args": {}, "tasks": [], "variants": [K4]}).once == ()


def test_values_within_the_floor_are_marked(tmp_path):
    floor = {"kl": 0.01, "flips": 0.0, "ce_delta": 0.02, "tokens": 90, "sequences": 9, "rows": [1, 4]}
    record = {"splice": "reconstruction", "splices": [], "schema": 2}
    again = {**record, "splice": "none", "noise_floor": floor}
    for name, ours, kl in (("baseline", None, None), ("a", record, 0.009), ("b", record, 0.011), (AGAIN, again, None)):
        scores = {"text": {"ce_baseline,none": 3.0}}
        if kl is not None:
            scores["text"] |= {"ce_spliced,none": 3.0 + kl, "kl,none": kl, "ce_delta,none": kl}
        samples = answers({"one": [1.0, 0, 1, 1], "text": [1.0] * 4})
        write_run(tmp_path / name, samples, scores, config={"sae_lm_eval": ours} if ours else None)
    report = build.build(build.compare_tasks(*folders.find_results(tmp_path)))
    frame = report.fidelity.set_index(["variant", "metric"])
    assert frame.loc[("a", "kl"), "flags"] == "within the noise floor, 0.0100"
    assert frame.loc[("b", "kl"), "flags"] == ""
    assert frame.loc[("b", "ce_delta"), "flags"] == "within the noise floor, 0.0200"
    outputs = next(table for table in report.tables if table.name == "fidelity-outputs")
    texts = {row[0].text: row[2].text for row in outputs.rows}
    assert texts["a"].endswith(NOISE)
    assert not texts["b"].endswith(NOISE)
    assert AGAIN not in texts
