"""Dictionaries of every converter of SAELens and of sparsify, from a hub on loopback, against plain torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import hub_environment_of, serving
from releases import (
    CROSS_LAYER_REPOSITORY,
    CROSS_LAYER_SPEC,
    RELEASES,
    Release,
    activations,
    autoencoder,
    cross_layer,
    learned,
    of_2024,
    save,
    standard,
)

from sae_lm_eval.catalog.converters import CONVERTERS

# The repository is there and the file is not; neither is there.
NO_FILE = "gemma-scope-2b-pt-res#layer_0/width_16k/average_l0_105"
NO_SHAPES = "gemma-scope-2-270m-pt-res#layer_5_width_16k_l0_small"
NO_REPOSITORY = "gemma-scope-2b-pt-mlp#layer_0/width_16k/average_l0_119"
UNREGISTERED = OWN, OLD, NO_CODER = (
    "org/own#trainer_0",
    "org/old#one",
    f"{RELEASES[-1].spec.partition('#')[0]}#layers.4.mlp",
)
SPECS = [release.spec for release in RELEASES]


def loaded(environment: dict[str, str], out: Path, specs: list[str]) -> dict:
    """What `releases.load_all` makes of the specs in another process, which sees that environment's hub."""
    command = [sys.executable, str(Path(__file__).with_name("releases.py")), str(out), *specs]
    subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return torch.load(out, weights_only=False)


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[dict, dict]:
    """What is loaded with the hub there, and what without it afterwards."""
    folder = tmp_path_factory.mktemp("releases")
    for release in RELEASES:
        save(folder / "root" / "models" / release.repository, release.write())
    save(folder / "root" / "models" / CROSS_LAYER_REPOSITORY, cross_layer())
    save(folder / "root" / "models" / "org" / "own", learned("trainer_0", "AutoEncoder", autoencoder("bias"), "gpt2"))
    save(folder / "root" / "models" / "org" / "old", of_2024("one"))
    with serving(folder / "root") as address:
        environment = hub_environment_of(address, folder / "home")
        online = loaded(
            environment,
            folder / "online.pt",
            [*SPECS, CROSS_LAYER_SPEC, *UNREGISTERED, NO_FILE, NO_SHAPES, NO_REPOSITORY],
        )
    environment["HF_HUB_OFFLINE"] = "1"
    return online, loaded(environment, folder / "offline.pt", [*SPECS, *UNREGISTERED, NO_FILE])


def each_release():
    return pytest.mark.parametrize("release", RELEASES, ids=SPECS)


def test_no_converter_is_left_out():
    others = {"sparsify", "mntss_clt_layer_transcoder"}
    assert {release.converter for release in RELEASES} | others == {*CONVERTERS, *others}


def test_one_layer_of_a_cross_layer_transcoder_is_refused(both):
    assert "is one layer of a cross-layer transcoder" in both[0][CROSS_LAYER_SPEC]["refused"]


@each_release()
def test_it_computes_what_plain_torch_makes_of_its_files(release: Release, both):
    loaded = both[0][release.spec]
    assert "refused" not in loaded, loaded
    out, acts = release.plain(release.write(), activations())
    torch.testing.assert_close(loaded["acts"], acts, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loaded["out"], out, rtol=1e-4, atol=1e-4)
    assert 0.5 < (acts != 0).sum() / acts[..., 0].numel() < 55  # neither nothing nor nearly everything is active


@each_release()
def test_without_the_hub_the_cache_gives_the_same(release: Release, both):
    online, offline = both[0][release.spec], both[1][release.spec]
    assert "refused" not in offline, offline
    assert torch.equal(offline["out"], online["out"])
    assert offline["remarks"] == online["remarks"]


@each_release()
def test_only_what_a_file_or_an_author_says_is_stated(release: Release, both):
    loaded = both[0][release.spec]
    assert loaded["prepend_bos"] == release.prepend_bos
    assert loaded["processing_source"] == release.processing
    assert ("prepend_bos" in loaded["not_stated"]) == (release.prepend_bos is None)
    assert ("processing" in loaded["not_stated"]) == (release.processing is None)


def test_processing_that_its_authors_code_shows_is_known(both):
    everything = {"fold_ln": True, "center_writing_weights": True, "fold_value_biases": True}
    for spec in ("gpt2-small-hook-z-kk#blocks.0.hook_z", "gpt2-small-res_sce-ajt#blocks.2.hook_resid_pre"):
        assert both[0][spec]["processing"] == everything
    assert both[0]["gpt2-small-res-jb#blocks.8.hook_resid_pre"]["processing"] == {"center_writing_weights": True}


@pytest.mark.parametrize(
    ("spec", "remark"),
    [
        ("llama_scope_lxr_8x#l0r_8x", "its thresholds are divided by the norms of the decoder's columns"),
        ("llama_scope_r1_distill#l0r_800m_slimpajama", "its thresholds are divided by the norms of"),
        ("gemma-scope-2b-pt-res#embedding/width_4k/average_l0_6", "its decoder's bias is multiplied by sqrt(d_in)"),
    ],
)
def test_what_is_corrected_after_saelens_is_told(spec, remark, both):
    assert any(said.startswith(remark) for said in both[0][spec]["remarks"])


def test_what_attends_over_positions_is_marked(both):
    marked = {spec for spec in SPECS if both[0][spec]["sequential"]}
    assert marked == {"temporal-sae-llama-3.1-8b#blocks.15.hook_resid_post"}


def test_gpt2_by_two_names_is_one_model(both):
    loaded = both[0]["gpt2-small-res_sce-ajt#blocks.2.hook_resid_pre"]
    assert loaded["model_names"] == ("gpt2",)
    assert not any("its metadata says" in remark for remark in loaded["remarks"])


def test_repositories_that_nobody_registered_are_told_by_their_files(both):
    out, _ = standard(of_2024()["blocks.8.hook_resid_pre/sae_weights.safetensors"], activations())
    for said in both:
        torch.testing.assert_close(said[OLD]["out"], out)
        refused = said[NO_CODER]["refused"]
        assert "holds no dictionary #layers.4.mlp (a folder with cfg.json)" in refused
        assert refused.endswith("It has #layers.3.mlp.")
    message = f"'{OWN}' is in the format of dictionary_learning: name it dictionary_learning:{OWN}."
    assert message in both[0][OWN]["refused"]


def test_a_missing_file_is_named(both):
    online, offline = both
    file = "layer_0/width_16k/average_l0_105/params.npz"
    needs = f"'{file}', which '{NO_FILE}' needs"
    assert online[NO_FILE]["refused"] == f"The hub repository 'google/gemma-scope-2b-pt-res' has no file {needs}."
    assert offline[NO_FILE]["refused"] == (
        f"'{file}' of the hub repository 'google/gemma-scope-2b-pt-res', which '{NO_FILE}' needs, is not in the local "
        f"cache, and HF_HUB_OFFLINE is set."
    )
    assert "has no file 'resid_post/layer_5_width_16k_l0_small/params.safetensors'" in online[NO_SHAPES]["refused"]
    assert online[NO_REPOSITORY]["refused"].startswith("There is no hub repository 'google/gemma-scope-2b-pt-mlp'")
