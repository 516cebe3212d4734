"""Sparse decoding is decoding."""

from __future__ import annotations

import pytest
import torch
from models import random_sae
from sae_lens import SAE

from sae_lm_eval.dictionaries import sparse_decoding as sparse
from sae_lm_eval.dictionaries.loading import load_dictionary
from sae_lm_eval.dictionaries.sparse_decoding import SparseDecoding, gather, gather_pays


def sparse_rows(rows: int, elements: int, active: int, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values, indices = torch.randn(rows, elements, generator=generator).topk(active)
    return torch.zeros(rows, elements).scatter(-1, indices, values)


@pytest.mark.parametrize("active", [0, 1, 7, 256])
def test_gather_is_the_product(active):
    decoder = torch.randn(256, 24, generator=torch.Generator().manual_seed(1))
    rows = sparse_rows(10, 256, active)
    rows[3] = 0  # a position at which nothing fires
    torch.testing.assert_close(gather(rows, decoder), rows @ decoder)
    torch.testing.assert_close(gather(rows.reshape(2, 5, 256), decoder), rows.reshape(2, 5, 256) @ decoder)


def test_it_is_used_where_few_latents_fire_alone():
    decoder = torch.randn(256, 24)
    assert gather_pays(sparse_rows(10, 256, 7), decoder)
    assert not gather_pays(sparse_rows(10, 256, 9), decoder)
    assert not gather_pays(sparse_rows(10, 256, 7).double(), decoder.double())
    assert not gather_pays(sparse_rows(10, 256, 7), decoder.requires_grad_())
    assert not gather_pays(sparse_rows(10, 256, 7).to("meta"), decoder.to("meta"))


def test_no_other_product_is_touched(monkeypatch):
    monkeypatch.setattr(sparse, "gather", lambda *_: pytest.fail("not the decoder"))
    decoder, other = torch.randn(256, 24), torch.randn(256, 24)
    with SparseDecoding(decoder):
        assert (sparse_rows(3, 256, 2) @ other).shape == (3, 24)


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated", "skip_transcoder"])
def test_saelens_decodes_through_it(architecture, monkeypatch):
    hooks = {"hook_out": "blocks.0.hook_mlp_out"} if "transcoder" in architecture else {}
    sae = random_sae(32, "blocks.0.hook_resid_post", architecture, **hooks)
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    used = []
    monkeypatch.setattr(sparse, "PAYS_BELOW", {"cpu": 2})
    monkeypatch.setattr(sparse, "gather", lambda *pair: used.append(1) or gather(*pair))
    with torch.no_grad():
        new = load_dictionary(sae).reconstruct(x)
        torch.testing.assert_close(new, SAE.forward(sae, x) if hooks == {} else sae(x))
    assert used
