"""Every way of getting a dictionary gives one that computes what its own package computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models import WIDTH, random_ids, random_model, random_sae
from torch import Tensor, nn

from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.dictionaries.loading import load_dictionary
from sae_lm_eval.errors import UserError
from sae_lm_eval.splicing.attach import attached
from sae_lm_eval.splicing.variants import Choices, build_variant

sparsify = pytest.importorskip("sparsify")
HOOK = "blocks.1.hook_resid_post"
X = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "architecture",
    [
        "standard",
        "gated",
        "jumprelu",
        "topk",
        "matching_pursuit",
        "temporal",
        "transcoder",
        "skip_transcoder",
        "jumprelu_transcoder",
        "jumprelu_skip_transcoder",
    ],
)
def test_what_saelens_saves_is_loaded_and_computes_the_same(architecture, tmp_path):
    out = "blocks.1.hook_mlp_out" if "transcoder" in architecture else None
    sae = random_sae(WIDTH, HOOK, architecture, hook_out=out, context_size=64, prepend_bos=False)
    sae.save_model(tmp_path / "one")
    dictionary = load_dictionary(f"{tmp_path}#one")
    torch.testing.assert_close(dictionary.reconstruct(X), sae(X))
    torch.testing.assert_close(dictionary.encode(X), sae.encode(X))
    assert dictionary.architecture == architecture
    assert (dictionary.hook_in, dictionary.hook_out) == (HOOK, out or HOOK)
    assert (dictionary.context_size, dictionary.prepend_bos, dictionary.model_names) == (64, False, ())
    assert dictionary.is_transcoder == (out is not None)
    assert dictionary.sequential == (architecture == "temporal")
    assert not any(p.requires_grad for p in dictionary.module.parameters())
    assert dictionary.fingerprint() == load_dictionary(sae).fingerprint()


def test_the_skip_connection_is_kept():
    transcoder = random_sae(WIDTH, HOOK, "skip_transcoder", hook_out="blocks.1.hook_mlp_out")
    without = transcoder.decode(transcoder.encode(X))
    assert (load_dictionary(transcoder).reconstruct(X) - without).abs().max() > 0.1


def test_flat_heads_are_not_reshaped():
    sae = random_sae(WIDTH, "blocks.1.attn.hook_z")
    sae.turn_on_forward_pass_hook_z_reshaping()
    assert load_dictionary(sae).reconstruct(X).shape == X.shape


def test_a_norm_factor_is_folded_in(tmp_path):
    sae = random_sae(WIDTH, HOOK)
    sae.cfg.normalize_activations = "expected_average_only_in"
    sae.save_model(tmp_path)
    dictionary = load_dictionary(str(tmp_path), norm_factor=0.5)
    torch.testing.assert_close(dictionary.reconstruct(X), sae(X * 0.5) / 0.5)
    assert "activations scaled by norm_factor=0.5" in dictionary.remarks


@pytest.mark.parametrize("source", ["gpt2-small-res-jb", "jbloom/GPT2-Small-SAEs-Reformatted"])
def test_what_the_registry_adds_is_kept_at_a_revision_and_by_repository(source, tmp_path, monkeypatch):
    from sae_lm_eval.dictionaries import saelens_loader as saelens

    sae = random_sae(WIDTH, "blocks.8.hook_resid_pre")
    sae.save_model(tmp_path)
    old = {"d_in": WIDTH, "d_sae": sae.cfg.d_sae, "dtype": "float32", "device": "cpu"}
    old |= {"hook_point": "blocks.8.hook_resid_pre", "model_name": "gpt2-small"}  # as SAELens wrote before version 6
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    requested_specs = []
    monkeypatch.setattr(
        saelens, "weights_folder", lambda spec, _: (requested_specs.append(str(spec)), (tmp_path, "c0ffee"))[1]
    )
    dictionary = load_dictionary(f"{source}#blocks.8.hook_resid_pre@v1")
    assert requested_specs == ["jbloom/GPT2-Small-SAEs-Reformatted#blocks.8.hook_resid_pre@v1"]
    assert dictionary.processing == {"center_writing_weights": True}
    assert dictionary.revision == "c0ffee"
    assert dictionary.model_names == ("gpt2-small",)


def test_both_models_of_a_release_that_names_two_are_kept():
    from sae_lm_eval.dictionaries.saelens_object import from_sae

    sae = random_sae(WIDTH, HOOK, model_name="meta-llama/Llama-3.1-8B")
    dictionary = from_sae(sae, name="it", model_name="deepseek-ai/DeepSeek-R1-Distill-Llama-8B")
    assert dictionary.model_names == ("meta-llama/Llama-3.1-8B", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B")
    assert dictionary.remarks == (
        "its metadata says its model is meta-llama/Llama-3.1-8B, the release deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    )


def coder(*, transcode: bool = False) -> sparsify.SparseCoder:
    config = sparsify.SparseCoderConfig(num_latents=64, k=8, transcode=transcode, skip_connection=transcode)
    sparse_coder = sparsify.SparseCoder(WIDTH, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in sparse_coder.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) / WIDTH**0.5)
    return sparse_coder


@pytest.mark.parametrize("transcode", [False, True])
def test_sparsify(transcode, tmp_path):
    """Loaded by its own package, spliced at the module that its folder names, skip connection included."""
    sparse_coder = coder(transcode=transcode)
    sparse_coder.save_to_disk(tmp_path / "layers.1.mlp")
    dictionary = load_dictionary(f"sparsify:{tmp_path}#layers.1.mlp")
    rows = X.flatten(0, 1)
    top = sparse_coder(rows)
    torch.testing.assert_close(dictionary.reconstruct(X).flatten(0, 1), top.sae_out)
    torch.testing.assert_close(dictionary.encode(rows).gather(-1, top.latent_indices), top.latent_acts)
    assert (dictionary.encode(X) != 0).sum() <= 8 * 10

    model, ids = random_model("llama"), random_ids()
    mlp = model.model.layers[1].mlp
    variant = build_variant(model, [dictionary], Choices(), frozenset())

    def by_hand(_module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        x = args[0] if transcode else output
        return sparse_coder(x.flatten(0, 1)).sae_out.view_as(output)

    handle = mlp.register_forward_hook(by_hand)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        handle.remove()
        with attached(model, variant):
            ours = model(input_ids=ids).logits
    torch.testing.assert_close(ours, expected)


def test_a_sparsify_object_needs_a_site():
    model = random_model("llama")
    with pytest.raises(UserError, match=r"does not say where it was trained: give hook="):
        build_variant(model, [load_dictionary(coder())], Choices(), frozenset())
    variant = build_variant(model, [load_dictionary(coder())], Choices(hooks=(HOOK,)), frozenset())
    assert variant.splices[0].site_out.hook == HOOK


def test_a_dictionary_of_ones_own():
    module = nn.Linear(WIDTH, WIDTH)
    own = Dictionary("mine", module, module, module, "linear", WIDTH, WIDTH, WIDTH, HOOK, HOOK)
    torch.testing.assert_close(load_dictionary(own).reconstruct(X), module(X))
    assert own.module is module


class TestPickledWeights:
    """Some registered releases are pickles; those of plain tensors are read, others never run."""

    RELEASE = "gpt2-small-hook-z-kk#blocks.0.hook_z"

    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The hub's files of the release, as SAELens will find them."""
        config = {"act_size": 8, "dict_size": 16, "act_name": "blocks.0.attn.hook_z"}
        (tmp_path / "cfg.json").write_text(json.dumps(config))

        def download(repo_id: str, filename: str, **_) -> str:
            return str(tmp_path / ("cfg.json" if filename.endswith("_cfg.json") else "weights.pt"))

        monkeypatch.setattr("sae_lens.loading.pretrained_sae_loaders.hf_hub_download", download)
        return tmp_path

    def test_plain_tensors_are_read(self, folder):
        shapes = {"W_enc": (8, 16), "b_enc": (16,), "W_dec": (16, 8), "b_dec": (8,)}
        torch.save({name: torch.ones(shape) for name, shape in shapes.items()}, folder / "weights.pt")
        dictionary = load_dictionary(self.RELEASE)
        assert (dictionary.d_in, dictionary.d_dictionary, dictionary.hook_in) == (8, 16, "blocks.0.attn.hook_z")

    def test_other_objects_are_refused(self, folder):
        class Harm:
            def __reduce__(self):
                return (Path.touch, (folder / "harm",))

        torch.save({"W_enc": Harm()}, folder / "weights.pt")
        with pytest.raises(UserError, match="are a pickle that holds more than tensors, which could run code: refused"):
            load_dictionary(self.RELEASE)
        assert not (folder / "harm").exists()
