"""One clear sentence for each mistake: what is wrong, where, and what would work."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import WIDTH, random_model, random_sae, word_tokenizer, words
from safetensors.torch import load_file, save_file
from torch import nn

from sae_lm_eval import SaeHFLM, SaeSpec, UserError
from sae_lm_eval.dictionaries.loading import load_dictionary

RESID = "blocks.1.hook_resid_post"
Case = Callable[[Path], Any]


def adapter(model: str = "llama", **kwargs) -> SaeHFLM:
    kwargs.setdefault("sae", random_sae(WIDTH, RESID))
    return SaeHFLM(pretrained=random_model(model), tokenizer=word_tokenizer(), **kwargs)


def saved(folder: Path, **changes) -> Path:
    """A dictionary on disk, with `changes` made to its configuration afterwards."""
    random_sae(WIDTH, RESID).save_model(folder)
    path = folder / "cfg.json"
    config = json.loads(path.read_text())
    metadata = changes.pop("metadata", {})
    path.write_text(json.dumps({**config, **changes, "metadata": {**config["metadata"], **metadata}}))
    return folder


def truncated(folder: Path) -> str:
    weights = saved(folder) / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    return str(folder)


def with_wrong_shapes(folder: Path) -> str:
    path = saved(folder) / "sae_weights.safetensors"
    weights = load_file(path)
    save_file({**weights, "W_dec": weights["W_dec"][:, :7].contiguous()}, path)
    return str(folder)


def pickled(folder: Path) -> str:
    saved(folder)
    (folder / "sae_weights.safetensors").unlink()
    torch.save({"W_enc": nn.Linear(2, 2)}, folder / "sae_weights.pt")
    return str(folder)


def several(folder: Path) -> str:
    saved(folder / "layer_1")
    saved(folder / "layer_2")
    return str(folder)


def broken_json(folder: Path) -> str:
    (saved(folder) / "cfg.json").write_text("{")
    return str(folder)


def a_folder_with(folder: Path, *names: str, text: str = '{"architecture": "standard", "d_in": 8, "d_sae": 16}') -> str:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(text)
    return str(folder)


def a_text(folder: Path, name: str, content: str) -> str:
    (folder / name).write_text(content)
    return str(folder / name)


def a_seq2seq_model(folder: Path) -> str:
    import transformers

    transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=10).save_pretrained(folder)
    return str(folder)


TRANSCODER = {"architecture": "transcoder", "hook_out": "blocks.1.hook_mlp_out"}

CASES: dict[str, tuple[Case, str]] = {
    # specs
    "empty spec": (lambda _: SaeSpec.parse(""), r"The spec '' has an empty source\. A spec reads \[loader:\]source"),
    "empty id": (lambda _: SaeSpec.parse("a#"), r"The spec 'a#' has an empty id\."),
    "comma in a spec": (lambda _: SaeSpec("a,b"), r"The spec 'a,b' holds ',', which a spec cannot\."),
    "space in a spec": (lambda _: SaeSpec.parse("a b"), r"The spec 'a b' holds ' ', which a spec cannot\."),
    "two ids": (lambda _: SaeSpec.parse("a#b#c"), r"The spec 'a#b#c' holds a second '#' or '@'"),
    "unknown loader": (
        lambda _: load_dictionary("sealens:gpt2#x"),
        r"Loader 'sealens' is unknown\. Did you mean 'saelens'\? Choose from saelens, sparsify, dictionary_learning, ",
    ),
    "unknown loader of an absolute path": (
        lambda _: load_dictionary("npz:/data/x#y"),
        r"Loader 'npz' is unknown\. Choose from saelens, sparsify, ",
    ),
    "a URL, which is no loader": (
        lambda _: load_dictionary("https://host/x"),
        r"'https://host/x' is neither a folder here",
    ),
    # dictionaries
    "unknown release": (
        lambda _: load_dictionary("gpt2-small-res-jbb#blocks.8.hook_resid_pre"),
        r"There is no SAELens release 'gpt2-small-res-jbb'\. Did you mean 'gpt2-small-res-jb'",
    ),
    "unknown id": (
        lambda _: load_dictionary("gpt2-small-res-jb#blocks.8.hook_resid_pree"),
        r"The release 'gpt2-small-res-jb' has no dictionary 'blocks\.8\.hook_resid_pree'\. "
        r"Did you mean 'blocks\.8\.hook_resid_pre'",
    ),
    "id missing": (
        lambda _: load_dictionary("gpt2-small-res-jb"),
        r"The release 'gpt2-small-res-jb' has 13 dictionaries: name one with #id\.",
    ),
    "revision of a converted release": (
        lambda _: load_dictionary("gemma-scope-2b-pt-res#layer_0/width_16k/average_l0_105@main"),
        r"SAELens loads 'gemma-scope-2b-pt-res' through a converter that knows no revision: leave out @main",
    ),
    "an id of several releases": (
        lambda _: load_dictionary("google/gemma-scope-2-4b-pt#layer_0_width_16k_l0_big"),
        r"'layer_0_width_16k_l0_big' of 'google/gemma-scope-2-4b-pt' means several dictionaries: "
        r"name one of gemma-scope-2-4b-pt-transcoders-all#layer_0_width_16k_l0_big, ",
    ),
    "no such folder or release": (
        lambda _: load_dictionary("./nowhere#a"),
        r"'\./nowhere' is neither a folder here nor a SAELens release nor a hub repository org/name",
    ),
    "a folder that is no dictionary": (
        lambda p: load_dictionary(str(p)),
        r"holds no dictionary at its top \(a folder with cfg\.json\)\. It holds none at all\.",
    ),
    "a folder of several": (
        lambda p: load_dictionary(several(p)),
        r"holds no dictionary at its top \(a folder with cfg\.json\)\. It has #layer_1, #layer_2\.",
    ),
    "revision of a folder": (
        lambda p: load_dictionary(f"{saved(p)}@main"),
        r"is a local folder, which has no revision 'main'",
    ),
    "configuration that is no JSON": (lambda p: load_dictionary(broken_json(p)), r"cfg\.json' cannot be read as JSON"),
    "truncated weights": (lambda p: load_dictionary(truncated(p)), r"The weights of '.*' are truncated or corrupt"),
    "weights of other shapes": (
        lambda p: load_dictionary(with_wrong_shapes(p)),
        r"SAELens cannot load '.*': RuntimeError: .*W_dec",
    ),
    "no safetensors": (
        lambda p: load_dictionary(pickled(p)),
        r"The files of '.*' cannot be had: .*sae_weights\.safetensors",
    ),
    "unknown architecture": (
        lambda p: load_dictionary(str(saved(p, architecture="quantum"))),
        r"SAELens cannot load '.*': KeyError: 'quantum'",
    ),
    "a sparsify folder with the wrong loader": (
        lambda p: load_dictionary(a_folder_with(p, "cfg.json", "sae.safetensors")),
        r"is in the format of sparsify: name it sparsify:/",
    ),
    "a dictionary_learning folder": (
        lambda p: load_dictionary(a_folder_with(p, "config.json", "ae.pt")),
        r"is in the format of dictionary_learning: name it dictionary_learning:/",
    ),
    "a dictionary_learning folder as sparsify's": (
        lambda p: load_dictionary(f"sparsify:{a_folder_with(p, 'config.json', 'ae.pt')}"),
        r"is in the format of dictionary_learning: name it dictionary_learning:/",
    ),
    "a dictionary_learning folder further down": (
        lambda p: load_dictionary(f"{Path(a_folder_with(p / 'trainer_0', 'config.json', 'ae.pt')).parent}#trainer_0"),
        r"is in the format of dictionary_learning: name it dictionary_learning:/.*#trainer_0\.",
    ),
    "a Gemma Scope folder": (
        lambda p: load_dictionary(a_folder_with(p, "params.npz")),
        r"is in the format of Gemma Scope, which is not read from a folder",
    ),
    "a Gemma Scope 2 folder": (
        lambda p: load_dictionary(a_folder_with(p, "config.json", "params.safetensors")),
        r"is in the format of Gemma Scope 2, which is not read from a folder",
    ),
    "a folder of a cross-layer transcoder": (
        lambda p: load_dictionary(a_folder_with(p, "config.yaml", "W_enc_0.safetensors", "W_dec_0.safetensors")),
        r"is in the format of circuit-tracer's cross-layer transcoders: name it clt:",
    ),
    "a SAELens folder without its weights": (
        lambda p: load_dictionary(a_folder_with(p, "cfg.json", "sparsity.safetensors")),
        r"The files of '.*' cannot be had: .*sae_weights\.safetensors",
    ),
    "a configuration that is a list": (
        lambda p: load_dictionary(a_folder_with(p, "cfg.json", text="[]")),
        r"cfg\.json' is not a configuration of a dictionary: 'the whole' is \[\]; it must be a mapping\.",
    ),
    "normalisation factor missing": (
        lambda p: load_dictionary(str(saved(p, normalize_activations="expected_average_only_in"))),
        r"was trained on normalised activations .* and its factor is not known: .* Give norm_factor=",
    ),
    "normalisation that was not folded": (
        lambda p: load_dictionary(str(saved(p, normalize_activations="covariance_whitening"))),
        r"was trained with normalize_activations=covariance_whitening, which has to be folded",
    ),
    "one head alone": (
        lambda p: load_dictionary(str(saved(p, metadata={"hook_head_index": 3}))),
        r"was trained on head 3 alone; dictionaries are spliced at all heads of a layer",
    ),
    "a factor that is not needed": (
        lambda p: load_dictionary(str(saved(p)), norm_factor=2.0),
        r"needs no norm_factor: leave it out",
    ),
    "an object of another kind": (lambda _: load_dictionary(3), r"A int is no dictionary\. Give a spec, a SAELens SAE"),
    # sites
    "layer out of range": (
        lambda _: adapter(sae=random_sae(WIDTH, "blocks.12.hook_resid_pre")),
        r"LlamaForCausalLM has no hook 'blocks\.12\.hook_resid_pre'\. Layers run from 0 to 2\.",
    ),
    "unknown hook of a block": (
        lambda _: adapter(hook="blocks.1.hook_resid_past"),
        r"has no hook 'blocks\.1\.hook_resid_past'\. Did you mean 'hook_resid_post'.* Layer 1 has hook_resid_pre, ",
    ),
    "unknown hook": (
        lambda _: adapter(hook="model.layerz.1"),
        r"has no hook 'model\.layerz\.1'\. Give a TransformerLens hook such as blocks\.0\.hook_resid_post, or a module",
    ),
    "a module that this model does not have": (
        lambda _: adapter(sae=random_sae(WIDTH, RESID, hf_hook_name="model.layers.1.pre_feedforward_layernorm.output")),
        r"LlamaForCausalLM has no module 'model\.layers\.1\.pre_feedforward_layernorm\.output'",
    ),
    "hook that cannot be written": (
        lambda _: adapter(hook="blocks.1.ln2.hook_normalized"),
        r"'blocks\.1\.ln2\.hook_normalized' of LlamaForCausalLM can be read but not written\. "
        r"Layer 1 can be written at hook_resid_pre, attn\.hook_z, .*hook_resid_post\.",
    ),
    "no mid-stream in a parallel block": (
        lambda _: adapter("gpt_neox", sae=random_sae(WIDTH, "blocks.1.hook_resid_mid")),
        r"GPTNeoXForCausalLM has no hook 'blocks\.1\.hook_resid_mid'\.",
    ),
    "dictionary of another width": (
        lambda _: adapter(sae=random_sae(48, RESID, model_name="gpt2-medium")),
        r"reads 48 values a position \(it was trained on gpt2-medium\), "
        r"and 'blocks\.1\.hook_resid_post' of LlamaForCausalLM has 32\.",
    ),
    "two dictionaries at one site": (
        lambda _: adapter(sae=[random_sae(WIDTH, RESID), random_sae(WIDTH, RESID, seed=1)]),
        r"both write at 'blocks\.1\.hook_resid_post': one site takes one dictionary",
    ),
    "one site for a transcoder": (
        lambda _: adapter(
            sae=random_sae(WIDTH, "blocks.1.mlp.hook_in", TRANSCODER["architecture"], hook_out=TRANSCODER["hook_out"]),
            hook=RESID,
        ),
        r"is a transcoder, which reads and writes at two sites: give hook=IN:OUT",
    ),
    "a dictionary without a site": (
        lambda p: adapter(sae=str(saved(p, metadata={"hook_name": None}))),
        r"does not say where it was trained: give hook=, as in hook=blocks\.0\.hook_resid_post",
    ),
    "hooks for another number of dictionaries": (
        lambda _: adapter(hook=f"{RESID}+{RESID}"),
        r"hook names 2 and there are 1 dictionaries: give one each, joined by '\+'",
    ),
    "a map of attention elsewhere": (
        lambda _: adapter(hook_map="value_bias"),
        r"hook_map=value_bias is about attention's hook_z, and the site is 'blocks\.1\.hook_resid_post'",
    ),
    # the adapter's arguments
    "no dictionary": (lambda _: adapter(sae=None), r"sae= is missing: name a dictionary, as in sae=gpt2-small-res-jb#"),
    "unknown mode": (
        lambda _: adapter(splice="reconstuction"),
        r"splice 'reconstuction' is unknown\. Did you mean 'reconstruction'\? Choose from reconstruction, with_error,",
    ),
    "unknown token mask": (
        lambda _: adapter(splice_tokens="some"),
        r"splice_tokens 'some' is unknown\. Choose from non_special, all\.",
    ),
    "unknown map": (
        lambda _: adapter(hook_map="centred"),
        r"hook_map 'centred' is unknown\. Did you mean 'centered'\? Choose from raw, centered,",
    ),
    "unknown dtype": (lambda _: adapter(sae_dtype="fp32"), r"sae_dtype 'fp32' is unknown\. .*Choose from float32,"),
    "misspelt argument": (
        lambda _: adapter(splcie="none"),
        r"sae_hf has no argument 'splcie'\. Did you mean 'splice'\?",
    ),
    "mean without a text": (lambda _: adapter(splice="mean"), r"splice=mean needs mean_text=FILE"),
    "no model": (lambda _: SaeHFLM(sae=random_sae(WIDTH, RESID)), r"pretrained= is missing: name a model, as in"),
    "a seed that is no number": (lambda _: adapter(seed="abc"), r"seed=abc must be a whole number of at least 0\."),
    "fewer tokens than none": (
        lambda _: adapter(splice="mean", mean_text="a.txt", mean_tokens=-5),
        r"mean_tokens=-5 must be a whole number of at least 1\.",
    ),
    "half a token": (
        lambda _: adapter(splice="mean", mean_text="a.txt", mean_tokens=0.5),
        r"mean_tokens=0\.5 must be a whole number of at least 1\.",
    ),
    "a text for a mean that is not taken": (
        lambda _: adapter(mean_text="a.txt"),
        r"mean_text= is for splice=mean, and splice is reconstruction\.",
    ),
    "two sites for an SAE": (
        lambda _: adapter(hook="blocks.0.hook_mlp_out:blocks.1.hook_mlp_out"),
        r"writes where it reads: give hook=SITE; IN:OUT is for transcoders\.",
    ),
    "a sum of nothing": (lambda _: adapter(sae="a#b+"), r"'a#b\+' joins nothing by '\+'"),
    "no dtype of torch": (
        lambda p: SaeHFLM(pretrained="world", sae="world#blocks.2.hook_resid_post.k4", dtype="bfloat17", device="cpu"),
        r"dtype=bfloat17 is none of torch's",
    ),
    "a SAELens folder as sparsify's": (
        lambda p: load_dictionary(f"sparsify:{saved(p)}"),
        r"is in the format of SAELens: name it /",
    ),
    "text that is not there": (
        lambda _: adapter(splice="mean", mean_text="nowhere.txt"),
        r"There is no text file 'nowhere\.txt'\.",
    ),
    "text of another kind": (
        lambda p: adapter(splice="mean", mean_text=a_text(p, "a.docx", "x")),
        r"The kind of 'a\.docx': 'docx' is unknown\. Choose from txt, jsonl, parquet\.",
    ),
    "text without the column": (
        lambda p: adapter(splice="mean", mean_text=a_text(p, "a.jsonl", '{"words": "w4"}')),
        r"has no column 'text'\. It has words\.",
    ),
    "empty text": (
        lambda p: adapter(splice="mean", mean_text=a_text(p, "a.txt", " \n")),
        r"holds no text\.",
    ),
    # devices
    "a device that no machine has": (
        lambda _: SaeHFLM(pretrained="world", sae="world#blocks.2.hook_resid_post.k4", device="gpu"),
        r"'gpu' is no device\. Did you mean 'cuda'\?",
    ),
    "a GPU that is not here": (
        lambda _: SaeHFLM(pretrained="world", sae="world#blocks.2.hook_resid_post.k4", device="cuda:99"),
        r"There is no device 'cuda:99' here: torch",
    ),
    # models
    "a model in the user's folder": (
        lambda _: SaeHFLM(pretrained="~/nowhere/model", sae=random_sae(WIDTH, RESID), device="cpu"),
        rf"There is no model '{Path.home()}/nowhere/model' to load: ",
    ),
    "no such model": (
        lambda p: SaeHFLM(pretrained=str(p / "nothing"), sae=random_sae(WIDTH, RESID), device="cpu"),
        r"There is no model '.*nothing' to load: ",
    ),
    "a sequence-to-sequence model": (
        lambda p: SaeHFLM(pretrained=a_seq2seq_model(p), sae=random_sae(WIDTH, RESID), device="cpu"),
        r"t5 is a sequence-to-sequence model; sae_hf splices into causal language models\.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_told_in_a_sentence(case, tmp_path):
    act, expected = CASES[case]
    with pytest.raises(UserError) as error:
        act(tmp_path)
    message = str(error.value)
    assert re.search(expected, message), message
    assert "\n" not in message


def test_another_models_dictionary_is_warned_of(tmp_path, caplog):
    import logging

    model = random_model("llama")
    model.config._name_or_path = "org/other-llama"
    logging.getLogger("lm_eval").propagate = True
    with caplog.at_level(logging.WARNING, logger="lm_eval"):
        SaeHFLM(pretrained=model, tokenizer=word_tokenizer(), sae=random_sae(WIDTH, RESID, model_name="gpt2-small"))
    (message,) = [r.message for r in caplog.records if "was trained on" in r.message]
    assert "was trained on gpt2-small, and the model is org/other-llama" in message


def test_an_alias_of_the_same_model_is_not():
    from sae_lm_eval.dictionaries.model_names import distinct_models, official_name

    assert distinct_models(["gpt2-small", "openai-community/gpt2", "gpt2"]) == ["gpt2-small"]
    assert distinct_models(["gemma-2-9b", "google/gemma-2-9b-it"]) == ["gemma-2-9b", "google/gemma-2-9b-it"]
    assert official_name("gpt2-small") == official_name("openai-community/gpt2") == "gpt2"
    assert official_name("gemma-2-2b") == official_name("google/gemma-2-2b")
    assert words(2, seed=0)
