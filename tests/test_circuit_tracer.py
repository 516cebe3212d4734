"""circuit-tracer's transcoders: each kind against its formula, what the configuration says, and broken files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import hub_environment_of, serving
from models import WIDTH, random_model, word_tokenizer
from safetensors.torch import save_file
from torch import Tensor

from sae_lm_eval import SaeHFLM, UserError
from sae_lm_eval.dictionaries.formats import format_of
from sae_lm_eval.dictionaries.loading import load_dictionary
from sae_lm_eval.dictionaries.presence import check_presence
from sae_lm_eval.dictionaries.spec import SaeSpec

LATENTS = 48
CONFIG = {"model_name": "org/model", "feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"}
SHAPES = {"W_enc": (LATENTS, WIDTH), "b_enc": (LATENTS,), "W_dec": (LATENTS, WIDTH), "b_dec": (WIDTH,)}
MORE = {
    "": {},
    "threshold": {"activation_function.threshold": (LATENTS,)},
    "one threshold": {"activation_function.threshold": (1,)},
    "skip": {"W_skip": (WIDTH, WIDTH)},
    "threshold and skip": {"activation_function.threshold": (LATENTS,), "W_skip": (WIDTH, WIDTH)},
}


def weights(kind: str = "", seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    shapes = {**SHAPES, **MORE[kind]}
    return {
        name: torch.randn(shape, generator=rng).abs() if "threshold" in name else torch.randn(shape, generator=rng) / 4
        for name, shape in shapes.items()
    }


def saved(folder: Path, layers: int = 3, kind: str = "", config: object = CONFIG) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for layer in range(layers):
        save_file(weights(kind, layer), folder / f"layer_{layer}.safetensors")
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def by_hand(w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    pre = x @ w["W_enc"].T + w["b_enc"]
    latents = torch.where(pre > w.get("activation_function.threshold", torch.zeros(1)), pre, 0)
    out = latents @ w["W_dec"] + w["b_dec"]
    return latents, out + x @ w["W_skip"].T if "W_skip" in w else out


@pytest.mark.parametrize("kind", MORE)
def test_each_kind_by_its_formula(tmp_path, kind):
    dictionary = load_dictionary(f"circuit_tracer:{saved(tmp_path, kind=kind)}#layer_2")
    x = torch.randn(2, 5, WIDTH)
    latents, out = by_hand(weights(kind, 2), x)
    assert 0 < (latents != 0).float().mean() < 1
    assert dictionary.encode is not None
    torch.testing.assert_close(dictionary.encode(x), latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(dictionary.reconstruct(x), out, atol=1e-5, rtol=1e-5)
    assert (dictionary.d_in, dictionary.d_out, dictionary.d_dictionary) == (WIDTH, WIDTH, LATENTS)


def test_what_the_configuration_says(tmp_path):
    dictionary = load_dictionary(f"circuit_tracer:{saved(tmp_path)}#layer_1")
    assert (dictionary.hook_in, dictionary.hook_out) == ("blocks.1.mlp.hook_in", "blocks.1.mlp.hook_out")
    assert dictionary.model_names == ("org/model",)
    assert dictionary.prepend_bos is None
    assert dictionary.processing == {"fold_ln": False, "center_writing_weights": False}


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_all_layers_are_spliced_into_what_the_mlps_give(tmp_path, name):
    folder = saved(tmp_path / "sets" / "low")
    specs = "+".join(f"circuit_tracer:{folder.parent}#low/layer_{layer}" for layer in range(3))
    lm = SaeHFLM(pretrained=random_model(name), tokenizer=word_tokenizer(), sae=specs)
    seen, written = {}, {}
    model, ids = random_model(name), torch.tensor([[5, 6, 7, 8]])
    for layer in range(3):
        mlp = model.get_submodule(f"model.layers.{layer}.mlp")

        def replaced(_module, args, _out, layer=layer):
            seen[layer] = args[0]
            written[layer] = by_hand(weights("", layer), args[0])[1]
            return written[layer]

        mlp.register_forward_hook(replaced)
    torch.testing.assert_close(lm._model_call(ids), model(ids).logits, atol=1e-4, rtol=1e-4)


def test_without_a_configuration_the_site_is_the_users(tmp_path):
    spec = f"circuit_tracer:{saved(tmp_path, config=None)}#layer_0"
    assert load_dictionary(spec).hook_in is None
    given = {"pretrained": random_model("llama"), "tokenizer": word_tokenizer(), "sae": spec}
    with pytest.raises(UserError, match="hook="):
        SaeHFLM(**given)
    splice = SaeHFLM(hook="blocks.0.mlp.hook_in:blocks.0.hook_mlp_out", **given).spliced.variant.splices[0]
    assert str(splice.site_out.write) == "model.layers.0.mlp.output"


def topk_by_hand(w: dict[str, Tensor], x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    pre = x @ w["W_enc"].T + w["b_enc"]
    latents = torch.where(pre >= pre.sort(dim=-1).values[..., -k, None], pre, 0)
    out = latents @ w["W_dec"] + w["b_dec"]
    return latents, out + x @ w["W_skip"].T if "W_skip" in w else out


@pytest.mark.parametrize("kind", ["", "skip"])
@pytest.mark.parametrize("k", [4, 40])  # of 48 latents 40 are not all above 0: their sign stays
def test_topk_keeps_the_k_largest_whatever_their_sign(tmp_path, kind, k):
    folder = saved(tmp_path, kind=kind, config={**CONFIG, "activation": "topk", "k": k})
    save_file({**weights(kind, 2), "k": torch.tensor(k)}, folder / "layer_2.safetensors")
    dictionary = load_dictionary(f"circuit_tracer:{folder}#layer_2")
    x = torch.randn(2, 5, WIDTH)
    latents, out = topk_by_hand(weights(kind, 2), x, k)
    assert dictionary.encode is not None
    assert dictionary.formula is not None
    torch.testing.assert_close(dictionary.encode(x), latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(dictionary.reconstruct(x), out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(dictionary.formula(x), out, atol=1e-5, rtol=1e-5)
    assert dictionary.stated == {"l0": k}
    assert dictionary.architecture == f"topk_{kind and kind + '_'}transcoder"


def test_k_decides_the_checksum(tmp_path):
    fingerprints = set()
    for k in (4, 5):
        folder = saved(tmp_path / str(k), config={**CONFIG, "activation": "topk", "k": k})
        fingerprints.add(load_dictionary(f"circuit_tracer:{folder}#layer_0").fingerprint())
    assert len(fingerprints) == 2


@pytest.mark.parametrize(
    ("said", "more", "sentence"),
    [
        ({"activation": "topk"}, {}, "says activation: topk without k"),
        ({"activation": "topk", "k": 0}, {}, f"k=0, where it must be how many of {LATENTS} latents"),
        ({"activation": "topk", "k": LATENTS + 1}, {}, "k=49, where it must be"),
        ({"activation": "topk", "k": -1}, {}, "k=-1, where it must be"),
        ({"activation": "topk", "k": 4.5}, {}, r"config\.yaml' is not"),
        ({"activation": "topk", "k": 4}, {"k": torch.tensor(5)}, "do not agree on k: 4 and 5"),
        ({"activation": "topk", "k": 4}, {"k": torch.tensor([4, 6])}, "do not agree on k: 4 and 6"),
        ({"activation": "topk"}, {"k": torch.tensor(2.5)}, "k=2.5, where it must be"),
        ({"activation": "topk"}, {"k": torch.tensor(float("nan"))}, "k=nan, where it must be"),
        ({"activation": "topk"}, {"k": torch.tensor([4, 6])}, "do not agree on k: 4 and 6"),
        ({"activation": "topk"}, {"k": torch.zeros(0)}, "says activation: topk without k"),
        ({}, {"k": torch.tensor(4)}, "has a tensor 'k', and no config.yaml beside it says activation: topk"),
        ({"activation": "relu", "k": 4}, {"k": torch.tensor(4)}, "has a tensor 'k'"),
        ({"activation": "relu"}, {"activation_function.threshold": torch.ones(1)}, "relu, and its file holds thresh"),
        ({"activation": "topk", "k": 4}, {"activation_function.threshold": torch.ones(1)}, "topk, and its file holds"),
        ({"activation": "jumprelu"}, {}, "jumprelu, and its file holds no thresholds"),
        ({"activation": "TopK", "k": 4}, {}, r"activation 'TopK' is unknown\. Did you mean 'topk'\?"),
        ({}, {"log_thresholds": torch.ones(LATENTS)}, "has a tensor 'log_thresholds', which .* format does not have"),
    ],
)
def test_what_differs_from_the_configuration_or_is_not_known_is_refused(tmp_path, said, more, sentence):
    folder = saved(tmp_path, config={**CONFIG, **said})
    save_file({**weights(), **more}, folder / "layer_1.safetensors")
    with pytest.raises(UserError, match=sentence):
        load_dictionary(f"circuit_tracer:{folder}#layer_1")


def test_k_of_the_file_serves_where_the_configuration_has_none(tmp_path):
    folder = saved(tmp_path, config={**CONFIG, "activation": "topk"})
    save_file({**weights(), "k": torch.tensor([4.0])}, folder / "layer_1.safetensors")
    dictionary = load_dictionary(f"circuit_tracer:{folder}#layer_1")
    assert dictionary.encode is not None
    assert (dictionary.encode(torch.randn(3, WIDTH)) != 0).sum(-1).tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    ("names", "name"),
    [
        (["layer_0/cfg.json", "layer_0/sae_weights.safetensors"], None),
        (["layer_0/ae.sae.pt", "params_layer_1/a.safetensors", "W_enc_0/sae.safetensors"], None),
        (["layer_0/cfg.json", "layer_0.safetensors"], "circuit-tracer's transcoders"),
    ],
)
def test_files_in_folders_below_tell_no_format(names, name):
    folder_format = format_of(names)
    assert (folder_format and folder_format.name) == name


def test_a_repository_with_folders_of_layers_is_told_what_it_holds(tmp_path):
    folder = tmp_path / "root" / "models" / "someone" / "saes" / "layer_0"
    folder.mkdir(parents=True)
    save_file(weights(), folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text("{}")
    command = [sys.executable, "-m", "sae_lm_eval", "inspect", "--model_args", "pretrained=world,sae=someone/saes"]
    with serving(tmp_path / "root") as address:
        environment = hub_environment_of(address, tmp_path / "home")
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert "'someone/saes' holds no dictionary at its top (a folder with cfg.json). It has #layer_0." in done.stderr


def test_without_an_id_no_file_is_taken_for_a_layer(tmp_path):
    folder = saved(tmp_path)
    save_file(weights(), folder / "None.safetensors")
    for check in (check_presence, lambda spec: load_dictionary(spec)):
        with pytest.raises(UserError, match=r"holds no dictionary at its top .* It has #layer_0"):
            check(SaeSpec.parse(f"circuit_tracer:{folder}"))


def test_a_layer_or_a_loader_that_is_not_named_is_told(tmp_path):
    folder = saved(tmp_path)
    for check in (check_presence, lambda spec: load_dictionary(spec)):
        with pytest.raises(UserError, match=r"no dictionary #layer_9 \(a file layer_\*\.safetensors\)\. Did you mean"):
            check(SaeSpec.parse(f"circuit_tracer:{folder}#layer_9"))
        with pytest.raises(UserError, match=r"no dictionary at its top .* It has #layer_0, #layer_1, #layer_2\."):
            check(SaeSpec.parse(f"circuit_tracer:{folder}"))
        with pytest.raises(
            UserError, match=r"is in the format of circuit-tracer's transcoders: name it circuit_tracer:.*#layer_N\."
        ):
            check(SaeSpec.parse(str(folder)))


def without(name: str) -> dict[str, Tensor]:
    return {key: value for key, value in weights().items() if key != name}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (without("b_dec"), "has no tensor 'b_dec': it is no transcoder of one layer"),
        ({**weights(), "W_dec": torch.zeros(4)}, "'W_dec' of .* is no matrix: it has 1 axes"),
        ({**weights(), "b_enc": torch.zeros(4)}, "do not fit each other: .*b_enc"),
        ({**weights(), "activation_function.threshold": torch.zeros(5)}, "do not fit each other"),
        ({**weights(), "activation_function.threshold": -torch.ones(1)}, "has a threshold below 0"),
        ({**weights(), "W_skip": torch.zeros(2, 3)}, "do not fit each other: .*W_skip"),
    ],
)
def test_a_file_that_is_not_whole_is_told_in_a_sentence(tmp_path, content, sentence):
    save_file(content, saved(tmp_path) / "layer_1.safetensors")
    with pytest.raises(UserError, match=sentence):
        load_dictionary(f"circuit_tracer:{tmp_path}#layer_1")


@pytest.mark.parametrize("content", [b"", b"no weights at all"])
def test_broken_weights(tmp_path, content):
    (saved(tmp_path) / "layer_1.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="truncated or corrupt"):
        load_dictionary(f"circuit_tracer:{tmp_path}#layer_1")


@pytest.mark.parametrize("content", ["- a list", "model_name: [", "model_name: 3"])
def test_a_broken_configuration(tmp_path, content):
    (saved(tmp_path) / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml' is not"):
        load_dictionary(f"circuit_tracer:{tmp_path}#layer_1")


@pytest.mark.parametrize(
    ("spec", "sentence", "downloaded"),
    [
        (
            "org/plt",
            "'org/plt' is in the format of circuit-tracer's transcoders: name it circuit_tracer:org/plt#layer_N.",
            [],
        ),
        ("circuit_tracer:org/plt#layer_9", "'org/plt' holds no dictionary #layer_9 (a file layer_*.safetensors).", []),
        ("circuit_tracer:org/plt#layer_1", f"circuit_tracer:org/plt#layer_1 reads {WIDTH} values", ["layer_1"]),
    ],
)
def test_of_a_repository_one_layer_is_downloaded(tmp_path, spec, sentence, downloaded):
    saved(tmp_path / "root" / "models" / "org" / "plt")
    command = [sys.executable, "-m", "sae_lm_eval", "inspect", "--model_args", f"pretrained=world,sae={spec}"]
    with serving(tmp_path / "root") as address:
        environment = hub_environment_of(address, tmp_path / "home")
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert [file.stem for file in (tmp_path / "home").rglob("snapshots/*/*.safetensors")] == downloaded
