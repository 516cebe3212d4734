"""What a release says of itself, what it does not say, and what becomes of that: never a guess without a word."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from models import VOCABULARY, WIDTH, random_ids, random_model, random_sae, word_tokenizer
from packaging.requirements import Requirement
from releases import D, activations, of_2024, save, standard
from sae_lens.saes.temporal_sae import TemporalSAE, TemporalSAEConfig
from torch import nn

from sae_lm_eval import SaeHFLM, UserError
from sae_lm_eval.catalog import lookup
from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.dictionaries.loading import load_dictionary
from sae_lm_eval.dictionaries.release_facts import DEFAULT_PROCESSING, FACTS
from sae_lm_eval.splicing.hook_names import Architecture
from sae_lm_eval.splicing.module_io import record_activations
from sae_lm_eval.splicing.site import resolve_site
from sae_lm_eval.splicing.variants import Choices, build_variant, provenance_of

RESID, Z = "blocks.1.hook_resid_post", "blocks.1.attn.hook_z"


# -- SAELens folders of 2024 ----------------------------------------------------------------------------------


def folder_of_2024(folder: Path, **changes) -> Path:
    save(folder, of_2024("one", **changes))
    return folder / "one"


def test_a_saelens_folder_of_2024_is_read_as_what_it_is(tmp_path):
    folder = folder_of_2024(tmp_path)
    dictionary = load_dictionary(str(folder))
    out, acts = standard(of_2024("one")["one/sae_weights.safetensors"], activations())
    torch.testing.assert_close(dictionary.reconstruct(activations()), out)
    torch.testing.assert_close(dictionary.encode(activations()), acts)
    assert (dictionary.hook_in, dictionary.model_names) == ("blocks.8.hook_resid_pre", ("gpt2-small",))
    assert dictionary.not_stated == ("prepend_bos", "processing")


def test_its_hook_is_known_before_it_is_loaded(tmp_path):
    assert lookup.facts_of(str(folder_of_2024(tmp_path))).hook_in == "blocks.8.hook_resid_pre"


@pytest.mark.parametrize("key", ["expansion_factor", "num_latents"])
def test_the_weights_file_tells_the_format_and_no_key_of_the_configuration(key, tmp_path):
    folder = folder_of_2024(tmp_path, **{key: 2})
    assert load_dictionary(str(folder)).d_in == D
    (folder / "sae_weights.safetensors").rename(folder / "sae.safetensors")
    (folder / "sparsity.safetensors").unlink()
    with pytest.raises(UserError, match=f"is in the format of sparsify: name it sparsify:{folder}"):
        load_dictionary(str(folder))


# -- BOS ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stated", [True, False])
def test_what_a_file_says_of_bos_is_believed(stated, tmp_path):
    assert load_dictionary(str(folder_of_2024(tmp_path, prepend_bos=stated))).prepend_bos is stated
    random_sae(WIDTH, RESID, prepend_bos=stated).save_model(tmp_path / "new")
    assert load_dictionary(str(tmp_path / "new")).prepend_bos is stated


def filled_by_saelens(**metadata):
    """As `SAE.from_pretrained` gives a dictionary of a foreign format: with no version that trained it."""
    return random_sae(WIDTH, RESID, prepend_bos=True, sae_lens_training_version=None, **metadata)


def test_what_saelens_fills_in_is_not(caplog):
    lm = SaeHFLM(pretrained=random_model("gpt_neox"), tokenizer=word_tokenizer(), sae=filled_by_saelens(), device="cpu")
    assert lm.spliced.tokens.bos_choice == "lm_eval's default, which adds none"
    assert lm.tok_encode("w5") == [5]
    (said,) = lm.spliced.provenance()["splices"]
    assert said["prepend_bos"] is None
    assert "prepend_bos" in said["not stated"]


# -- how TransformerLens loaded the model -----------------------------------------------------------------------


def warnings_of(caplog, model: str, dictionary: Dictionary, **choices) -> list[str]:
    logging.getLogger("lm_eval").propagate = True
    with caplog.at_level(logging.WARNING, logger="lm_eval"):
        build_variant(random_model(model), [dictionary], Choices(**choices), frozenset())
    return [r.message for r in caplog.records if "how TransformerLens loaded its model is not stated" in r.message]


def at(hook: str, model: str, **metadata) -> Dictionary:
    width = 48 if hook == Z and model == "qwen3" else WIDTH
    return load_dictionary(random_sae(width, hook, **metadata))


@pytest.mark.parametrize(("model", "hook"), [("gpt2", RESID), ("gpt_neox", RESID), ("gpt2", Z), ("qwen2", Z)])
def test_a_map_that_nobody_states_is_told_to_be_a_guess(model, hook, caplog):
    (message,) = warnings_of(caplog, model, at(hook, model))
    assert f"its activations at '{hook}' are taken as they are (hook_map=raw)" in message


@pytest.mark.parametrize(
    ("model", "hook", "metadata", "choices"),
    [
        ("gpt2", RESID, {"model_from_pretrained_kwargs": {"center_writing_weights": False}}, {}),
        ("gpt2", RESID, {"model_from_pretrained_kwargs": {}}, {}),
        ("gpt2", RESID, {"model_class_name": "AutoModelForCausalLM"}, {}),
        ("gpt2", RESID, {}, {"hook_maps": ("raw",)}),
        ("llama", RESID, {}, {}),  # whose norms take no mean away
        ("qwen3", Z, {}, {}),  # which has no bias to fold
    ],
)
def test_nothing_is_told_where_it_is_stated_or_makes_no_difference(model, hook, metadata, choices, caplog):
    assert not warnings_of(caplog, model, at(hook, model, **metadata), **choices)


def test_the_record_says_who_says_it():
    unstated = at(RESID, "gpt2")
    stated = at(RESID, "gpt2", model_from_pretrained_kwargs={"center_writing_weights": True})
    registered = replace(unstated, processing=DEFAULT_PROCESSING, processing_source=FACTS[0].source)
    records = [
        provenance_of(build_variant(random_model("gpt2"), [dictionary], Choices(), frozenset()))[0]
        for dictionary in (unstated, stated, registered)
    ]
    assert [r["processing"] for r in records] == ["not stated", {"center_writing_weights": True}, DEFAULT_PROCESSING]
    assert [r["processing_source"] for r in records] == [None, "its metadata", FACTS[0].source]
    assert ["processing" in r["not stated"] for r in records] == [True, False, False]
    assert [r["map_in"] for r in records] == ["raw", "centered", "centered"]


def test_default_processing_folds_the_value_biases():
    registered = replace(at(Z, "gpt2"), processing=DEFAULT_PROCESSING, processing_source=FACTS[0].source)
    (splice,) = build_variant(random_model("gpt2"), [registered], Choices(), frozenset()).splices
    assert (splice.map_in.name, splice.map_out.name) == ("folded_value_bias", "folded_value_bias")


def test_every_fact_has_a_source_and_a_release():
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    from sae_lm_eval.dictionaries.release_facts import fact_of

    facts = [fact_of(release) for release in get_pretrained_saes_directory()]
    assert all(fact in facts for fact in FACTS)
    assert all(re.match(r"github\.com/[\w-]+/[\w-]+, \S", fact.source) for fact in FACTS)


# -- what attends over positions ----------------------------------------------------------------------------------


class Renamed(TemporalSAE):
    """A temporal SAE under a name of somebody's own."""

    def __init__(self) -> None:
        sizes = {"d_in": WIDTH, "d_sae": 64, "n_heads": 2, "bottleneck_factor": 4, "kval_topk": 8}
        config = TemporalSAEConfig(**sizes, n_attn_layers=1)
        config.architecture = lambda: "my_own"
        super().__init__(config)


@pytest.mark.parametrize(
    ("module", "run", "sequential"),
    [
        (nn.MultiheadAttention(WIDTH, 2, batch_first=True), lambda module, x: module(x, x, x)[0], True),
        (nn.Sequential(nn.GRU(WIDTH, WIDTH, batch_first=True)), lambda module, x: module(x)[0], True),
        (nn.TransformerEncoderLayer(WIDTH, 2, batch_first=True), lambda module, x: module(x), True),
        (nn.Linear(WIDTH, WIDTH), lambda module, x: module(x), False),
    ],
)
def test_a_dictionary_of_ones_own_is_marked_by_its_parts(module, run, sequential):
    reconstruct = functools.partial(run, module.eval())
    own = Dictionary("mine", module, reconstruct, reconstruct, "own", WIDTH, WIDTH, WIDTH, RESID, RESID)
    assert load_dictionary(own).sequential is sequential


def test_a_temporal_sae_is_marked_whatever_it_is_called():
    assert load_dictionary(Renamed()).sequential
    assert load_dictionary(random_sae(WIDTH, RESID, "temporal")).sequential
    assert not load_dictionary(random_sae(WIDTH, RESID, "topk")).sequential


# -- another model --------------------------------------------------------------------------------------------------


def named(name: str, kind: str = "gpt2") -> transformers.PreTrainedModel:
    model = random_model(kind)
    model.config._name_or_path = name
    return model


@pytest.mark.parametrize(
    ("d_in", "hook", "refusal"),
    [
        (WIDTH, "blocks.20.hook_resid_post", r"org/gpt2 has no hook 'blocks\.20\.hook_resid_post'"),
        (48, RESID, r".* reads 48 values a position"),
        (WIDTH, "blocks.1.hook_q_input", r"org/gpt2 has no hook"),
        (WIDTH, "blocks.1.ln2.hook_normalized", r".* can be read but not written"),
    ],
)
def test_a_wrong_model_is_said_before_a_wrong_hook(d_in, hook, refusal):
    dictionary = load_dictionary(random_sae(d_in, hook, model_name="gemma-2-2b"))
    with pytest.raises(UserError) as error:
        build_variant(named("org/gpt2"), [dictionary], Choices(), frozenset())
    first = re.escape(f"{dictionary.name} was trained on gemma-2-2b, and the model is org/gpt2. ")
    assert re.match(f"{first}{refusal}", str(error.value)), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["gpt2", "gpt2-small", "openai-community/gpt2"])
def test_a_wrong_hook_of_the_right_model_is_all_that_is_said(name):
    dictionary = load_dictionary(random_sae(WIDTH, "blocks.20.hook_resid_post", model_name="gpt2-small"))
    with pytest.raises(UserError, match=rf"^{name} has no hook 'blocks\.20\.hook_resid_post'"):
        build_variant(named(name), [dictionary], Choices(), frozenset())


def test_both_names_of_gpt2_mean_the_same_row_of_the_catalogue():
    from sae_lm_eval.catalog.saelens_registry import base_model

    assert base_model("gpt2") is base_model("gpt2-small") is base_model("openai-community/gpt2") is not None
    assert base_model("gpt2-medium") is None


# -- embeddings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gemma2", "gemma3", "llama"])
def test_hook_embed_is_what_the_first_block_reads(kind):
    model, ids = random_model(kind), random_ids()
    site = resolve_site(Architecture(model), "hook_embed")
    passed = record_activations(model, [site.read], ids)[site.read]
    read = model(input_ids=ids, output_hidden_states=True).hidden_states[0]
    torch.testing.assert_close(passed, read)
    assert int(ids.max()) < VOCABULARY


def test_no_transformers_is_allowed_in_which_gemmas_embeddings_are_scaled_later():
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    (wanted,) = [r for r in map(Requirement, pyproject["project"]["dependencies"]) if r.name == "transformers"]
    assert not wanted.specifier.contains("5.3.0")
    assert wanted.specifier.contains(transformers.__version__)


# -- lm_eval's command ------------------------------------------------------------------------------------------------

ARGUMENTS = ["--model", "sae_hf", "--tasks", "sae_world", "--device", "cpu", "--model_args"]
CALLED = "import sys; from lm_eval.__main__ import cli_evaluate; sys.argv[0] = 'x'; sys.exit(cli_evaluate())"


@pytest.mark.parametrize("how", [["lm_eval"], ["python", "-c", CALLED]], ids=["command", "function"])
def test_a_refusal_under_lm_eval_is_a_sentence(how, tmp_path):
    save(tmp_path, {"one/config.json": {}, "one/ae.pt": {}})
    program = str(Path(sys.executable).parent / how[0])
    command = [program, *how[1:], *ARGUMENTS, f"pretrained=world,sae={tmp_path}#one"]
    said = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert said.returncode == 1
    assert "Traceback" not in said.stderr
    assert said.stderr.strip().splitlines()[-1].startswith(f"sae_hf: '{tmp_path}#one' is in the format of dictionary_")
    assert json.dumps(said.stdout) == '""'
