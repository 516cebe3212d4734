"""A dictionary is spliced as it is used after training: nothing of it depends on what else is in the batch."""

from __future__ import annotations

import json

import pytest
import sae_lens
import torch
from models import WIDTH, random_sae
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata
from torch import nn

from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.dictionaries.loading import load_dictionary
from sae_lm_eval.dictionaries.saelens_object import from_sae
from sae_lm_eval.errors import UserError

HOOK = "blocks.1.hook_resid_post"
TRAINED = ("Standard", "Gated", "TopK", "JumpReLU", "BatchTopK", "MatryoshkaBatchTopK")
X = 2 * torch.randn(4, 5, WIDTH, generator=torch.Generator().manual_seed(0))


def in_training(name: str) -> sae_lens.TrainingSAE:
    own = {"BatchTopK": {"k": 4}, "TopK": {"k": 4}, "MatryoshkaBatchTopK": {"k": 4, "matryoshka_widths": [16, 64]}}
    config = getattr(sae_lens, f"{name}TrainingSAEConfig")(
        d_in=WIDTH, d_sae=64, metadata=SAEMetadata(hook_name=HOOK), **own.get(name, {})
    )
    sae = getattr(sae_lens, f"{name}TrainingSAE")(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in sae.parameters():
            weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold.fill_(1.5)
    return sae


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("given", ["object", "checkpoint"])
def test_what_is_in_training_becomes_what_is_saved_of_it(name, given, tmp_path):
    sae = in_training(name)
    sae.save_model(tmp_path / "checkpoint")
    sae.save_inference_model(tmp_path / "inference")
    expected = SAE.load_from_disk(tmp_path / "inference")
    before = {key: weight.clone() for key, weight in sae.state_dict().items()}
    dictionary = load_dictionary(sae if given == "object" else f"{tmp_path}#checkpoint")
    torch.testing.assert_close(dictionary.reconstruct(X), expected(X))
    torch.testing.assert_close(dictionary.encode(X), expected.encode(X))
    torch.testing.assert_close(dictionary.reconstruct(X[:1]), dictionary.reconstruct(X)[:1])
    assert dictionary.architecture == expected.cfg.architecture()
    assert all(torch.equal(weight, before[key]) for key, weight in sae.state_dict().items())
    if given == "object":
        assert f"a {name}TrainingSAE in training, put into the form" in dictionary.remarks[-1]


@pytest.mark.parametrize("name", ["BatchTopK", "MatryoshkaBatchTopK"])
def test_the_k_of_a_batch_is_what_is_stated(name):
    assert load_dictionary(in_training(name)).stated["l0"] == 4


def dictionary_of(function, **more) -> Dictionary:
    module = nn.Linear(WIDTH, WIDTH)
    return Dictionary("mine", module, function, function, "own", WIDTH, WIDTH, WIDTH, HOOK, HOOK, **more)


def centred_on_the_batch(x):
    return x - 0.01 * x.mean((0, 1))


def scaled_by_the_loudest(x):
    return x / x.abs().amax()


def beside_the_first_row(x):
    return x + 0.1 * x[:1]


def by_place_in_the_batch(x):
    return x * (1 + torch.arange(len(x)).to(x))[:, None, None]


def by_chance(x):
    return x + 0.1 * torch.randn(x.shape) * x.norm(dim=-1, keepdim=True)


def strongest_of_all(x):
    kept = x.abs() >= x.abs().flatten().topk(x.numel() // 8).values[-1]
    return torch.where(kept, x, 0)


@pytest.mark.parametrize(
    "function",
    [
        centred_on_the_batch,
        scaled_by_the_loudest,
        beside_the_first_row,
        by_place_in_the_batch,
        by_chance,
        strongest_of_all,
    ],
)
def test_what_depends_on_other_sequences_is_refused(function):
    with pytest.raises(UserError, match=r"^mine makes something else of a sequence when other sequences are in its"):
        load_dictionary(dictionary_of(function))


def test_what_looks_at_other_positions_of_its_sequence_is_known_to():
    def running_mean(x):
        return x.cumsum(1) / torch.arange(1, x.shape[1] + 1).to(x)[:, None]

    assert load_dictionary(dictionary_of(running_mean)).sequential
    assert not load_dictionary(dictionary_of(lambda x: x.relu())).sequential


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated", "matching_pursuit", "temporal"])
def test_no_released_architecture_is_refused_in_any_dtype(architecture, dtype):
    dictionary = load_dictionary(random_sae(WIDTH, HOOK, architecture), dtype=dtype)
    assert dictionary.sequential == (architecture == "temporal")


def test_what_is_no_number_is_no_dependence_on_the_batch():
    sae = random_sae(WIDTH, HOOK)
    with torch.no_grad():
        sae.b_dec[0] = torch.nan
    assert load_dictionary(sae).reconstruct(X).isnan().any()


class TestErrorTerm:
    @pytest.fixture
    def sae(self):
        sae = random_sae(WIDTH, HOOK)
        with pytest.warns(DeprecationWarning, match="use_error_term"):
            sae.use_error_term = True
        return sae

    def test_it_is_no_part_of_the_reconstruction(self, sae, recwarn):
        plain = random_sae(WIDTH, HOOK)
        torch.testing.assert_close(sae(X), X, rtol=1e-4, atol=1e-4)  # what passes for a perfect dictionary
        torch.testing.assert_close(load_dictionary(sae).reconstruct(X), plain(X))
        assert not [w for w in recwarn if "use_error_term" in str(w.message)]

    def test_the_object_is_given_back_with_it(self, sae):
        load_dictionary(sae).reconstruct(X)
        assert sae.use_error_term

    def test_nor_is_it_when_it_is_set_later(self):
        sae = random_sae(WIDTH, HOOK)
        dictionary = load_dictionary(sae)
        expected = dictionary.reconstruct(X)
        dictionary.module._use_error_term = sae._use_error_term = True
        torch.testing.assert_close(dictionary.reconstruct(X), expected)


def test_an_object_that_gives_something_else_than_its_formula_is_refused():
    sae = random_sae(WIDTH, HOOK)
    sae.register_forward_hook(lambda _module, args, out: out + 0.5 * (args[0] - out))
    with pytest.raises(UserError, match=r"^it does not give what its own weights make of an activation when it is"):
        load_dictionary(from_sae(sae, name="it"))


class TestOldConfigurations:
    @staticmethod
    def saved(folder, **config):
        sae = random_sae(WIDTH, HOOK)
        sae.save_model(folder)
        old = {"d_in": WIDTH, "d_sae": 64, "dtype": "float32", "device": "cpu", "hook_point": HOOK}
        (folder / "cfg.json").write_text(json.dumps(old | config))
        return sae

    @pytest.mark.parametrize("key", ["activation_fn_str", "activation_fn"])
    def test_another_activation_function_is_refused(self, key, tmp_path):
        self.saved(tmp_path, **{key: "tanh-relu"})
        with pytest.raises(UserError, match="the activation function 'tanh-relu', which SAELens takes for a ReLU"):
            load_dictionary(str(tmp_path))

    def test_k_largest_without_a_k_is_refused(self, tmp_path):
        self.saved(tmp_path, activation_fn_str="topk")
        with pytest.raises(UserError, match="keeps its k largest latents, and its topk has no k: refused"):
            load_dictionary(str(tmp_path))

    @pytest.mark.parametrize("factors", [None, 1.0, 1.5])
    def test_scaling_factors_count_unless_they_are_ones(self, factors, tmp_path):
        from safetensors.torch import load_file, save_file

        sae = self.saved(tmp_path, finetuning_scaling_factor=True)
        if factors is not None:
            weights = load_file(tmp_path / "sae_weights.safetensors")
            save_file({**weights, "scaling_factor": factors * torch.ones(64)}, tmp_path / "sae_weights.safetensors")
        if factors == 1.0:
            torch.testing.assert_close(load_dictionary(str(tmp_path)).reconstruct(X), sae(X))
            return
        with pytest.raises(UserError, match="finetuned with a scaling factor for each latent"):
            load_dictionary(str(tmp_path))

    def test_an_expansion_factor_is_no_sign_of_another_format(self, tmp_path):
        sae = self.saved(tmp_path, expansion_factor=2, activation_fn_str="relu")
        torch.testing.assert_close(load_dictionary(str(tmp_path)).reconstruct(X), sae(X))


class TestNormFactorsOfTranscoders:
    @pytest.fixture
    def transcoder(self):
        transcoder = random_sae(WIDTH, "blocks.1.mlp.hook_in", "skip_transcoder", hook_out="blocks.1.hook_mlp_out")
        transcoder.cfg.normalize_activations = "expected_average_only_in"
        return transcoder

    def test_each_site_has_its_own(self, transcoder):
        transcoder.cfg.normalize_activations = "none"
        expected = transcoder(X * 0.5) / 8
        transcoder.cfg.normalize_activations = "expected_average_only_in"
        torch.testing.assert_close(load_dictionary(transcoder, norm_factor="0.5:8").reconstruct(X), expected)

    @pytest.mark.parametrize("factor", [0.5, "0.5", "a:b", "1:0", "1:2:3", "1:nan"])
    def test_one_for_both_is_refused(self, transcoder, factor):
        with pytest.raises(UserError, match=r"give IN:OUT, a factor each for where it reads and where it writes"):
            load_dictionary(transcoder, norm_factor=factor)

    def test_none_is_asked_for(self, transcoder):
        with pytest.raises(UserError, match=r"norm_factor=IN:OUT, each sqrt"):
            load_dictionary(transcoder)

    def test_a_dictionary_at_one_site_takes_one(self):
        sae = random_sae(WIDTH, HOOK)
        sae.cfg.normalize_activations = "expected_average_only_in"
        with pytest.raises(UserError, match=r"norm_factor=0.5:2 does not fit .*: give one factor above 0"):
            load_dictionary(sae, norm_factor="0.5:2")


class TestWhatSaelensMisreads:
    def test_one_layer_of_a_cross_layer_transcoder(self):
        with pytest.raises(UserError, match=r"a cross-layer transcoder, .* Name clt:mntss/clt-gemma-2-2b-2.5M for"):
            load_dictionary("mntss-gemma-2-2b-2.5m-clt-as-per-layer#layer_3")

    @pytest.mark.parametrize("config", [{"k": 4}, {"expansion_factor": 32, "k": 4}, {"num_latents": 8}])
    def test_a_folder_of_sparsify_is_named_as_such(self, config, tmp_path):
        (tmp_path / "cfg.json").write_text(json.dumps({"d_in": WIDTH, **config}))
        (tmp_path / "sae.safetensors").write_bytes(b"")
        with pytest.raises(UserError, match=r"is in the format of sparsify: name it sparsify:"):
            load_dictionary(str(tmp_path))

    def test_so_is_a_release_in_its_format(self, monkeypatch):
        from sae_lens.loading import pretrained_saes_directory as directory

        registered = directory.get_pretrained_saes_directory()["goodfire-llama-3.1-8b-instruct"]
        release = directory.PretrainedSAELookup(**{**vars(registered), "release": "new", "conversion_func": "sparsify"})
        monkeypatch.setattr(directory, "get_pretrained_saes_directory", lambda: {"new": release})
        with pytest.raises(UserError, match=r"'new#layer_19' is in the format of sparsify: name it sparsify:Goodfire"):
            load_dictionary("new#layer_19")
