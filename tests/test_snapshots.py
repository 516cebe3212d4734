"""A dictionary is made of the user's object as a copy, and follows what becomes of it."""

from __future__ import annotations

import copy

import pytest
import torch
from models import WIDTH, random_sae
from torch import nn

from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.dictionaries.loading import load_as_released, load_dictionary, renewed
from sae_lm_eval.runtime.content import contents

sparsify = pytest.importorskip("sparsify")
HOOK = "blocks.1.hook_resid_post"
X = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))


class Own(nn.Module):
    """A dictionary of the user's own making, with a part that says whether it is trained."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.decoder = nn.Parameter(torch.randn(48, WIDTH, generator=generator))
        self.dropout, self.factor = nn.Dropout(0.5), 2.0
        self.last: torch.Tensor | None = None

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * self.dropout((x @ self.decoder.T).relu())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = self.encode(x) @ self.decoder
        return self.last


def own(module: Own, reconstruct, encode) -> Dictionary:
    return Dictionary("own", module, reconstruct, encode, "own", WIDTH, WIDTH, 48, HOOK, HOOK)


GLOBAL = Own()
HANDS = {
    "a function that closes over it": lambda m: own(m, lambda x: m(x), lambda x: m.encode(x)),
    "the module and its method": lambda m: own(m, m, m.encode),
    "a function of a function": lambda m: (lambda inner: own(m, lambda x: inner(x), inner))(lambda x: m(x)),
}


def training_objects():
    sae = random_sae(WIDTH, HOOK)
    config = sparsify.SparseCoderConfig(num_latents=64, k=8)
    hook_z = random_sae(WIDTH, "blocks.1.attn.hook_z")
    hook_z.turn_on_forward_pass_hook_z_reshaping()
    normalised = random_sae(WIDTH, HOOK)
    normalised.cfg.normalize_activations = "expected_average_only_in"
    objects = {"sae": (sae, None), "coder": (sparsify.SparseCoder(WIDTH, config), None), "hook_z": (hook_z, None)}
    return {**objects, "normalised": (normalised, 0.5)}


@pytest.mark.parametrize("name", training_objects())
def test_an_object_stays_as_it_was(name):
    source, factor = training_objects()[name]
    source.train().requires_grad_(True)
    before, state = contents({"": source}), copy.deepcopy(vars(source).get("cfg"))
    load_as_released(source)
    dictionary = load_dictionary(source, dtype=torch.bfloat16, norm_factor=factor)
    assert dictionary.dtype == torch.bfloat16
    assert not dictionary.module.training
    assert contents({"": source}) == before
    assert vars(source).get("cfg") == state
    assert all(part.training for part in source.modules())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in source.parameters())
    assert getattr(source, "hook_z_reshaping_mode", True) or name != "hook_z"


def test_a_training_loop_goes_on_learning():
    sae = random_sae(WIDTH, HOOK).train().requires_grad_(True)
    optimizer = torch.optim.SGD(sae.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        load_dictionary(sae)
        loss = (sae(X) - X).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.parametrize("handed", HANDS)
def test_a_dictionary_of_their_own_stays_as_it_was(handed):
    module = Own()
    given = HANDS[handed](module)
    module(X.requires_grad_(False)).sum().backward()  # so that `last` is in a graph
    dictionary = load_dictionary(given, dtype=torch.float64)
    assert (given.dtype, module.training) == (torch.float32, True)
    expected = copy.deepcopy(module.decoder).double()
    wide = X.double()
    torch.testing.assert_close(dictionary.reconstruct(wide), 2 * (wide @ expected.T).relu() @ expected)
    with torch.no_grad():
        module.decoder.zero_()
    assert dictionary.reconstruct(wide).abs().max() > 0


def test_a_function_that_finds_it_as_a_global():
    dictionary = load_dictionary(own(GLOBAL, lambda x: GLOBAL(x), GLOBAL.encode), dtype=torch.float64)
    assert dictionary.reconstruct(X.double()).dtype == torch.float64
    assert GLOBAL.decoder.dtype == torch.float32


def test_a_hook_of_the_users_is_not_copied_with_what_it_belongs_to():
    class Log:
        def __init__(self) -> None:
            self.seen: list[torch.Tensor] = []

        def __deepcopy__(self, memo):
            raise AssertionError("nobody asked for a copy of this")

        def note(self, _module, _args, output):
            self.seen.append(output)

    sae, log = random_sae(WIDTH, HOOK), Log()
    sae.register_forward_hook(log.note)
    dictionary = load_dictionary(sae)
    log.seen.clear()
    dictionary.reconstruct(X)
    assert len(log.seen) == 1


def test_a_dictionary_that_was_loaded_is_copied_with_its_formula():
    given = load_dictionary(random_sae(WIDTH, HOOK))
    dictionary = load_dictionary(given, dtype=torch.float64)
    assert given.dtype == torch.float32
    torch.testing.assert_close(dictionary.formula(X.double()), dictionary.reconstruct(X.double()))


class TestRenewed:
    def test_only_what_changed_is_made_anew(self):
        saes = [random_sae(WIDTH, HOOK, "topk", seed=i) for i in range(3)]
        dictionaries = [load_dictionary(sae) for sae in saes]
        assert renewed(dictionaries) == tuple(dictionaries)
        saes[1].W_dec.data[3, 4] += 1
        saes[2].activation_fn.k = 2
        now = renewed(dictionaries)
        assert [new is old for new, old in zip(now, dictionaries, strict=True)] == [True, False, False]
        for dictionary, sae in zip(now, saes, strict=True):
            torch.testing.assert_close(dictionary.reconstruct(X), sae(X))
        assert renewed(now) == now

    def test_with_the_same_factor_and_dtype(self):
        sae = random_sae(WIDTH, HOOK)
        sae.cfg.normalize_activations = "expected_average_only_in"
        dictionary = load_dictionary(sae, dtype=torch.float64, norm_factor=0.5)
        with torch.no_grad():
            sae.b_enc.add_(1)
        (now,) = renewed([dictionary])
        assert now.dtype == torch.float64
        assert now.remarks == dictionary.remarks
        torch.testing.assert_close(now.module.b_enc, sae.b_enc.double())

    def test_a_dictionary_of_their_own(self):
        module, scale = Own(), {"by": 1.0}
        dictionary = load_dictionary(own(module, lambda x: scale["by"] * module(x), module.encode))
        assert renewed([dictionary]) == (dictionary,)
        module.factor = 3.0
        (now,) = renewed([dictionary])
        torch.testing.assert_close(now.reconstruct(X), 1.5 * dictionary.reconstruct(X))
        expected = 3.0 * dictionary.reconstruct(X)
        scale["by"] = 2.0
        (after,) = renewed([now])
        assert after is not now
        torch.testing.assert_close(after.reconstruct(X), expected, rtol=1e-4, atol=1e-3)
