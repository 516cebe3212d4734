"""Adapters (LoRA, tuned norms, modules saved beside them) hide what they wrap from nobody who looks for it."""

from __future__ import annotations

import pytest
import torch
from models import WIDTH, random_ids, random_model, random_sae
from torch import nn

from sae_lm_eval.dictionaries.loading import load_dictionary
from sae_lm_eval.splicing.attach import attached
from sae_lm_eval.splicing.variants import Choices, Variant, build_variant

peft = pytest.importorskip("peft")
Z = "blocks.1.attn.hook_z"
RESID = "blocks.1.hook_resid_post"
CENTRED = {"center_writing_weights": True}
FOLDED = {"fold_ln": True, "fold_value_biases": True}


def variant_of(model: nn.Module, hook: str, processing: dict, **choices) -> Variant:
    sae = random_sae(WIDTH, hook, model_from_pretrained_kwargs=processing)
    return build_variant(model, [load_dictionary(sae)], Choices(**choices), frozenset())


@torch.no_grad()
def logits(model: nn.Module, variant: Variant) -> torch.Tensor:
    with attached(model, variant):
        return model(input_ids=random_ids()).logits


def adapted(name: str, config: peft.PeftConfig, *, moved: bool = False) -> peft.PeftModel:
    """A model with an adapter that changes nothing, or one that does."""
    model = peft.get_peft_model(random_model(name), config).eval()
    if moved:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    return model


def lora(*targets: str, conv: bool, save: list[str] | None = None) -> peft.LoraConfig:
    return peft.LoraConfig(
        target_modules=list(targets), fan_in_fan_out=conv, modules_to_save=save, task_type="CAUSAL_LM"
    )


GPT2 = {"c_attn": lora("c_attn", conv=True), "c_fc": lora("c_fc", conv=True)}
GPT2["both"] = lora("c_attn", "c_proj", conv=True)
GPT2["attention saved"] = lora("c_fc", conv=True, save=["attn"])
OTHERS = {"gpt_neox": lora("query_key_value", conv=False), "qwen2": lora("v_proj", "o_proj", conv=False)}


@pytest.mark.parametrize("name", GPT2)
@pytest.mark.parametrize("map_", ["value_bias", "folded_value_bias"])
def test_an_adapter_that_changes_nothing_changes_no_shift_of_gpt2(name, map_):
    plain, model = random_model("gpt2"), adapted("gpt2", GPT2[name])
    ours = variant_of(model.get_base_model(), Z, {}, hook_maps=(map_,))
    theirs = variant_of(plain, Z, {}, hook_maps=(map_,))
    attention = plain.transformer.h[1].attn.c_attn
    shift = attention.bias.chunk(3)[2]
    if map_ == "folded_value_bias":
        shift = shift + plain.transformer.h[1].ln_1.bias @ attention.weight.chunk(3, dim=1)[2]
    torch.testing.assert_close(ours.splices[0].map_in.shift, shift, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(model.get_base_model(), ours), logits(plain, theirs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", OTHERS)
def test_nor_of_other_layouts_of_the_values(name):
    plain, model = random_model(name), adapted(name, OTHERS[name])
    ours, theirs = (variant_of(m, Z, FOLDED) for m in (model.get_base_model(), plain))
    torch.testing.assert_close(ours.splices[0].map_in.shift, theirs.splices[0].map_in.shift)
    assert ours.splices[0].map_in.shift.abs().max() > 0.1


@pytest.mark.parametrize("name", ["c_attn", "both", "attention saved"])
def test_a_merged_adapter_and_one_beside_the_weights_are_one_model(name):
    beside = adapted("gpt2", GPT2[name], moved=True)
    merged = adapted("gpt2", GPT2[name], moved=True).merge_and_unload()
    ours, theirs = (variant_of(m, Z, FOLDED) for m in (beside.get_base_model(), merged))
    torch.testing.assert_close(ours.splices[0].map_in.shift, theirs.splices[0].map_in.shift, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(logits(beside.get_base_model(), ours), logits(merged, theirs), rtol=1e-3, atol=1e-3)


TUNED_NORMS = {
    "the last norm tuned": peft.LNTuningConfig(target_modules=["ln_f"], task_type="CAUSAL_LM"),
    "all norms tuned": peft.LNTuningConfig(target_modules=["ln_1", "ln_2", "ln_f"], task_type="CAUSAL_LM"),
    "the last norm saved": lora("c_attn", conv=True, save=["ln_f"]),
}


@pytest.mark.parametrize("name", TUNED_NORMS)
def test_a_centred_release_stays_centred_where_norms_are_tuned(name):
    model = adapted("gpt2", TUNED_NORMS[name], moved=True).get_base_model()
    (splice,) = variant_of(model, RESID, CENTRED).splices
    assert (splice.map_in.name, splice.map_out.name) == ("centered", "centered")


@pytest.mark.parametrize("tuned", [True, False])
def test_a_tuned_norm_is_read_before_its_gain(tuned):
    hook_in = "blocks.1.ln2.hook_normalized"
    transcoder = random_sae(WIDTH, hook_in, "transcoder", hook_out="blocks.1.hook_mlp_out")
    config = peft.LNTuningConfig(target_modules=["ln_2"], task_type="CAUSAL_LM") if tuned else GPT2["c_fc"]
    model = adapted("gpt2", config, moved=tuned).get_base_model()
    variant = build_variant(model, [load_dictionary(transcoder)], Choices(), frozenset())
    read = {}
    block = model.transformer.h[1]
    handles = [
        block.ln_2.register_forward_pre_hook(
            lambda _m, args: read.update(x=nn.functional.layer_norm(args[0], (WIDTH,), eps=1e-5))
        ),
        block.mlp.register_forward_hook(lambda *_: transcoder(read["x"])),
    ]
    with torch.no_grad():
        expected = model(input_ids=random_ids()).logits
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(logits(model, variant), expected, rtol=1e-4, atol=1e-4)
