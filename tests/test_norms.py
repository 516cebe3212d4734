"""What a norm does is measured: on the norms of many model classes, whatever their names, gains and biases."""

from __future__ import annotations

import pytest
import torch
import transformers
from models import COMMON, WIDTH, random_sae
from torch import nn
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.cohere2.modeling_cohere2 import Cohere2LayerNorm
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm

from sae_lm_eval.dictionaries.loading import load_dictionary
from sae_lm_eval.errors import UserError
from sae_lm_eval.splicing import norms
from sae_lm_eval.splicing.activation_map import map_name
from sae_lm_eval.splicing.attach import attached
from sae_lm_eval.splicing.hook_names import Architecture
from sae_lm_eval.splicing.module_io import ModuleSide, record_activations
from sae_lm_eval.splicing.site import resolve_site
from sae_lm_eval.splicing.variants import Choices, build_variant

EPS = 3e-4


class CentredRoot(nn.Module):
    """No class that anybody has: the mean is subtracted, and the divisor is the root mean square of what came."""

    def forward(self, x):
        return (x - x.mean(-1, keepdim=True)) / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt()


class Squashed(nn.Module):
    def forward(self, x):
        return torch.tanh(x)


CENTRING = {
    "LayerNorm": lambda: nn.LayerNorm(WIDTH, eps=EPS),
    "LayerNorm without bias": lambda: nn.LayerNorm(WIDTH, eps=EPS, bias=False),
    "OLMo": lambda: OlmoLayerNorm(WIDTH),
    "Cohere": lambda: CohereLayerNorm(WIDTH, eps=EPS),
    "Cohere-2": lambda: Cohere2LayerNorm(WIDTH, eps=EPS),
    "Nemotron": lambda: NemotronLayerNorm1P(WIDTH, eps=EPS),
}
OTHERS = {
    "torch's RMSNorm": lambda: nn.RMSNorm(WIDTH, eps=EPS),
    "Llama": lambda: LlamaRMSNorm(WIDTH, eps=EPS),
    "Gemma-2": lambda: Gemma2RMSNorm(WIDTH, eps=EPS),
}


def randomised(norm: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in norm.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return norm.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*CENTRING, *OTHERS])
def test_the_kind_and_the_eps_are_found(name, dtype):
    norm = randomised((CENTRING | OTHERS)[name]()).to(dtype)
    normalisation = norms.measured(norm, WIDTH)
    assert (
        normalisation.centres == normalisation.by_deviation == norms.subtracts_mean(norm, WIDTH) == (name in CENTRING)
    )
    assert normalisation.eps == pytest.approx(
        1e-5 if name == "OLMo" else EPS, rel=1e-2 if dtype == torch.float32 else 0.1
    )


@pytest.mark.parametrize("name", [*CENTRING, *OTHERS])
@pytest.mark.parametrize("size", [0.01, 1.0, 50.0])
def test_gain_and_bias_lead_from_what_is_measured_to_what_the_norm_gives(name, size):
    norm = randomised((CENTRING | OTHERS)[name]())
    x = size * (1 + torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(1)))
    inner = norms.measured(norm, WIDTH)(x)
    bias = getattr(norm, "bias", None)
    bias = torch.zeros(WIDTH) if bias is None else bias
    gain = (norm(x) - bias)[0] / inner[0]
    torch.testing.assert_close(gain * inner + bias, norm(x), rtol=2e-3, atol=2e-4)


def test_a_norm_of_a_kind_that_nobody_has():
    normalisation = norms.measured(CentredRoot(), WIDTH)
    assert (normalisation.centres, normalisation.by_deviation) == (True, False)
    x = 1 + torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(normalisation(x), CentredRoot()(x))


def test_what_is_no_norm_is_refused():
    with pytest.raises(UserError, match="Squashed divides by neither the standard deviation nor the root mean square"):
        norms.measured(Squashed(), WIDTH)


def test_a_norm_of_shapes_alone_is_of_the_same_kind():
    with torch.device("meta"):
        layer_norm, rms_norm = nn.LayerNorm(WIDTH), LlamaRMSNorm(WIDTH)
    assert norms.subtracts_mean(layer_norm, WIDTH)
    assert not norms.subtracts_mean(rms_norm, WIDTH)


def small(kind: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.CONFIG_MAPPING[kind](**COMMON)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn(weight.shape))
            else:
                weight.mul_(5)
    return model.requires_grad_(False)


@pytest.mark.parametrize(("kind", "block_norm"), [("olmo", "post_attention_layernorm"), ("cohere", "input_layernorm")])
def test_a_transcoder_reads_what_the_models_own_norm_made(kind, block_norm):
    model = small(kind)
    hook_in = "blocks.1.ln2.hook_normalized" if kind == "olmo" else "blocks.1.ln1.hook_normalized"
    transcoder = random_sae(WIDTH, hook_in, "transcoder", hook_out="blocks.1.hook_mlp_out")
    variant = build_variant(model, [load_dictionary(transcoder)], Choices(), frozenset())
    norm, mlp = model.model.layers[1].get_submodule(block_norm), model.model.layers[1].mlp
    ids, read = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(0)), {}

    def centred(_module, args):
        read["x"] = nn.functional.layer_norm(args[0], (WIDTH,), eps=1e-5)

    handles = [
        norm.register_forward_pre_hook(centred),
        mlp.register_forward_hook(lambda *_: transcoder(read["x"])),
    ]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        for handle in handles:
            handle.remove()
        untouched = model(input_ids=ids).logits
        with attached(model, variant):
            ours = model(input_ids=ids).logits
    assert (untouched - expected).abs().max() > 0.05
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "name"), [("olmo", "centered"), ("cohere", "centered"), ("llama", "raw")])
def test_a_centred_release_is_centred_where_the_norms_centre(kind, name):
    architecture = Architecture(small(kind))
    site = resolve_site(architecture, "blocks.1.hook_resid_post")
    assert map_name(architecture, site, {"center_writing_weights": True}) == name


def test_values_without_a_bias_have_nothing_folded_out_of_them():
    model = small("olmo")
    processing = {"fold_ln": True, "fold_value_biases": True}
    sae = random_sae(WIDTH, "blocks.1.attn.hook_z", model_from_pretrained_kwargs=processing)
    (splice,) = build_variant(model, [load_dictionary(sae)], Choices(), frozenset()).splices
    assert splice.map_in.name == "folded_value_bias"
    assert splice.map_in.shift is not None
    assert splice.map_in.shift.shape == (WIDTH,)
    assert splice.map_in.shift.abs().max() == 0


def test_attention_with_sinks_folds_no_constant():
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8}
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING["gpt_oss"](**COMMON, **experts)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.5 * torch.randn(weight.shape))
    sae = random_sae(WIDTH, "blocks.1.attn.hook_z", model_from_pretrained_kwargs={"fold_value_biases": True})
    with pytest.raises(UserError, match="do not sum to one, so no constant is folded out of hook_z: give hook_map=raw"):
        build_variant(model, [load_dictionary(sae)], Choices(), frozenset())


def test_reading_a_norm_calls_no_hook_of_it():
    model, calls = small("olmo"), []
    norm = model.model.layers[1].input_layernorm
    norm.register_forward_hook(lambda *_: calls.append(1))
    ids = torch.tensor([[3, 4, 5]])
    record_activations(model, [ModuleSide("model.layers.1.input_layernorm", "normalized")], ids)
    assert len(calls) == 1
