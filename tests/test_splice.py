"""Laws of splicing, on small random models of each architecture."""

from __future__ import annotations

from dataclasses import replace

import bfloat16
import pytest
import torch
from models import ARCHITECTURES, VOCABULARY, WIDTH, random_ids, random_model, random_sae
from torch import Tensor, nn

from sae_lm_eval.dictionaries.loading import load_dictionary
from sae_lm_eval.errors import UserError
from sae_lm_eval.splicing.attach import attached
from sae_lm_eval.splicing.module_io import record_activations
from sae_lm_eval.splicing.splice import EDITS, Context, Splice, Variant
from sae_lm_eval.splicing.splice_arguments import MODES
from sae_lm_eval.splicing.variants import Choices, build_variant, with_means

SPECIAL = frozenset({0, 1, 2})
RESID = "blocks.1.hook_resid_post"


def variant_of(model, *saes, special=SPECIAL, **choices) -> Variant:
    return build_variant(model, [load_dictionary(sae) for sae in saes], Choices(**choices), special)


@torch.no_grad()
def logits(model, ids: Tensor, variant: Variant | None = None, **kwargs) -> Tensor:
    if variant is None:
        return model(input_ids=ids, **kwargs).logits
    with attached(model, variant):
        return model(input_ids=ids, **kwargs).logits


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def splices_of_every_kind(model) -> list:
    config = model.config.get_text_config()
    heads = config.num_attention_heads * (getattr(config, "head_dim", None) or WIDTH // config.num_attention_heads)
    return [
        random_sae(WIDTH, "hook_embed"),
        random_sae(heads, "blocks.1.attn.hook_z", seed=1),
        random_sae(WIDTH, "blocks.1.mlp.hook_in", "skip_transcoder", hook_out="blocks.1.hook_mlp_out", seed=2),
        random_sae(WIDTH, RESID, "topk", seed=3),
    ]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest):
    return random_model(request.param)


def test_scale_is_a_line_from_the_activation_to_what_the_mode_makes_of_it():
    model = random_model(ARCHITECTURES[0])
    y = torch.randn(2, 7, WIDTH, generator=torch.Generator().manual_seed(0))
    context = Context(random_ids(2, 7), torch.arange(7).expand(2, 7), None)
    for mode in EDITS:
        variant = variant_of(model, random_sae(WIDTH, RESID), splice=mode)
        splice = with_means(variant, [torch.ones(WIDTH)]).splices[0]
        new = splice.edit(y, y, context)
        for scale in (0.0, 0.25, 1.0):
            part = replace(splice, scale=scale).edit(y, y, context)
            assert torch.allclose(part, y + scale * (new - y), atol=1e-6)
    error = splice.dictionary.reconstruct(y) - y
    half = replace(splice, scale=0.5, mode="random_error").edit(y, y, context) - y
    assert torch.allclose(half.norm(dim=-1), 0.5 * error.norm(dim=-1), rtol=1e-4)


class TestEveryArchitecture:
    def test_none_changes_no_bit(self, model):
        ids = random_ids()
        variant = variant_of(model, *splices_of_every_kind(model), splice="none")
        assert torch.equal(logits(model, ids, variant), logits(model, ids))

    def test_with_error_changes_nothing(self, model):
        ids = random_ids()
        variant = variant_of(model, *splices_of_every_kind(model), splice="with_error")
        assert (logits(model, ids, variant) - logits(model, ids)).abs().max() < 1e-5

    def test_scale_goes_from_the_model_to_the_splice(self, model):
        ids, saes = random_ids(), splices_of_every_kind(model)
        plain, whole = logits(model, ids), logits(model, ids, variant_of(model, *saes))
        assert torch.equal(logits(model, ids, variant_of(model, *saes, scale=1.0)), whole)
        half = logits(model, ids, variant_of(model, *saes, scale=0.5))
        for mode in ("reconstruction", "zero", "random_error"):
            none_of_it = logits(model, ids, variant_of(model, *saes, splice=mode, scale=0.0))
            assert (none_of_it - plain).abs().max() < 1e-6
        assert (half - plain).abs().max() > 0
        assert (half - whole).abs().max() > 0

    def test_zero_at_the_last_block_forgets_the_input(self, model):
        last = model.config.get_text_config().num_hidden_layers - 1
        variant = variant_of(
            model, random_sae(WIDTH, f"blocks.{last}.hook_resid_post"), splice="zero", splice_tokens="all"
        )
        out = torch.cat([logits(model, random_ids(seed=seed), variant).flatten(0, 1) for seed in range(2)])
        assert torch.equal(out, out[:1].expand_as(out))
        assert out.std() >= 0

    def test_batches_and_padding_change_nothing(self, model):
        variant = variant_of(model, *splices_of_every_kind(model))
        short, long = random_ids(1, 9, seed=3), random_ids(1, 20, seed=4)
        padded = torch.cat([torch.nn.functional.pad(short, (0, 11)), long])
        together = logits(model, padded, variant)
        assert (together[0, :9] - logits(model, short, variant)[0]).abs().max() < 1e-5
        assert (together[1] - logits(model, long, variant)[0]).abs().max() < 1e-5

    def test_cached_decoding_with_left_padding_is_spliced_at_every_token(self, model):
        variant = variant_of(model, *splices_of_every_kind(model))
        prompts = [random_ids(1, n, seed=n)[0] for n in (5, 12)]
        padded = torch.stack([torch.nn.functional.pad(p, (12 - len(p), 0)) for p in prompts])
        mask = torch.stack([torch.nn.functional.pad(torch.ones_like(p), (12 - len(p), 0)) for p in prompts])
        settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
        with attached(model, variant):
            cached = model.generate(padded, attention_mask=mask, **settings)[:, 12:]
        for prompt, new in zip(prompts, cached, strict=True):
            ids = prompt[None]
            for token in new:
                scores = logits(model, ids, variant)[0, -1]
                allowed = scores.index_fill(0, torch.tensor([2]), -torch.inf)  # what min_new_tokens forbids
                assert allowed[token] > allowed.max() - 1e-4
                ids = torch.cat([ids, token.view(1, 1)], dim=1)

    def test_float32_dictionaries_in_a_bfloat16_model(self, model):
        half = random_model(_name(model)).bfloat16()
        ids = random_ids()
        saes = splices_of_every_kind(half)
        variant = variant_of(half, *saes)
        out = logits(half, ids, variant)
        assert out.dtype == torch.bfloat16
        assert all(splice.dictionary.dtype == torch.float32 for splice in variant.splices)
        in_full = logits(model, ids, variant_of(model, *splices_of_every_kind(model)))
        median, *_ = bfloat16.stated(torch.float32)[_name(model), "ReLU"]
        off = (out.float().log_softmax(-1) - in_full.log_softmax(-1)).abs().median()
        assert off < 4 * median  # three dictionaries instead of one


def _name(model) -> str:
    return next(name for name in ARCHITECTURES if type(random_model(name)) is type(model))


def test_random_error_has_the_norm_of_the_error():
    model = random_model("llama")
    ids = random_ids()
    sae = random_sae(WIDTH, RESID)
    variant = variant_of(model, sae, splice="random_error", special=frozenset())
    port = variant.splices[0].site_out.read
    with torch.no_grad():
        y = record_activations(model, [port], ids)[port]
        with attached(model, variant):
            edited = record_activations(model, [port], ids)[port]  # recorded behind the splice: hooks run in order
    error, noise = sae(y) - y, edited - y
    torch.testing.assert_close(noise.norm(dim=-1), error.norm(dim=-1), rtol=1e-4, atol=1e-5)
    cosine = torch.cosine_similarity(noise, error, dim=-1)
    assert cosine.abs().mean() < 3 / WIDTH**0.5


def test_random_error_is_of_its_seed_and_not_of_the_batch():
    model = random_model("llama")
    ids = random_ids(3)
    first, again, other = (
        variant_of(model, random_sae(WIDTH, RESID), splice="random_error", seed=s) for s in (0, 0, 1)
    )
    assert torch.equal(logits(model, ids, first), logits(model, ids, again))
    assert (logits(model, ids, first) - logits(model, ids, other)).abs().max() > 1e-2
    assert (logits(model, ids, first)[1:2] - logits(model, ids[1:2], first)).abs().max() < 1e-5


def test_mean_is_put_at_every_position_but_special_ones():
    model = random_model("gpt2")
    ids, mean = random_ids(), torch.arange(WIDTH).float()
    variant = with_means(variant_of(model, random_sae(WIDTH, RESID), splice="mean"), [mean])
    port = variant.splices[0].site_out.read
    plain = record_activations(model, [port], ids)[port]
    with attached(model, variant):
        edited = record_activations(model, [port], ids)[port]
    special = torch.isin(ids, torch.tensor(sorted(SPECIAL)))
    assert torch.equal(edited[special], plain[special])
    assert torch.equal(edited[~special], mean.expand_as(edited[~special]))


def test_a_dictionary_that_attends_is_not_shown_padding():
    model = random_model("llama")
    variant = variant_of(model, random_sae(WIDTH, RESID, "temporal"))
    ids = random_ids(1, 10)
    padded = torch.nn.functional.pad(ids, (6, 0))
    mask = (padded != 0).long()
    alone = logits(model, ids, variant)
    assert (logits(model, padded, variant, attention_mask=mask)[:, 6:] - alone).abs().max() < 1e-4
    assert (alone - logits(model, ids)).abs().max() > 1e-2


def test_later_splices_see_what_earlier_ones_left():
    model = random_model("llama")
    ids = random_ids()
    first, second = random_sae(WIDTH, "blocks.0.hook_resid_post", seed=1), random_sae(WIDTH, RESID, seed=2)
    variant = variant_of(model, second, first, special=frozenset())
    port = variant.splices[0].site_out.read
    with attached(model, variant_of(model, first, special=frozenset())):
        before = record_activations(model, [port], ids)[port]
    with attached(model, variant):
        after = record_activations(model, [port], ids)[port]
    torch.testing.assert_close(after, second(before), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_no_hook_stays_whatever_raises(mode, monkeypatch):
    model = random_model("gemma2")
    variant = variant_of(model, *splices_of_every_kind(model), splice=mode)
    if mode == "mean":
        variant = with_means(variant, [torch.zeros(s.dictionary.d_out) for s in variant.splices])
    before = hooks_of(model)
    with attached(model, variant):
        assert hooks_of(model) > before
    assert hooks_of(model) == before

    def fail(*_):
        raise FloatingPointError

    monkeypatch.setattr(Splice, "edit", fail)
    if mode != "none":
        with pytest.raises(FloatingPointError):
            logits(model, random_ids(), variant)
    assert hooks_of(model) == before


def test_no_hook_stays_when_attaching_fails_half_way(monkeypatch):
    model = random_model("llama")
    variant = variant_of(model, *splices_of_every_kind(model))
    before, real, calls = hooks_of(model), nn.Module.get_submodule, []

    def get_submodule(self, path):
        calls.append(path)
        if len(calls) == 3:
            raise AttributeError(path)
        return real(self, path)

    monkeypatch.setattr(nn.Module, "get_submodule", get_submodule)
    with pytest.raises(AttributeError), attached(model, variant):
        pass
    assert hooks_of(model) == before


def test_embeddings_instead_of_ids_are_refused():
    model = random_model("llama")
    variant = variant_of(model, random_sae(WIDTH, RESID))
    with attached(model, variant), pytest.raises(UserError, match="must be called with input_ids"):
        model(inputs_embeds=torch.zeros(1, 3, WIDTH))


def test_the_mask_goes_by_id_wherever_it_stands():
    model = random_model("llama")
    sae = random_sae(WIDTH, RESID)
    ids = random_ids()
    variant = variant_of(model, sae, special=frozenset({int(ids[0, 7])}))
    port = variant.splices[0].site_out.read
    plain = record_activations(model, [port], ids)[port]
    with attached(model, variant):
        edited = record_activations(model, [port], ids)[port]
    kept = (edited == plain).all(-1)
    assert torch.equal(kept, ids == ids[0, 7])
    assert ids.max() < VOCABULARY
