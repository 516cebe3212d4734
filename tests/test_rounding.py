"""What sharing may change is what rounding changes, told by the model itself."""

from __future__ import annotations

import pytest
import torch
from models import WIDTH, random_model, random_sae

from sae_lm_eval.dictionaries.loading import load_dictionary
from sae_lm_eval.scoring import attention_kernels, decoding, decoding_trial, prefix_attention, rounding, scorer
from sae_lm_eval.scoring.decoding import Decoder
from sae_lm_eval.scoring.rounding import rounded_otherwise
from sae_lm_eval.scoring.scorer import Layout, Scorer
from sae_lm_eval.splicing.variants import Choices, build_variant, place_dictionaries

HOOKS = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"


@pytest.fixture(params=["llama", "gpt2", "qwen3"])
def model(request):
    return random_model(request.param).to(torch.bfloat16)


@pytest.fixture
def variants(model):
    out = []
    for seed, hook in enumerate(HOOKS):
        sae = load_dictionary(random_sae(WIDTH, hook, "topk", seed=seed))
        out.append(build_variant(model, [sae], Choices("reconstruction"), frozenset()))
        place_dictionaries(model, out[-1])
    return out


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_each_number_of_an_embedding_moves_by_one_or_two_units_in_the_last_place(dtype):
    model = random_model("llama").to(dtype)
    ids, embed = torch.arange(3, 40)[None], model.get_input_embeddings()
    plain = embed(ids)
    with rounded_otherwise(model):
        moved, again = embed(ids), embed(ids.repeat(2, 1))[1:]
    assert torch.equal(moved, again)
    assert torch.equal(embed(ids), plain)
    normal = plain.abs() > torch.finfo(dtype).tiny / torch.finfo(dtype).eps  # below, a unit is no share of the number
    apart = ((moved.double() - plain.double()) / plain.double())[normal].abs() / torch.finfo(dtype).eps
    assert 0.4 < apart.min() <= apart.max() < 2.1
    assert 0.3 < (moved > plain).double().mean() < 0.7


@pytest.mark.parametrize("place", ["meta", "cpu"])
def test_the_draw_is_the_hosts_whatever_the_default_device(place):
    model, ids = random_model("llama"), torch.arange(3, 9)[None]
    with rounded_otherwise(model):
        expected = model.get_input_embeddings()(ids)
        with torch.device(place):
            assert torch.equal(model.get_input_embeddings()(ids), expected)


@pytest.mark.parametrize(("precision", "is_allowed"), [("ieee", False), ("tf32", True), ("none", False)])
def test_whether_a_gpu_may_round_the_factors_of_products(precision, is_allowed):
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    matmul.fp32_precision = precision
    try:
        assert rounding._is_tf32_allowed() == is_allowed
    finally:
        matmul.fp32_precision = before


class TestTrials:
    """In bfloat16, with no difference allowed but that of rounding."""

    @pytest.fixture(autouse=True)
    def no_tolerance(self, monkeypatch):
        monkeypatch.setitem(scorer.TOLERANCE, torch.bfloat16, 0.0)
        monkeypatch.setitem(decoding_trial.TOLERANCE, torch.bfloat16, 0.0)

    def test_everything_is_shared(self, model, variants):
        assert Scorer(model, variants, rows=2, limit=64).layout == Layout()

    def test_models_write_together_behind_shared_beginnings(self, model, variants):
        decoder = Decoder(model, [None, *variants], rows=16, limit=64)
        decoding_trial.check_decoding(decoder)
        assert decoder.attention is not None

    def test_a_fault_is_still_found(self, model, variants, monkeypatch):
        attend = prefix_attention._behind
        monkeypatch.setattr(prefix_attention, "_behind", lambda _prefix, *rest: attend(None, *rest))
        decoder = Decoder(model, [None, *variants], rows=16, limit=64)
        decoding_trial.check_decoding(decoder)
        assert decoder.attention is None, "rows did not see what they are behind"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("broken", range(decoding_trial.PROMPTS))
def test_a_fault_of_one_prompt_is_found(dtype, broken, monkeypatch):
    """Its positions are off, those of the others are not."""

    def draft(number, model, position, *rest):
        return plain(number, model, position + 40 * (number == broken), *rest)

    plain = decoding.Draft
    monkeypatch.setattr(decoding, "Draft", draft)
    with pytest.raises(ValueError, match="nats off"):
        decoding_trial.check_decoding(Decoder(random_model("llama").to(dtype), [None], rows=16, limit=128))


def test_a_model_that_does_not_tell_its_embedding_is_compared_without(monkeypatch):
    """What differs at all is not shared."""
    model = random_model("llama").to(torch.bfloat16)
    monkeypatch.setitem(scorer.TOLERANCE, torch.bfloat16, 0.0)

    def unknown(_self):
        raise NotImplementedError

    monkeypatch.setattr(type(model), "get_input_embeddings", unknown)
    assert Scorer(model, [], rows=2, limit=64).layout in scorer.LAYOUTS


class TestAttention:
    """cuDNN's attention builds a plan for every shape."""

    @pytest.fixture
    def seen(self, model):
        seen = []
        for module in (model, model.base_model):
            module.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cuda.cudnn_sdp_enabled()))
        return seen

    @pytest.mark.parametrize("enabled", [True, False])
    def test_forked_passes_leave_it_out(self, variants, model, seen, enabled):
        kernels = torch.backends.cuda
        before = kernels.cudnn_sdp_enabled()
        kernels.enable_cudnn_sdp(enabled)
        try:
            assert Scorer(model, variants, rows=2, limit=64).layout == Layout()
            decoding_trial.check_decoding(Decoder(model, [None, *variants], rows=16, limit=64))
            assert kernels.cudnn_sdp_enabled() == enabled
        finally:
            kernels.enable_cudnn_sdp(before)
        assert len(seen) > 10
        assert not any(seen)

    def test_scopes_that_overlap(self):
        kernels = torch.backends.cuda
        before = kernels.cudnn_sdp_enabled()
        kernels.enable_cudnn_sdp(True)
        first, second = attention_kernels.attention_without_plans(), attention_kernels.attention_without_plans()
        try:
            first.__enter__()
            second.__enter__()
            first.__exit__(None, None, None)
            assert not kernels.cudnn_sdp_enabled()
            second.__exit__(None, None, None)
            assert kernels.cudnn_sdp_enabled()
        finally:
            kernels.enable_cudnn_sdp(before)

    def test_it_stays_where_nothing_else_is_allowed(self, monkeypatch):
        for name in attention_kernels.OTHERS:
            monkeypatch.setattr(torch.backends.cuda, name, lambda: False)
        before = torch.backends.cuda.cudnn_sdp_enabled()
        torch.backends.cuda.enable_cudnn_sdp(True)
        try:
            with attention_kernels.attention_without_plans():
                assert torch.backends.cuda.cudnn_sdp_enabled()
        finally:
            torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_under_autocast_the_unit_is_that_of_its_arithmetic(dtype):
    model, ids = random_model("llama"), torch.arange(3, 40)[None]
    plain = model.get_input_embeddings()(ids)
    with torch.autocast("cpu", dtype), rounded_otherwise(model):
        moved = model.get_input_embeddings()(ids)
    torch.testing.assert_close(
        (moved / plain - 1).abs(), torch.full_like(plain, torch.finfo(dtype).eps), rtol=1e-3, atol=0
    )
