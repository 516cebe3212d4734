"""Edits of latents, against the same done by hand."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest
import torch
from models import WIDTH, random_ids, random_model, random_sae, word_tokenizer
from torch import Tensor, nn

from sae_lm_eval.dictionaries import spec as specs
from sae_lm_eval.dictionaries.loading import load_dictionary
from sae_lm_eval.errors import UserError
from sae_lm_eval.harness.model import SaeHFLM

RESID, OUT = "blocks.1.hook_resid_post", "blocks.1.hook_mlp_out"
KINDS = ("standard", "jumprelu", "topk", "gated", "skip_transcoder")


def sae_of(kind: str):
    if "transcoder" in kind:
        return random_sae(WIDTH, "blocks.1.mlp.hook_in", kind, hook_out=OUT)
    return random_sae(WIDTH, RESID, kind)


def adapter(own, **kwargs) -> SaeHFLM:
    return SaeHFLM(pretrained=random_model("llama"), tokenizer=word_tokenizer(), sae=own, **kwargs)


def kept(latents: Tensor, k: int) -> Tensor:
    return latents * (latents >= latents.sort(dim=-1, descending=True).values[..., k - 1, None])


def ablated(latents: Tensor) -> Tensor:
    latents = latents.clone()
    latents[..., [3, 9]] = 0
    return latents


def clamped(latents: Tensor) -> Tensor:
    latents = latents.clone()
    latents[..., 3], latents[..., 60] = 2.5, -1
    return latents


EDITS = [({"keep_top": 4}, lambda z: kept(z, 4)), ({"ablate": "3+9"}, ablated), ({"clamp": "3:2.5+60:-1"}, clamped)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("given", "by_hand"), EDITS)
def test_the_latents_are_edited(kind, given, by_hand):
    sae, x = sae_of(kind), torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    dictionary = adapter(sae, **given).spliced.variant.splices[0].dictionary
    latents = by_hand(sae.encode(x))
    skip = x @ sae.W_skip.mT if kind == "skip_transcoder" else 0
    expected = latents @ sae.W_dec + sae.b_dec + skip
    torch.testing.assert_close(dictionary.reconstruct(x), expected, atol=1e-4, rtol=1e-4)
    assert dictionary.encode is not None
    assert torch.equal(dictionary.encode(x), latents)


def test_an_edit_that_changes_no_latent_changes_no_bit():
    ids, sae = random_ids(), random_sae(WIDTH, RESID)
    assert torch.equal(adapter(sae, keep_top=64)._model_call(ids), adapter(sae)._model_call(ids))


def test_edits_decide_and_are_recorded():
    sae = random_sae(WIDTH, RESID)
    models = [
        adapter(sae, **given) for given in ({}, {"keep_top": 4}, {"keep_top": 5}, {"ablate": 3}, {"clamp": "3:0"})
    ]
    assert len({lm.spliced.identity() for lm in models}) == 5
    assert models[1].spliced.name == "<StandardSAE> (keep_top=4)"
    assert models[1].spliced.provenance()["latent_edits"] == "keep_top=4"
    assert "latent_edits" not in models[0].spliced.provenance()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"keep_top": 0}, r"keep_top=0 must be a whole number of at least 1\."),
        ({"keep_top": 2.5}, r"keep_top=2\.5 must be a whole number"),
        ({"keep_top": 65}, r"keep_top=65: <StandardSAE> has 64 latents\."),
        ({"ablate": "64"}, r"<StandardSAE> has no latent 64: they run from 0 to 63\."),
        ({"ablate": "3+x"}, r"ablate=3\+x: 'x' is no latent: give numbers from 0 on"),
        ({"ablate": "-1"}, r"ablate=-1: '-1' is no latent"),
        ({"ablate": "3+3"}, r"a latent is named twice\."),
        ({"clamp": "3"}, r"clamp=3 is not of the form LATENT:VALUE"),
        ({"clamp": "3:nan"}, r"clamp=3:nan is not of the form LATENT:VALUE"),
        ({"clamp": "3:1", "ablate": "3"}, r"Latent 3 is both ablated and clamped"),
        ({"sae": nn.Identity(), "hook": RESID, "ablate": "3"}, r"<Identity> has no latents to edit \(ablate=3\)"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(given, expected):
    with pytest.raises(UserError, match=expected):
        adapter(given.pop("sae", random_sae(WIDTH, RESID)), **given)


def test_latents_of_two_dictionaries_are_not_numbered_together():
    two = [random_sae(WIDTH, RESID), random_sae(WIDTH, "blocks.0.hook_resid_post")]
    with pytest.raises(UserError, match=r"Latent 3 may be one of 2 dictionaries, which read at 0, 1: .* as in 1/3\."):
        adapter(two, ablate="3")
    splices = adapter(two, ablate="0/3", clamp="1/5:2").spliced.variant.splices
    x = torch.randn(1, 4, WIDTH, generator=torch.Generator().manual_seed(0))
    for splice, own in zip(splices, two, strict=True):
        latents = own.encode(x)
        latents[..., 3 if own is two[1] else 5] = 0 if own is two[1] else 2
        torch.testing.assert_close(splice.dictionary.encode(x), latents)


def test_an_error_is_that_of_the_dictionary_without_edits():
    sae, ids = random_sae(WIDTH, RESID), random_ids()
    plain, edited = (adapter(sae, splice="with_error", **given) for given in ({}, {"ablate": "3+9"}))
    assert not torch.allclose(edited._model_call(ids), plain._model_call(ids), atol=1e-3)
    model = random_model("llama")
    special = torch.isin(ids, torch.tensor(sorted(edited.spliced.variant.special_ids)))[..., None]

    def less_of_them(_module, _args, y):
        return torch.where(special, y, y - sae.encode(y)[..., [3, 9]] @ sae.W_dec[[3, 9]])

    model.model.layers[1].register_forward_hook(less_of_them)
    torch.testing.assert_close(edited._model_call(ids), model(ids).logits, atol=1e-4, rtol=1e-4)


class Scaled(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def load_scaled(spec: specs.SaeSpec) -> nn.Module:
    if spec.source == "text":
        return "text"  # pyright: ignore[reportReturnType]
    return Scaled(float(spec.source))


class TestLoadersOfOthers:
    @pytest.fixture(autouse=True)
    def installed(self, monkeypatch):
        entry_points = {"scaled": EntryPoint("scaled", f"{__name__}:load_scaled", specs.ENTRY_POINTS)}
        monkeypatch.setattr("sae_lm_eval.dictionaries.spec.loaders_of_others", lambda: entry_points)
        monkeypatch.setattr("sae_lm_eval.dictionaries.loading.loaders_of_others", lambda: entry_points)

    def test_one_is_named_as_any_other(self):
        dictionary = load_dictionary("scaled:0.5")
        assert torch.equal(dictionary.reconstruct(torch.ones(1, 2, 3)), torch.full((1, 2, 3), 0.5))
        assert dictionary.remarks == (f"loaded by {__name__}:load_scaled",)
        assert adapter("scaled:0.5", hook=RESID).spliced.name == "scaled:0.5"

    def test_what_it_raises_is_told_in_a_sentence(self):
        with pytest.raises(UserError, match=r"The loader 'scaled' of .* cannot load 'scaled:x': ValueError: could not"):
            load_dictionary("scaled:x")
        with pytest.raises(UserError, match="gives the text 'text', where it must give a module"):
            load_dictionary("scaled:text")
