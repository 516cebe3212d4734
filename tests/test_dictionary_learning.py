"""Folders of dictionary_learning: every class against its formula, what its configuration says, and broken files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models import WIDTH, random_model, word_tokenizer
from torch import Tensor

from sae_lm_eval import SaeHFLM, UserError
from sae_lm_eval.dictionaries.loading import load_dictionary
from sae_lm_eval.dictionaries.presence import check_presence
from sae_lm_eval.dictionaries.spec import SaeSpec

LATENTS, K = 48, 6
TRAINER = {"lm_name": "org/model", "layer": 1, "submodule_name": "resid_post_layer_1", "k": K}
Weights = dict[str, Tensor]


def linear(*more: str) -> Weights:
    shapes = {"encoder.weight": (LATENTS, WIDTH), "encoder.bias": (LATENTS,), "decoder.weight": (WIDTH, LATENTS)}
    return {name: torch.randn(shape) / 4 for name, shape in shapes.items()} | {
        bias: torch.randn(WIDTH) for bias in more
    }


def plain() -> Weights:
    shapes = {"W_enc": (WIDTH, LATENTS), "b_enc": (LATENTS,), "W_dec": (LATENTS, WIDTH), "b_dec": (WIDTH,)}
    return {name: torch.randn(shape) / 4 for name, shape in shapes.items()}


def gated() -> Weights:
    weights = linear("decoder_bias")
    del weights["encoder.bias"]
    return weights | {name: torch.randn(LATENTS) / 4 for name in ("r_mag", "gate_bias", "mag_bias")}


def largest(z: Tensor) -> Tensor:
    return torch.where(z >= z.topk(K).values[..., -1:], z, 0)


def above(z: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(z > threshold, z.relu(), 0)


def gated_latents(w: Weights, x: Tensor) -> Tensor:
    pre = (x - w["decoder_bias"]) @ w["encoder.weight"].T
    magnitude = (pre * w["r_mag"].exp() + w["mag_bias"]).relu()
    return torch.where(pre + w["gate_bias"] > 0, magnitude, 0) * w["decoder.weight"].norm(dim=0)


def linear_pre(w: Weights, x: Tensor, bias: str | None) -> Tensor:
    return (x if bias is None else x - w[bias]) @ w["encoder.weight"].T + w["encoder.bias"]


def written(w: Weights, z: Tensor, bias: str) -> Tensor:
    return z @ w["decoder.weight"].T + w[bias]


def jumping(w: Weights, x: Tensor) -> Tensor:
    return above(x @ w["W_enc"] + w["b_enc"], w["threshold"]) * w["W_dec"].norm(dim=1)


def nested(w: Weights, x: Tensor) -> Tensor:
    return above((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], w["threshold"])


# By class: a file's tensors, its latents of activations, and what it writes of latents.
CLASSES: dict[str, tuple[Callable[[], Weights], Callable[[Weights, Tensor], Tensor], Callable[..., Tensor]]] = {
    "AutoEncoder": (
        lambda: linear("bias"),
        lambda w, x: linear_pre(w, x, "bias").relu(),
        lambda w, z: written(w, z, "bias"),
    ),
    "AutoEncoderNew": (
        lambda: linear("decoder.bias"),
        lambda w, x: linear_pre(w, x, None).relu(),
        lambda w, z: written(w, z, "decoder.bias"),
    ),
    "GatedAutoEncoder": (
        gated,
        gated_latents,
        lambda w, z: written(w, z / w["decoder.weight"].norm(dim=0), "decoder_bias"),
    ),
    "JumpReluAutoEncoder": (
        lambda: plain() | {"threshold": torch.rand(LATENTS)},
        jumping,
        lambda w, z: (z / w["W_dec"].norm(dim=1)) @ w["W_dec"] + w["b_dec"],
    ),
    "AutoEncoderTopK": (
        lambda: linear("b_dec") | {"k": torch.tensor(K), "threshold": torch.tensor(0.8)},
        lambda w, x: largest(linear_pre(w, x, "b_dec").relu()),
        lambda w, z: written(w, z, "b_dec"),
    ),
    "BatchTopKSAE": (
        lambda: linear("b_dec") | {"k": torch.tensor(K), "threshold": torch.tensor(0.8)},
        lambda w, x: above(linear_pre(w, x, "b_dec"), w["threshold"]),
        lambda w, z: written(w, z, "b_dec"),
    ),
    "MatryoshkaBatchTopKSAE": (
        lambda: plain() | {"threshold": torch.tensor(0.8), "group_sizes": torch.tensor([16, 32])},
        nested,
        lambda w, z: z @ w["W_dec"] + w["b_dec"],
    ),
}


def saved(folder: Path, name: str, weights: object = None, *, config: object = None, **trainer: object) -> Path:
    """A folder as the library writes it; of weights and configuration what is not given is whole."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(CLASSES[name][0]() if weights is None else weights, folder / "ae.pt")
    whole = {"trainer": {**TRAINER, "dict_class": name, **trainer}, "buffer": {"ctx_len": 128, "io": "out"}}
    (folder / "config.json").write_text(json.dumps(whole if config is None else config))
    return folder


@pytest.mark.parametrize("name", CLASSES)
def test_each_class_by_its_formula(tmp_path, name):
    folder = saved(tmp_path, name)
    weights, (_, latents, output) = torch.load(folder / "ae.pt"), CLASSES[name]
    dictionary = load_dictionary(f"dictionary_learning:{folder}")
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    z = latents(weights, x)
    assert 0 < (z != 0).float().mean() < 1
    assert dictionary.encode is not None
    torch.testing.assert_close(dictionary.encode(x), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(dictionary.reconstruct(x), output(weights, z), atol=1e-5, rtol=1e-5)
    assert (dictionary.d_in, dictionary.d_out, dictionary.d_dictionary) == (WIDTH, WIDTH, LATENTS)


def test_a_threshold_that_was_never_set_lets_every_latent_pass(tmp_path):
    weights = linear("b_dec") | {"threshold": torch.tensor(-1.0)}
    dictionary = load_dictionary(f"dictionary_learning:{saved(tmp_path, 'BatchTopKSAE', weights)}")
    x = torch.randn(3, WIDTH)
    assert dictionary.encode is not None
    torch.testing.assert_close(dictionary.encode(x), linear_pre(weights, x, "b_dec").relu(), atol=1e-5, rtol=1e-5)


def test_what_its_configuration_says(tmp_path):
    dictionary = load_dictionary(f"dictionary_learning:{saved(tmp_path, 'AutoEncoderTopK')}")
    assert dictionary.hook_in == dictionary.hook_out == "blocks.1.hook_resid_post"
    assert dictionary.model_names == ("org/model",)
    assert dictionary.context_size == 128
    assert dictionary.stated == {"l0": K}
    assert dictionary.prepend_bos is None
    assert dictionary.processing == {}
    assert dictionary.processing_source is not None


def test_it_is_spliced_in(tmp_path):
    spec = f"dictionary_learning:{saved(tmp_path / 'run' / 'trainer_0', 'AutoEncoder').parent}#trainer_0"
    check_presence(SaeSpec.parse(spec))
    given = {"pretrained": random_model("llama"), "tokenizer": word_tokenizer()}
    ids = torch.tensor([[1, 5, 6, 7]])
    spliced, untouched = (
        SaeHFLM(sae=spec, splice=mode, **given)._model_call(ids) for mode in ("reconstruction", "none")
    )
    assert not torch.allclose(spliced, untouched)
    with_error = SaeHFLM(sae=spec, splice="with_error", **given)._model_call(ids)
    torch.testing.assert_close(with_error, untouched, atol=1e-4, rtol=1e-4)


def test_a_submodule_that_is_not_named_is_not_guessed(tmp_path):
    spec = f"dictionary_learning:{saved(tmp_path, 'AutoEncoder', submodule_name=None)}"
    assert load_dictionary(spec).hook_in is None
    given = {"pretrained": random_model("llama"), "tokenizer": word_tokenizer(), "sae": spec}
    with pytest.raises(UserError, match="hook="):
        SaeHFLM(**given)
    assert SaeHFLM(hook="blocks.0.hook_resid_post", **given).spliced.variant.splices[0].site_out.layer == 0


def test_a_loader_that_is_left_out_or_another_is_told(tmp_path):
    folder = saved(tmp_path / "trainer_0", "AutoEncoder").parent
    named = f"is in the format of dictionary_learning: name it dictionary_learning:{folder}#trainer_0."
    for loader in ("", "sparsify:"):
        with pytest.raises(UserError) as error:
            check_presence(SaeSpec.parse(f"{loader}{folder}#trainer_0"))
        assert named in str(error.value)
    with pytest.raises(UserError, match=r"Did you mean 'trainer_0'\? It has #trainer_0\."):
        load_dictionary(f"dictionary_learning:{folder}#trainer_1")


def without(weights: Weights, name: str) -> Weights:
    return {key: value for key, value in weights.items() if key != name}


@pytest.mark.parametrize(
    ("name", "weights", "trainer", "sentence"),
    [
        ("AutoEncoder", without(linear("bias"), "bias"), {}, "has no tensor 'bias', which its class AutoEncoder has"),
        ("AutoEncoder", {**linear("bias"), "bias": torch.zeros(3)}, {}, "do not fit each other: .*b_dec"),
        ("AutoEncoder", {**linear("bias"), "encoder.weight": torch.zeros(3)}, {}, "is no matrix: it has 1 axes"),
        (
            "AutoEncoder",
            {**linear("bias"), "decoder.weight": torch.zeros(3)},
            {},
            "'decoder.weight' of .* is no matrix",
        ),
        ("BatchTopKSAE", linear("b_dec") | {"threshold": torch.zeros(5)}, {}, "do not fit each other"),
        ("AutoEncoder", [torch.zeros(3)], {}, "holds no tensors by name"),
        ("AutoEncoder", {"f": print}, {}, "a pickle that holds more than tensors, which could run code: refused"),
        ("AutoEncoder", None, {"dict_class": "CrossCoder"}, "dict_class 'CrossCoder' is unknown. .*AutoEncoderTopK"),
        ("AutoEncoder", None, {"dict_class": 3}, "not a configuration of dictionary_learning"),
        ("AutoEncoderTopK", None, {"k": None}, "has k=None, where it must say how many of 48 latents are kept"),
        ("AutoEncoderTopK", None, {"k": 49}, "has k=49"),
    ],
)
def test_a_file_that_is_not_whole_is_told_in_a_sentence(tmp_path, name, weights, trainer, sentence):
    folder = saved(tmp_path, name, weights, **trainer)
    with pytest.raises(UserError, match=sentence):
        load_dictionary(f"dictionary_learning:{folder}")


def test_broken_files(tmp_path):
    folder = saved(tmp_path, "AutoEncoder")
    whole = (folder / "ae.pt").read_bytes()
    for content in (b"", b"no weights at all", whole[: len(whole) // 2]):
        (folder / "ae.pt").write_bytes(content)
        with pytest.raises(UserError, match="truncated or corrupt"):
            load_dictionary(f"dictionary_learning:{folder}")
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json"):
        load_dictionary(f"dictionary_learning:{folder}")
