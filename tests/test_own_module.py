"""A module or function of the user's own stands for activations as any dictionary does."""

from __future__ import annotations

import copy
import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from models import WIDTH, random_ids, random_model, random_sae, word_tokenizer, words
from torch import Tensor, nn

from sae_lm_eval.errors import UserError
from sae_lm_eval.fidelity.source import TextSource
from sae_lm_eval.harness.model import SaeHFLM

UP = "model.layers.1.mlp.up_proj"
RESID = "blocks.1.hook_resid_post"
SITES = (RESID, "blocks.1.hook_resid_mid", "blocks.0.attn.hook_z", "model.layers.1.mlp.input", "model.norm.input")


def adapter(own, hook: str | None = RESID, model: str = "llama", **kwargs) -> SaeHFLM:
    return SaeHFLM(pretrained=random_model(model), tokenizer=word_tokenizer(), sae=own, hook=hook, **kwargs)


class Halves(nn.Module):
    """Half of each activation, by a number that is neither parameter nor buffer."""

    def __init__(self, factor: float = 0.5):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(x)

    def scaled(self, x: Tensor) -> Tensor:
        return x * self.factor


class Components(nn.Module):
    """The projection on orthonormal directions that are a buffer, as PCA has them."""

    directions: Tensor

    def __init__(self, rank: int = 5):
        super().__init__()
        basis, _ = torch.linalg.qr(torch.randn(WIDTH, rank, generator=torch.Generator().manual_seed(0)))
        self.register_buffer("directions", basis)

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.directions)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.directions @ self.directions.mT


def by_hand(own, ids: Tensor, model: str = "llama") -> Tensor:
    """Logits with `own` behind the second block, but at special tokens."""
    lm, kept = random_model(model), torch.isin(ids, torch.tensor([0, 1, 2]))[..., None]
    hook = lm.model.layers[1].register_forward_hook(lambda _m, _a, out: torch.where(kept, out, own(out)))
    with hook, torch.no_grad():
        return lm(ids, use_cache=False).logits


@pytest.mark.parametrize("own", [Halves(), Components(), lambda x: x + 1, functools.partial(torch.mul, other=0.5)])
def test_it_takes_the_place_of_the_activation(own):
    ids = random_ids()
    torch.testing.assert_close(adapter(own)._model_call(ids), by_hand(own, ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("hook", SITES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_identity_changes_no_bit(hook, dtype):
    model, ids = random_model("llama").to(getattr(torch, dtype)), random_ids()
    lm = SaeHFLM(pretrained=model, tokenizer=word_tokenizer(), sae=nn.Identity(), hook=hook)
    with torch.no_grad():
        assert torch.equal(lm._model_call(ids), model(ids, use_cache=False).logits)


def test_one_that_reads_elsewhere_takes_two_sites():
    own = nn.Linear(48, WIDTH)
    lm = adapter(own, "model.layers.1.mlp.down_proj.input:model.layers.1.mlp.output")
    splice = lm.spliced.variant.splices[0]
    assert splice.dictionary.widths == (48, WIDTH)
    assert lm.spliced.provenance()["splices"][0]["d_dictionary"] is None


def fidelity(lm: SaeHFLM) -> dict:
    source = TextSource("test", (words(30, seed=70),))
    requests = [
        Instance("sae_fidelity", {}, (words(n, seed=n), None, source), 0, ("f", n, 1))  # pyright: ignore[reportArgumentType]
        for n in (12, 20)
    ]
    records = lm.sae_fidelity(requests, disable_tqdm=True)
    return {"records": records, **lm.fidelity.by_task["f"]}


def test_what_has_no_latents_has_no_l0_and_the_rest_of_the_metrics():
    measured = fidelity(adapter(Halves()))
    assert [measured["undefined"][name] for name in ("l0", "fraction_fired")] == [
        "what is spliced in has no latents"
    ] * 2
    assert "fvu" not in measured["undefined"]
    sums = measured["records"][0]["dictionaries"][RESID]
    assert sums["l0"] is None
    assert sums["norm_ratio"] / sums["positions"] == pytest.approx(0.5)


def test_l0_counts_what_encode_gives():
    own = Components()
    sums = fidelity(adapter(own))["records"][0]["dictionaries"][RESID]
    ids = torch.tensor([[1, *[int(w[1:]) for w in words(12, seed=12).split()]]])
    with torch.no_grad():
        hidden = random_model("llama")(ids, output_hidden_states=True).hidden_states[2][0, 1:-1]
    assert sums["l0"] == int((own.encode(hidden) > 0).sum())


def test_the_users_module_stays_as_it_was():
    own = Components().double().train()
    before = copy.deepcopy(own.state_dict())
    adapter(own)._model_call(random_ids())
    assert own.training
    assert all(torch.equal(own.state_dict()[name], value) for name, value in before.items())
    assert own.directions.dtype == torch.float64


class TestIdentity:
    """What an answer depends on has the code, the weights and the settings of the module."""

    def test_weights_settings_and_code_decide(self):
        class Same(Halves):
            def scaled(self, x: Tensor) -> Tensor:
                return x * self.factor + 0.0

        other = Components()
        other.directions[0, 0] += 1e-3
        identities = [adapter(own).spliced.identity() for own in (Halves(), Halves(0.25), Same(), Components(), other)]
        assert len(set(identities)) == 5
        assert adapter(Halves()).spliced.identity() == identities[0]

    def test_what_a_function_closes_over_decides(self):
        def steering(vector: Tensor, inner: nn.Module):
            return lambda x: inner(x) + vector

        zero, ones = torch.zeros(WIDTH), torch.ones(WIDTH)
        given = [(zero, Halves()), (ones, Halves()), (zero, Halves(0.25)), (zero, Components())]
        assert len({adapter(steering(*arguments)).spliced.identity() for arguments in given}) == 4

    def test_a_change_between_calls_is_seen(self):
        own, ids = Components(), random_ids()
        lm = adapter(own)
        first = lm._model_call(ids)
        own.directions.zero_()
        assert not torch.equal(lm._model_call(ids), first)
        torch.testing.assert_close(lm._model_call(ids), by_hand(own, ids), atol=1e-5, rtol=0)


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2)


class OfBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean((0, 1), keepdim=True)


class Encodes(nn.Identity):
    def __init__(self, latents):
        super().__init__()
        self.latents = latents

    def encode(self, _x: Tensor):
        return self.latents


def on_a_gpu(x: Tensor) -> Tensor:
    return x + torch.ones(1, device="cuda:7")


def raises(_x: Tensor) -> Tensor:
    raise KeyError("layer\nsecond line")


MISTAKES = {
    "no site": ((nn.Identity(), None), r"<Identity> does not say where it was trained: give hook="),
    "too narrow": ((nn.Linear(WIDTH, 8), RESID), r"<Linear> makes 8 values a position of 32, where 32 are to be"),
    "reads another width": ((nn.Linear(16, 16), RESID), r"<Linear> fails on activations \(8, 3, 32\) in float32"),
    "widths of two sites": ((nn.Identity(), f"{UP}.input:{UP}.output"), "makes 32 values.* where 48"),
    "a tuple": ((lambda x: (x, x), RESID), r"<lambda> makes a tuple of activations: it must give one tensor\."),
    "nothing": ((lambda x: None, RESID), r"<lambda> makes a NoneType of activations"),
    "a number": ((lambda x: 3.0, RESID), r"<lambda> makes a float of activations"),
    "one axis less": ((lambda x: x[0], RESID), r"makes \(3, 32\) of .*: it must give \(8, 3, width\)"),
    "fewer positions": ((lambda x: x[:, :1], RESID), r"makes \(8, 1, 32\) of activations"),
    "no width": ((lambda x: x[..., :0], RESID), r"makes \(8, 3, 0\) of activations"),
    "nan": ((lambda x: x / 0 * 0, RESID), r"<lambda> makes values of random activations that are not finite"),
    "infinite": ((lambda x: x / 0, RESID), r"not finite"),
    "in place": ((InPlace(), RESID), r"<InPlace> changes the activations that it is given in place"),
    "of its batch": ((OfBatch(), RESID), r"<OfBatch> makes something else of a sequence when other sequences"),
    "by chance": ((lambda x: x + torch.randn_like(x), RESID), r"makes something else of a sequence"),
    "another device": ((on_a_gpu, RESID), r"<on_a_gpu> fails on activations .* on cpu: "),
    "raises": ((raises, RESID), r"<raises> fails on activations .*: KeyError: "),
    "encodes nothing": ((Encodes(None), RESID), r"<Encodes> encodes a NoneType of activations"),
    "encodes rows": ((Encodes(torch.ones(4)), RESID), r"<Encodes> encodes \(4,\) of activations \(8, 3, 32\)"),
    "a class": ((Halves, RESID), r"The class Halves is no dictionary\."),
    "a number given": ((7, RESID), r"A int is no dictionary\. Give a spec, .* or a module or function that maps"),
    "a wrong site": ((nn.Identity(), "blocks.9.hook_resid_post"), r"Layers run from 0 to 2\."),
    "read only": ((nn.Identity(), "blocks.1.ln2.hook_normalized"), r"can be read but not written"),
    "norm factor": ((nn.Identity(), RESID, {"norm_factor": 2.0}), r"<Identity> needs no norm_factor: leave it out\."),
    "two at a site": (([nn.Identity(), Halves()], f"{RESID}+{RESID}"), r"both write at 'blocks\.1\.hook_resid_post'"),
    "one hook for two": (([nn.Identity(), Halves()], RESID), r"hook names 1 and there are 2 dictionaries"),
    "not to be copied": ((nn.ParameterDict({"a": nn.Parameter(torch.ones(1))}), RESID), r"<ParameterDict> fails on"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_told_in_a_sentence(case):
    (own, hook, *more), expected = MISTAKES[case]
    with pytest.raises(UserError, match=expected) as error:
        adapter(own, hook, **(more[0] if more else {}))
    assert "\n" not in str(error.value)


def test_two_kinds_stand_together():
    lm = adapter([random_sae(WIDTH, "blocks.0.hook_resid_post"), Halves()], f"blocks.0.hook_resid_post+{RESID}")
    assert lm.spliced.name == "<StandardSAE>+<Halves>"


def test_the_lines_of_the_page_run(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "decompositions.md").read_text(encoding="utf-8")
    scope: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, scope)
    assert scope["lm"].spliced.name == "<LowRank>"
    assert set(scope["evaluate"](tmp_path / "out").drops["variant"]) == {"rank_64"}
