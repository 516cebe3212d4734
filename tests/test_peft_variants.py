"""Variants with an adapter of PEFT's: against plain PEFT and lm_eval's own, and what comes back with it."""

from __future__ import annotations

import copy
import json
import weakref
from pathlib import Path

import pytest
import torch
from models import random_ids, random_model, random_sae, word_tokenizer, words
from torch import nn
from transformers import AutoModelForCausalLM

from sae_lm_eval import world
from sae_lm_eval.capability.recovery import recovery
from sae_lm_eval.errors import UserError
from sae_lm_eval.harness.joined import joined
from sae_lm_eval.harness.model import SaeHFLM
from sae_lm_eval.runs.checks import check_variants
from sae_lm_eval.runs.identity_record import IdentityRecord, variant_record
from sae_lm_eval.runs.model_pool import LoadedSweep
from sae_lm_eval.runs.plan import plan_sweep
from sae_lm_eval.runs.run import run
from sae_lm_eval.runs.settings import lm_eval_config
from sae_lm_eval.runs.sweep import sweep_of, variant_requests
from sae_lm_eval.splicing.adapter_spec import AdapterSpec
from sae_lm_eval.splicing.arguments import requested_splices

peft = pytest.importorskip("peft")
PAIRS = [("w3 w4 w5", " w6 w7"), ("w3 w4 w5", " w8"), ("w9 w10", " w3 w4 w5 w6")]
RESID = "blocks.1.hook_resid_post"


def saved(model: nn.Module, folder: Path, config: peft.PeftConfig, *, size: float = 0.3) -> Path:
    """An adapter for a model, with random weights, as PEFT saves it; the model stays as it is."""
    adapted = peft.get_peft_model(copy.deepcopy(model), config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if weight.requires_grad or "lora_" in name:
                weight.add_(size * torch.randn(weight.shape, generator=generator) / max(weight.shape[-1], 1) ** 0.5)
    adapted.save_pretrained(folder)
    return folder


def lora(*targets: str, **how) -> peft.LoraConfig:
    return peft.LoraConfig(r=4, target_modules=list(targets), task_type="CAUSAL_LM", **how)


def plainly(model: nn.Module, folder: Path) -> nn.Module:
    return peft.PeftModel.from_pretrained(copy.deepcopy(model), str(folder)).eval()


def untouched(model: nn.Module) -> SaeHFLM:
    return SaeHFLM(pretrained=model, tokenizer=word_tokenizer(), sae=[], splice="none")


def variant(lm: SaeHFLM, **arguments) -> SaeHFLM:
    return lm.as_variant(requested_splices(**arguments))


CONFIGS = {
    "lora": ("llama", lora("q_proj", "v_proj", "up_proj")),
    "lora of one layer": ("llama", lora("o_proj", "down_proj", layers_to_transform=[2])),
    "rslora with dropout": ("llama", lora("gate_proj", use_rslora=True, lora_dropout=0.5)),
    "dora": ("llama", lora("q_proj", "down_proj", use_dora=True)),
    "gpt2": ("gpt2", lora("c_attn", "c_fc", fan_in_fan_out=True)),
    "gpt_neox": ("gpt_neox", lora("query_key_value", "dense")),
    "ia3": (
        "llama",
        peft.IA3Config(
            target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
        ),
    ),
    "norms": ("llama", peft.LNTuningConfig(target_modules=["input_layernorm", "norm"], task_type="CAUSAL_LM")),
    "a norm saved": ("llama", lora("q_proj", modules_to_save=["norm"])),
    "the head": ("llama", lora("lm_head", "q_proj")),
    "the head saved": ("llama", lora("q_proj", modules_to_save=["lm_head"])),
}
APART = ("the head", "the head saved")


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_a_variant_with_an_adapter_is_what_peft_makes_of_the_model(tmp_path, name):
    architecture, config = CONFIGS[name]
    model, ids = random_model(architecture), random_ids()
    folder, before = saved(model, tmp_path, config), model(ids).logits
    lm = variant(untouched(model), peft=str(folder))
    assert lm.spliced.variant.is_apart == (name in APART)
    expected = plainly(model, folder)(input_ids=ids).logits
    assert (expected - before).abs().max() > 0.01
    torch.testing.assert_close(lm._model_call(ids), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(model(ids).logits, before)
    assert lm.spliced.variant.adapter["kind"] == config.peft_type.value


@pytest.mark.parametrize("name", ["lora", "gpt2", "the head"])
@pytest.mark.parametrize("hook", [RESID, "blocks.1.attn.hook_z"])
@torch.no_grad()
def test_a_dictionary_reads_and_writes_in_the_adapted_model(tmp_path, name, hook):
    architecture, config = CONFIGS[name]
    model, ids = random_model(architecture), random_ids()
    folder = saved(model, tmp_path, config)
    folded = {"fold_value_biases": True, "fold_ln": True, "center_writing_weights": True} if hook != RESID else {}
    sae = random_sae(32, hook, model_from_pretrained_kwargs=folded)
    logits = variant(untouched(model), sae=sae, peft=str(folder))._model_call(ids)
    wholly = SaeHFLM(pretrained=plainly(model, folder), tokenizer=word_tokenizer(), sae=sae)._model_call(ids)
    torch.testing.assert_close(logits, wholly, rtol=1e-4, atol=1e-4)


def state(model: nn.Module) -> dict[str, object]:
    """All of a model that an adapter could change."""
    parts = {path: (id(part), part.training, sorted(part.__dict__)) for path, part in model.named_modules()}
    own = {name: (id(p), p.requires_grad, p.clone()) for name, p in model.named_parameters()}
    return {"parts": parts, "own": own, "config": model.config.to_dict(), "attributes": sorted(model.__dict__)}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_model_is_given_back_as_it_was(tmp_path, name):
    architecture, config = CONFIGS[name]
    model = random_model(architecture).train()
    next(model.parameters()).requires_grad_(True)
    folder, before = saved(model, tmp_path, config), state(model)
    lm = variant(untouched(model), sae=random_sae(32, RESID), peft=str(folder))
    lm._model_call(random_ids())
    after = state(model)
    assert after["parts"] == before["parts"]
    assert after["config"] == before["config"]
    assert after["attributes"] == before["attributes"]
    for parameter, (number, grad, value) in before["own"].items():
        assert after["own"][parameter][:2] == (number, grad), parameter
        assert torch.equal(after["own"][parameter][2], value)


def test_an_adapter_that_does_not_fit_leaves_nothing_behind(tmp_path):
    model = random_model("llama")
    folder, before = saved(random_model("gpt2"), tmp_path, CONFIGS["gpt2"][1]), state(model)
    with pytest.raises(UserError, match=r"peft=.* cannot be put on LlamaForCausalLM: .*Error: "):
        variant(untouched(model), peft=str(folder))
    after = state(model)
    assert (after["parts"], after["attributes"]) == (before["parts"], before["attributes"])


@pytest.mark.parametrize("name", ["lora", "dora", "gpt2", "the head"])
def test_the_four_are_scored_together_as_each_by_itself(tmp_path, name):
    from lm_eval.api.instance import Instance

    architecture, config = CONFIGS[name]
    model = random_model(architecture)
    folder, sae = str(saved(model, tmp_path, config)), random_sae(32, RESID)
    lm = untouched(model)
    variants = [
        variant(lm, **arguments) for arguments in ({"sae": sae}, {"peft": folder}, {"sae": sae, "peft": folder})
    ]
    together = joined(lm, variants)
    assert together[0].spliced.is_scored
    instances = [Instance("loglikelihood", {}, pair, 0, ("task", number, 1)) for number, pair in enumerate(PAIRS)]
    for member in together[1:]:
        expected = []
        with torch.no_grad(), member.spliced.attached():
            for context, continuation in PAIRS:
                ids = torch.tensor([member.tok_encode(context + continuation)])
                count = ids.shape[1] - len(member.tok_encode(context))
                logits = member.spliced.model(ids, use_cache=False).logits[0].log_softmax(-1)
                expected.append(float(logits[:-1].gather(-1, ids[0, 1:, None])[-count:].sum()))
        scores = [logprob for logprob, _ in member.loglikelihood(instances, disable_tqdm=True)]
        assert scores == pytest.approx(expected, abs=1e-4)
        assert member.divergence.by_task()["task"]["kl"] > 0
    names = [member.spliced.name for member in together]
    assert names[2] == f"peft={folder}"
    assert names[3].endswith(f"+peft={folder}")
    assert len({member.spliced.identity() for member in together}) == 4


@pytest.fixture(scope="module")
def world_lora(tmp_path_factory) -> Path:
    model = AutoModelForCausalLM.from_pretrained(world.model_path())
    return saved(model, tmp_path_factory.mktemp("lora"), lora("q_proj", "down_proj"), size=0.6)


K4 = "world#blocks.2.hook_resid_post.k4"


def test_a_run_has_the_four_and_what_comes_back(tmp_path, world_lora):
    import lm_eval

    variants = [
        {"sae": K4, "name": "k4"},
        {"sae": K4, "peft": str(world_lora), "name": "k4+lora"},
        {"peft": str(world_lora), "name": "lora"},
    ]
    tasks, how = ["sae_world_reasoning", "sae_fidelity_world"], {"limit": 8, "device": "cpu"}
    out = tmp_path / "out"
    settings = {"model_args": {"pretrained": "world", "add_bos_token": True}, "tasks": tasks, **how}
    comparison = run(variants=variants, controls=["zero", "random_error"], output_path=out, **settings)
    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={world.model_path()},peft={world_lora},add_bos_token=True",
        tasks=["sae_world_reasoning"],
        log_samples=True,
        batch_size=4,
        **how,
    )
    for task, samples in theirs["samples"].items():
        file = next((out / "lora").glob(f"*/samples_{task}_*.jsonl"))
        ours = {line["doc_id"]: line for line in map(json.loads, file.read_text().splitlines())}
        for sample in samples:
            mine = [float(answer[0][0]) for answer in ours[sample["doc_id"]]["resps"]]
            assert mine == pytest.approx([float(answer[0][0]) for answer in sample["resps"]], abs=2e-3)
    record = json.loads(next((out / "k4+lora").glob("*/results_*.json")).read_text())["config"]["sae_lm_eval"]
    assert record["splice"] == "reconstruction"
    assert record["adapter"]["name"] == str(world_lora)
    assert "peft" in record["packages"]
    asked_names = {entry["name"] for entry in json.loads((out / "run.json").read_text())["variants"]}
    # zero ablation of the site is one for both, and the random error is drawn for each
    assert asked_names == {"k4", "k4+lora", "lora", "k4,zero", "k4,random_error", "k4+lora,random_error"}
    frame = recovery(comparison)
    by = {row["measure"]: row for row in frame.to_dict("records") if row["section"] in ("overall", "text")}
    measured = comparison.fidelity.set_index(["variant", "metric"])["value"]
    assert by["delta CE"]["drop"] == pytest.approx(measured["k4", "ce_delta"], abs=1e-9)
    assert by["delta CE"]["drop_adapted"] == pytest.approx(measured["k4+lora", "ce_delta"], abs=1e-9)
    assert by["delta CE"]["drop_alone"] == pytest.approx(measured["lora", "ce_delta"], abs=1e-9)
    back = 1 - measured["k4+lora", "ce_delta"] / measured["k4", "ce_delta"]
    assert by["delta CE"]["share"] == pytest.approx(back)
    assert measured["k4+lora", "ce_zero"] == pytest.approx(measured["k4", "ce_zero"], abs=1e-6)
    drops = comparison.drops[comparison.drops["section"] == "overall"].set_index("variant")["drop"]
    assert by["accuracy"]["drop"] == pytest.approx(drops["k4"])
    assert by["accuracy"]["drop_alone"] == pytest.approx(drops["lora"])
    page = comparison.report(tmp_path / "report").read_text()
    assert "What comes back with an adapter" in page
    again = run(variants=variants, controls=["zero", "random_error"], output_path=out, **settings)
    assert again.drops.equals(comparison.drops)


# -- which adapter it was ------------------------------------------------------------------------------------


def with_setting(folder: Path, **changed) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


@pytest.mark.parametrize("changed", [{"lora_alpha": 16}, {"use_rslora": True}])
def test_settings_tell_adapters_of_equal_weights_apart(tmp_path, changed):
    model = random_model("llama")
    folder = saved(model, tmp_path / "lora", lora("q_proj"))
    wanted, first = requested_splices(peft=str(folder)), untouched(model).loaded.adapter(AdapterSpec(str(folder)))
    kept = {"model": {}, "packages": {}}
    IdentityRecord(tmp_path, (), begun=False).compare(kept, {"lora": variant_record(wanted, first)})
    with_setting(folder, **changed)
    again, other = (untouched(model).loaded.adapter(AdapterSpec(str(folder))) for _ in range(2))
    assert first.record["weights_checksum"] == other.record["weights_checksum"]
    assert first.record["settings_checksum"] != other.record["settings_checksum"]
    assert again.record == other.record
    with pytest.raises(UserError, match=r"the configuration of the adapter .* has changed since"):
        IdentityRecord(tmp_path, ["lora"], begun=True).compare(kept, {"lora": variant_record(wanted, other)})


@torch.no_grad()
def test_an_adapter_that_was_saved_anew_is_loaded_anew(tmp_path):
    model, ids = random_model("llama"), random_ids()
    lm = untouched(model)
    folder = saved(model, tmp_path, lora("q_proj"))
    first = variant(lm, peft=str(folder))
    before = first._model_call(ids)
    assert lm.loaded.adapter(AdapterSpec(str(folder))) is lm.loaded.adapter(AdapterSpec(str(folder)))
    saved(model, tmp_path, lora("q_proj"), size=0.9)
    after = variant(lm, peft=str(folder))._model_call(ids)
    torch.testing.assert_close(after, plainly(model, folder)(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(after, before)
    assert torch.equal(first._model_call(ids), before)


def test_a_run_lets_go_of_adapters(world_lora):
    sweep = sweep_of({"model_args": {"pretrained": "world"}, "variants": [{"peft": str(world_lora)}], "tasks": "x"})
    loaded = LoadedSweep(sweep, lm_eval_config(sweep), to_run=False)
    adapter = weakref.ref(loaded.baseline.loaded.adapter(AdapterSpec(str(world_lora))))
    assert adapter() is not None
    loaded.forget()
    assert adapter() is None


def test_the_best_layers_are_those_of_the_untouched_model(tmp_path):
    model, file = random_model("llama"), tmp_path / "text.txt"
    folder = str(saved(model, tmp_path / "lora", lora("q_proj", "v_proj", "down_proj"), size=3))
    file.write_text("\n\n".join(words(23, seed=number) for number in range(6)))
    saes = [random_sae(32, f"blocks.{layer}.hook_mlp_out", seed=layer) for layer in range(3)]
    lm = untouched(model)
    arguments = {"sae": saes, "splice_layers": "best:1", "layers_text": str(file)}
    models = [variant(lm, **arguments, **peft).spliced for peft in ({}, {"peft": folder})]
    plain, adapted = (spliced.provenance() for spliced in models)
    assert adapted["best_layers"] == plain["best_layers"]
    assert [s["hook_in"] for s in adapted["splices"]] == [s["hook_in"] for s in plain["splices"]]
    assert models[1].variant.adapter is not None


def test_an_adapter_of_the_hub_is_recorded_with_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model, commit = random_model("llama"), "0" * 40
    repository = tmp_path / "models--some--lora"
    saved(model, repository / "snapshots" / commit, lora("q_proj"))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for name in ("some/lora", "some/lora@main", f"some/lora@{commit}"):
        record = variant(untouched(model), peft=name).spliced.variant.adapter
        assert (record["name"], record["revision"]) == (name, commit)
    of_folder = variant(untouched(model), peft=str(repository / "snapshots" / commit))
    assert "revision" not in of_folder.spliced.variant.adapter


# -- what is asked for ---------------------------------------------------------------------------------------


def configuration(folder: Path, **fields) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"peft": "./nowhere"}, r"There is no folder './nowhere' with a adapter|There is no adapter"),
        ({"peft": 3}, "peft=3 names no adapter"),
        ({"peft": True}, "peft=True names no adapter"),
        ({"peft": "  "}, "names no adapter"),
        ({"peft": "x", "scale": 0.5}, "scale is of dictionaries, and peft stands alone"),
        ({"peft": "x", "edit": "prune?share=0.1"}, "peft is of dictionaries, and an edit has none"),
        ({"name": "x"}, "give either sae, pattern or edit, or peft by itself"),
    ],
)
def test_a_wrong_adapter_is_told_in_a_sentence(entry, message):
    with pytest.raises(UserError, match=message):
        check_variants({"pretrained": "world"}, variant_requests([entry]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "does not say which kind of adapter it is"),
        ({"peft_type": "LORA", "init_lora_weights": "pissa_niter_4"}, "was begun by pissa_niter_4"),
        ({"peft_type": 7}, "peft_type"),
    ],
)
def test_a_configuration_is_read_before_anything_is_loaded(tmp_path, fields, message):
    folder = configuration(tmp_path / "adapter", **fields)
    with pytest.raises(UserError, match=message):
        check_variants({"pretrained": "world"}, variant_requests([{"peft": str(folder)}]))


def test_an_adapter_without_weights_and_one_beside_the_models_own(tmp_path, world_lora):
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="There is no adapter in the folder"):
        check_variants({"pretrained": "world"}, variant_requests([{"peft": str(empty)}]))
    with pytest.raises(UserError, match="which the baseline has too: give one of the two"):
        check_variants({"pretrained": "world", "peft": str(world_lora)}, variant_requests([{"peft": str(world_lora)}]))
    folder = configuration(tmp_path / "bare", peft_type="LORA", target_modules=["q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(UserError, match="cannot be put on"):
        variant(untouched(random_model("llama")), peft=str(folder))


def test_prompts_are_no_weights(tmp_path):
    model = random_model("llama")
    config = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    folder = saved(model, tmp_path, config)
    with pytest.raises(UserError, match="is a PROMPT_TUNING adapter, which adds virtual tokens"):
        variant(untouched(model), peft=str(folder))


def test_names_plans_and_controls(tmp_path, world_lora):
    entries = [{"sae": K4, "peft": str(world_lora)}, {"peft": str(world_lora)}]
    requests = variant_requests(entries, ["zero"])
    assert [variant.name for variant in requests] == [
        f"world_blocks.2.hook_resid_post.k4,peft={world_lora.name}",
        f"peft={world_lora.name}",
        f"world_blocks.2.hook_resid_post.k4,peft={world_lora.name},zero",
    ]
    assert "peft" not in requests[2].arguments
    content = {"model_args": {"pretrained": "world"}, "variants": entries, "tasks": "x"}
    planned = plan_sweep(sweep_of(content), None).variants
    assert [variant.cost for variant in planned] == [1.0, 1.0]
    model_level = sweep_of({"model_args": {"pretrained": "world", "peft": "x"}, "variants": [K4], "tasks": "x"})
    assert model_level.model_args["peft"] == "x"
    assert "peft" not in model_level.variants[0].arguments
