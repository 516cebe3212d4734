"""Whether a dictionary was loaded right: what is measured on a text against what its release says of itself."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import WIDTH, random_model, random_sae, word_tokenizer, words
from runs import answers, write_run
from test_fidelity import TEXTS, adapter, ask
from typer.testing import CliRunner

from sae_lm_eval.cli.main import app
from sae_lm_eval.dictionaries import stated
from sae_lm_eval.dictionaries.loading import load_dictionary
from sae_lm_eval.dictionaries.saelens_object import from_sae
from sae_lm_eval.harness import inspection
from sae_lm_eval.report.released_table import released_notes, released_table
from sae_lm_eval.results.results import read_results

HOOK = "blocks.1.hook_resid_post"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("layer_12/width_16k/average_l0_82",), {"l0": 82}),
        (("layer_12/width_16k/canonical", "layer_12/width_16k/average_l0_82"), {"l0": 82}),
        (("layer_9_width_16k_l0_small",), {}),
        (("l0r_8x", "Llama3_1-8B-Base-L0R-8x"), {}),
        (("sae-l19.pt", None), {}),
    ],
)
def test_what_names_state(names, said):
    assert stated.of_names(*names) == said


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"k": 32}, {"l0": 32}),
        ({"l0": 60.5, "k": None}, {"l0": 60.5}),
        ({"dataset_average_activation_norm": {"in": 64.0, "out": 3.39}}, {"norm_in": 64.0, "norm_out": 3.39}),
        ({"norm_scaling_factor": 0.5}, {"norm_in": 8.0}),
        ({"variance_explained": 0.75}, {"fvu": 0.25}),
        ({"variance_explained": 1.0, "l0": 0.0, "norm_scaling_factor": None}, {}),
    ],
)
def test_what_configurations_state(config, said):
    assert stated.of_config(config, 16, 16) == said


def test_a_release_states_what_the_registry_has_of_it():
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    from sae_lm_eval.dictionaries.saelens_loader import _stated_of_release

    dictionary = replace(from_sae(random_sae(WIDTH, HOOK), name="it"), d_in=4096)
    scope = get_pretrained_saes_directory()["llama_scope_lxr_8x"]
    said = _stated_of_release(scope, "l8r_8x", dictionary)
    assert said == {"l0": 50.0, "norm_in": pytest.approx(64 / scope.norm_scaling_factor["l8r_8x"])}


class TestVerdict:
    def verdict(self, measured, said=None, **more):
        return stated.verdict(stated.checks(said or {"l0": 82.0}, {"l0": measured, **more}))

    @pytest.mark.parametrize("measured", [41.5, 82.0, 163.0])
    def test_within_a_factor_of_two_it_is_as_released(self, measured):
        assert self.verdict(measured) == f"as released: L0 {measured:.3g} (released: 82)"

    @pytest.mark.parametrize(("measured", "times"), [(2132.0, "26 times"), (8.2, "0.1 times"), (200.0, "2.4 times")])
    def test_beyond_it_the_factor_is_told(self, measured, times):
        assert self.verdict(measured) == (
            f"L0 is {times} what the release says ({measured:.3g} for 82): wrong hook, map, norm or positions?"
        )

    def test_positions_are_told_apart_where_the_first_ones_are_to_blame(self):
        assert self.verdict(2132.0, l0_later=90.0) == (
            "as released but for the first 4 positions of a text: L0 is 26 times what the release says "
            "(2.13e+03 for 82), 90 behind them"
        )

    def test_each_wrong_number_is_told(self):
        said = self.verdict(82.0, {"l0": 82.0, "fvu": 0.1, "norm_in": 5.0}, fvu=0.9, norm_in=50.0)
        assert said.startswith("FVU is 9 times what the release says (0.9 for 0.1); the norm of what it reads is 10 ti")

    def test_a_release_that_says_nothing_is_not_judged(self):
        assert stated.verdict([]) == "the release states none of the numbers that are measured"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    random_model("gpt2").save_pretrained(folder / "model")
    word_tokenizer().save_pretrained(folder / "model")
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": words(40, seed=s)}) for s in range(8)))
    return folder


def fit_of(folder: Path, sae, **more):
    model_args = {"pretrained": str(folder / "model"), "sae": sae, "device": "cpu", **more}
    ((chosen, *_),), _ = inspection.fits(model_args, str(folder / "text.jsonl"), 200)
    return chosen


def picky(hook: str):
    """A dictionary whose latents fire only where its input is large: its L0 tells inputs apart."""
    sae = random_sae(WIDTH, hook)
    with torch.no_grad():
        sae.b_dec.zero_()
        sae.b_enc.fill_(-2.0)
    return sae


class TestInspection:
    def test_where_the_release_puts_it_is_as_released(self, folder):
        dictionary = from_sae(picky(HOOK), name="it")
        l0 = fit_of(folder, dictionary).l0
        again = fit_of(folder, replace(from_sae(picky(HOOK), name="it"), stated={"l0": l0}))
        assert again.released == f"as released: L0 {l0:.3g} (released: {l0:.3g})"

    def test_the_hook_that_fits_is_named(self, folder):
        right, wrong = HOOK, "blocks.1.hook_attn_out"
        fits = {hook: fit_of(folder, from_sae(picky(hook), name="it")) for hook in (right, wrong)}
        l0 = fits[right].l0
        assert not 0.5 < fits[wrong].l0 / l0 < 2, "the two sites must differ for this to mean anything"
        said = {"l0": l0, "norm_in": fits[right].norm_in}
        verdict = fit_of(folder, replace(from_sae(picky(wrong), name="it"), stated=said)).released
        assert "what the release says" in verdict
        assert f"hook={right} fits (L0 {l0:.3g} (released: {l0:.3g})" in verdict

    def test_a_missing_factor_is_named(self, folder):
        norm = fit_of(folder, from_sae(picky(HOOK), name="it")).norm_in
        factor = WIDTH**0.5 / norm
        folded = picky(HOOK)
        folded.fold_activation_norm_scaling_factor(factor)
        l0 = fit_of(folder, from_sae(folded, name="it")).l0
        unfolded = fit_of(folder, from_sae(picky(HOOK), name="it"))
        assert not 0.5 < unfolded.l0 / l0 < 2
        said = {"l0": l0, "norm_in": norm}
        verdict = fit_of(folder, replace(from_sae(picky(HOOK), name="it"), stated=said)).released
        assert f"a factor of {factor:.4g} on its activations fits (L0 {l0:.3g} (released: {l0:.3g})" in verdict

    def test_the_command_says_so(self, folder):
        picky(HOOK).save_model(folder / "average_l0_2")
        model_args = f"pretrained={folder / 'model'},sae={folder}#average_l0_2,device=cpu"
        command = ["inspect", "--model_args", model_args, "--text", str(folder / "text.jsonl"), "--tokens", "200"]
        said = CliRunner().invoke(app, command)
        assert said.exit_code == 0, said.output
        assert "l0 2" in said.output
        assert "Dictionary 1, " in said.output
        assert "Dictionary 1, as released: L0" in said.output or "times what the release says" in said.output

    def test_both_factors_of_a_transcoder_are_estimated(self, folder):
        transcoder = random_sae(WIDTH, "blocks.1.mlp.hook_in", "transcoder", hook_out="blocks.1.hook_mlp_out")
        transcoder.cfg.normalize_activations = "expected_average_only_in"
        transcoder.save_model(folder / "scaled")
        model_args = {"pretrained": str(folder / "model"), "sae": f"{folder}#scaled", "device": "cpu"}
        ((chosen, *_),), (factors,) = inspection.fits(model_args, str(folder / "text.jsonl"), 200)
        into, out = map(float, factors.split(":"))
        assert into == pytest.approx(WIDTH**0.5 / chosen.norm_in, rel=1e-4)
        assert out == pytest.approx(WIDTH**0.5 / chosen.norm_out, rel=1e-4)


class TestFidelity:
    def record_of(self, said, caplog=None):
        lm = adapter(replace(load_dictionary(random_sae(WIDTH, HOOK)), stated=said))
        ask(lm)
        (record,) = lm.fidelity.by_task["fidelity"]["as_released"]
        return lm, record

    def test_every_result_carries_the_comparison(self):
        lm, record = self.record_of({"l0": 1.0, "norm_in": 5.0, "fvu": 0.5})
        numbers = {number["name"]: number for number in record["numbers"]}
        assert record["site"] == HOOK
        assert record["agrees"] is False
        assert record["verdict"].startswith("L0 is ")
        assert "'sae-lm-eval inspect --text FILE' tries others" in record["verdict"]
        splice = lm.spliced.variant.splices[0]
        x = self.activations(lm)
        active = (splice.dictionary.encode(x) != 0).sum(-1).double()
        assert numbers["l0"]["measured"] == pytest.approx(active.mean().item(), rel=1e-5)
        assert numbers["norm_in"]["measured"] == pytest.approx(x.norm(dim=-1).double().mean().item(), rel=1e-5)
        assert lm.spliced.provenance()["splices"][0]["stated"] == {"l0": 1.0, "norm_in": 5.0, "fvu": 0.5}

    @staticmethod
    @torch.no_grad()
    def activations(lm) -> torch.Tensor:
        """What passes at every scored position whose token is not special, window by window."""
        kept = []
        for text in TEXTS:
            for query in lm.spliced.rolling(text):
                ids = torch.tensor([list(query.ids)])
                x = lm.model.model(input_ids=ids, output_hidden_states=True).hidden_states[2][0]
                scored = torch.arange(len(query.ids)) >= len(query.ids) - len(query.targets)
                kept.append(x[scored & ~torch.isin(ids[0], torch.tensor([0, 1, 2]))])
        return torch.cat(kept)

    def test_what_is_as_released_says_so(self):
        _, first = self.record_of({"l0": 1.0})
        _, record = self.record_of({"l0": first["numbers"][0]["measured"]})
        assert record["agrees"] is True
        assert record["verdict"].startswith("as released: L0")

    def test_a_release_that_says_nothing_has_nothing_compared(self):
        _, record = self.record_of({})
        assert record["agrees"] is None
        assert record["numbers"] == []

    def test_what_is_not_is_told(self, caplog, monkeypatch):
        from sae_lm_eval.fidelity import measure

        monkeypatch.setattr(measure.logger, "propagate", True)
        with caplog.at_level(logging.WARNING):
            self.record_of({"l0": 0.01})
        assert "times what the release says" in caplog.text


def test_the_report_shows_it(tmp_path):
    def number(name, ratio):
        return {"name": name, "stated": 10.0, "measured": 10.0 * ratio, "later": None, "ratio": ratio}

    record = {"dictionary": "it", "site": HOOK, "verdict": "L0 is 26 times what the release says", "agrees": False}
    record["numbers"] = [number("l0", 26.0), number("norm_in", 1.5)]
    fine = {**record, "verdict": "as released", "agrees": True, "numbers": [number("l0", 1.0)]}
    own = {"fidelity": {"sae_fidelity_pile": {"as_released": [record]}, "sae_fidelity_world": {"as_released": [fine]}}}
    write_run(tmp_path, answers({"task": [1.0, 0.0]}), config={"sae_lm_eval": own})
    results = read_results(tmp_path)
    table = released_table([results])
    assert [[cell.text for cell in row][1:] for row in table.rows] == [
        ["pile", HOOK, "L0", "10.0", "260", "26.0", "not as released"],
        ["pile", HOOK, "norm read", "10.0", "15.0", "1.50", "as released"],
        ["world", HOOK, "L0", "10.0", "10.0", "1.00", "as released"],
    ]
    (note,) = released_notes([results])
    assert note.endswith("on pile: L0 is 26 times what the release says.")
