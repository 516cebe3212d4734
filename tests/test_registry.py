"""SAELens' whole registry, resolved with sockets closed, against SAELens' own configuration code."""

from __future__ import annotations

import json
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

from sae_lm_eval.catalog import saelens_registry as registry
from sae_lm_eval.catalog.converters import CLT_FAULT
from sae_lm_eval.catalog.saelens_registry import REFUSED, SUPPORTED, Entry, base_model, search
from sae_lm_eval.dictionaries.saelens_object import from_sae
from sae_lm_eval.dictionaries.spec import SaeSpec
from sae_lm_eval.errors import UserError

SCRIPT = Path(__file__).parents[1] / "scripts" / "specs_table.py"
FILE_DECIDES = {"sae_lens": "its cfg.json decides"}
NEVER = {"mntss_clt_layer_transcoder": REFUSED}
TRANSCODER_INPUTS = ("hook_resid_mid", "hook_mlp_in", "ln2.hook_normalized", "mlp.hook_in")


@pytest.fixture(scope="module")
def entries() -> Iterator[dict[str, Entry]]:
    """Every entry by its spec, with whatever would reach a network broken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _no_network)
        patch.setattr(socket, "getaddrinfo", _no_network)
        registry.entries.cache_clear()
        by_spec = {entry.spec: entry for entry in registry.entries()}
        assert all(entry.verdict for entry in by_spec.values())
        yield by_spec


def _no_network(*_args, **_kwargs):
    raise AssertionError("the registry was to be read without a network")


def test_every_registered_dictionary_has_an_entry_whose_spec_reads_back(entries):
    releases = get_pretrained_saes_directory()
    registered = [(name, id_) for name, release in releases.items() for id_ in release.saes_map]
    assert [SaeSpec.parse(spec) for spec in entries] == [SaeSpec(name, id_) for name, id_ in registered]


def test_nearly_all_are_supported_and_hardly_any_refused(entries):
    verdicts = Counter(entry.verdict for entry in entries.values())
    assert verdicts[SUPPORTED] / len(entries) >= 0.97
    assert verdicts[REFUSED] / len(entries) < 0.01
    assert verdicts.keys() <= {SUPPORTED, REFUSED, *FILE_DECIDES.values()}


def test_a_file_decides_for_just_the_converters_that_names_tell_nothing_certain_of(entries):
    for entry in entries.values():
        assert entry.verdict == (FILE_DECIDES | NEVER).get(entry.converter, SUPPORTED), entry.spec


def test_what_is_not_supported_says_why(entries):
    for entry in entries.values():
        assert entry.verdict == SUPPORTED or entry.why, entry.spec


def test_a_site_is_tried_wherever_a_hook_is_known(entries):
    for entry in entries.values():
        assert (entry.trial.maps is not None) == (entry.hook_in is not None), entry.spec


def test_the_deepest_dictionary_of_a_model_with_one_in_every_layer_sits_in_its_last(entries):
    layers: dict[registry.BaseModel, set[int]] = {}
    for entry in entries.values():
        if match := re.match(r"blocks\.(\d+)", entry.hook_in or ""):
            layers.setdefault(entry.base, set()).add(int(match[1]))
    assert layers.keys() == set(registry.MODELS)
    complete = [base for base, indices in layers.items() if indices == set(range(max(indices) + 1))]
    assert len(complete) >= 19
    for base in complete:
        assert max(layers[base]) == base.layers - 1, base


@pytest.fixture
def configuration(tmp_path, monkeypatch) -> Callable[[Entry], dict[str, Any]]:
    """SAELens' own configuration of an entry, its converter given such files as it expects."""
    hub = FakeHub(tmp_path)
    monkeypatch.setattr(loaders, "hf_hub_download", hub.download)
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", lambda *_: {"w_enc": [8, 16], "w_dec": [16, 8]})

    def read(entry: Entry) -> dict[str, Any]:
        hub.entry = entry
        return loaders.load_sae_config_from_huggingface(entry.release, entry.id)

    return read


def test_saelens_own_code_names_the_same_model_sites_and_architecture(entries, configuration):
    compared = set()
    for entry in entries.values():
        if entry.verdict != SUPPORTED:
            continue
        config = configuration(entry)
        said = config["metadata"]
        hook_out, module_out = said.get("hook_name_out"), said.get("hf_hook_name_out")
        assert short(said["model_name"]) == short(entry.model), entry.spec
        assert (said["hook_name"], hook_out or said["hook_name"]) == (entry.hook_in, entry.hook_out), entry.spec
        assert said.get("hf_hook_name") == entry.module_in, entry.spec
        assert module_out == (entry.module_out if hook_out else None), entry.spec
        if (processing := said.get("model_from_pretrained_kwargs")) is not None:
            assert processing == entry.processing, entry.spec
        assert entry.architecture in (None, config["architecture"]), entry.spec
        compared.add(entry.converter)
    assert compared == registry.CONVERTERS.keys() - FILE_DECIDES.keys() - NEVER.keys()


def test_a_loaded_dictionary_has_the_sites_of_its_entry(entries, configuration):
    """One of each converter and architecture, through SAELens' class and what is made of its object here."""
    samples = {(entry.converter, entry.architecture): entry for entry in entries.values() if entry.verdict == SUPPORTED}
    for entry in samples.values():
        small = {"d_in": 8, "d_sae": 16, **({"d_out": 8} if entry.hook_out != entry.hook_in else {})}
        small |= {"dtype": "float32", "device": "cpu", "normalize_activations": "none"}
        dictionary = from_sae(SAE.from_dict(configuration(entry) | small), name="small")
        assert (dictionary.hook_in, dictionary.hook_out) == (entry.hook_in, entry.hook_out)
        assert (dictionary.module_hook_in, dictionary.module_hook_out) == (entry.module_in, entry.module_out)
        if dictionary.processing_source is not None:
            assert dictionary.processing == entry.processing
    assert len(samples) == 14


def short(model: str) -> str:
    return model.rsplit("/", 1)[-1]


class FakeHub:
    """Files as the converters expect them; for Gemma-3 there are none, and SAELens goes by names too.

    What a file alone can say, such as Llama Scope's hook, is the entry's own: that part is not tested.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.entry: Any = None

    def download(self, repo_id: str, filename: str, **_: Any) -> str:
        if self.entry.converter == "gemma_3":
            raise EntryNotFoundError(f"no {filename} in {repo_id}")
        file = self.folder / Path(filename).name
        file.write_text(json.dumps(getattr(self, self.entry.converter)(filename)))  # which is YAML, too
        return str(file)

    def dictionary_learning_1(self, filename: str) -> dict:
        (layer,) = re.findall(r"resid_post_layer_(\d+)", filename)
        trainer = {"layer": layer, "dict_class": "BatchTopKSAE", "activation_dim": 8, "dict_size": 16}
        return {"trainer": {**trainer, "lm_name": self.entry.model}, "buffer": {"ctx_len": 128}}

    def llama_scope(self, _filename: str) -> dict:
        norm = {"dataset_average_activation_norm": {"in": 1.0}, "jump_relu_threshold": 0.1}
        return {"d_model": 8, "d_sae": 16, "hook_point_in": self.entry.hook_in, **norm}

    def llama_scope_r1_distill(self, _filename: str) -> dict:
        return {"d_model": 8, "expansion_factor": 2, "hook_point_in": self.entry.hook_in}

    def mwhanna_transcoder(self, filename: str) -> dict:
        if filename == "config.yaml":
            return {"model_name": self.entry.model}
        return {name: {"value": 8} for name in ("d_model", "d_feature", "batch_size")}

    def connor_rob_hook_z(self, _filename: str) -> dict:
        return {"act_size": 8, "dict_size": 16, "act_name": self.entry.hook_in}

    def temporal(self, _filename: str) -> dict:
        names = ("exp_factor", "n_heads", "n_attn_layers", "bottleneck_factor", "sae_diff_type", "kval_topk")
        sae = dict.fromkeys((*names, "tied_weights", "scaling_factor"), 1)
        return {"llm": {"dimin": 8}, "sae": sae, "data": {"dtype": "float32"}}


# Read by hand from SAELens' registry and converters.
MLP_OF_GEMMA_3 = ("model.layers.9.pre_feedforward_layernorm.output", "model.layers.9.post_feedforward_layernorm.output")
GOLDEN = {
    "gpt2-small-res-jb#blocks.8.hook_resid_pre": {
        "model_class": "GPT2LMHeadModel", "hook": "blocks.8.hook_resid_pre", "maps": ("centered", "centered"),
        "verdict": "its cfg.json decides",
    },
    "gpt2-small-res-jb-feature-splitting#blocks.8.hook_resid_pre_768": {
        "hook": "blocks.8.hook_resid_pre", "maps": ("centered", "centered"), "verdict": "its cfg.json decides",
    },
    "gpt2-small-hook-z-kk#blocks.5.hook_z": {
        "hook": "blocks.5.attn.hook_z", "maps": ("folded_value_bias", "folded_value_bias"),
        "why": "hook from its id; TransformerLens loaded its model with default processing, by "
        "github.com/ckkissane/attention-output-saes, train.py and common/utils.py",
    },
    "gpt2-small-res_slefr-ajt#blocks.10.hook_resid_pre": {
        "hook": "blocks.10.hook_resid_pre", "maps": ("centered", "centered"), "verdict": "its cfg.json decides",
    },
    "gpt2-small-attn-out-v5-32k#blocks.0.hook_attn_out": {
        "hook": "blocks.0.hook_attn_out", "maps": ("raw", "raw"), "verdict": "its cfg.json decides",
    },
    "gemma-scope-2b-pt-res#embedding/width_4k/average_l0_6": {
        "model": "gemma-2-2b", "model_class": "Gemma2ForCausalLM", "hook": "hook_embed", "architecture": "jumprelu",
        "d_dictionary": 4096, "l0": None,
    },
    "gemma-scope-9b-pt-att-canonical#layer_0/width_16k/canonical": {
        "hook": "blocks.0.attn.hook_z", "d_dictionary": 16384,
    },
    "gemma-scope-9b-it-res#layer_9/width_16k/average_l0_88": {
        "model": "gemma-2-9b-it",
        "why": "the release says its model is gemma-2-9b, the dictionary's own metadata gemma-2-9b-it",
    },
    "gemma-scope-2b-pt-transcoders#layer_25/width_16k/average_l0_41": {
        "hook": "blocks.25.ln2.hook_normalized -> blocks.25.hook_mlp_out", "architecture": "jumprelu_transcoder",
    },
    "gemma-scope-2-4b-pt-transcoders-all#layer_9_width_262k_l0_small_affine": {
        "model": "google/gemma-3-4b-pt", "model_class": "Gemma3ForConditionalGeneration",
        "hook": "blocks.9.hook_mlp_in -> blocks.9.hook_mlp_out", "architecture": "jumprelu_skip_transcoder",
        "module_in": MLP_OF_GEMMA_3[0], "module_out": MLP_OF_GEMMA_3[1], "d_dictionary": 262144,
    },
    "gemma-scope-2-270m-pt-att-all#layer_0_width_16k_l0_big": {
        "model": "google/gemma-3-270m", "model_class": "Gemma3ForCausalLM", "hook": "blocks.0.attn.hook_z",
        "module_in": "model.layers.0.self_attn.o_proj.input", "module_out": "model.layers.0.self_attn.o_proj.input",
    },
    "llama_scope_lxm_8x#l31m_8x": {"model_class": "LlamaForCausalLM", "hook": "blocks.31.hook_mlp_out"},
    "llama_scope_lxa_32x#l0a_32x": {"hook": "blocks.0.hook_attn_out"},
    "mwhanna-qwen3-14b-transcoders#layer_39": {
        "model_class": "Qwen3ForCausalLM", "hook": "blocks.39.mlp.hook_in -> blocks.39.hook_mlp_out",
        "architecture": "transcoder",
    },
    "qwen-scope-3.5-27b-w80k-l50#layer63": {
        "model_class": "Qwen3_5ForCausalLM", "hook": "blocks.63.hook_resid_post", "architecture": "topk",
        "module_in": "model.layers.63", "d_dictionary": 81920, "l0": 50,
    },
    "gpt-oss-20b-andyrdt#resid_post_layer_23_trainer_0": {
        "model_class": "GptOssForCausalLM", "hook": "blocks.23.hook_resid_post", "why": "layer from its path",
    },
    "temporal-sae-llama-3.1-8b#blocks.26.hook_resid_post": {
        "model": "meta-llama/Llama-3.1-8B", "hook": "blocks.26.hook_resid_post", "architecture": "temporal",
    },
    "mntss-gemma-2-2b-2.5m-clt-as-per-layer#layer_3": {
        "hook": "not known", "maps": None, "verdict": REFUSED, "why": CLT_FAULT,
    },
}  # fmt: skip


@pytest.mark.parametrize("spec", GOLDEN)
def test_rows_checked_by_hand(spec, entries):
    entry = entries[spec]
    expected = {"verdict": SUPPORTED, **GOLDEN[spec]}
    assert {name: entry.trial.maps if name == "maps" else getattr(entry, name) for name in expected} == expected


def a_pythia_entry(entries, **changes) -> Entry:
    return replace(entries["sae_bench_pythia70m_sweep_topk_ctx128_0730#blocks.3.hook_resid_post__trainer_0"], **changes)


@pytest.mark.parametrize(
    ("changes", "verdict", "why"),
    [
        (
            {"hook_in": "blocks.3.hook_resid_mid", "hook_out": "blocks.3.hook_resid_mid"},
            REFUSED,
            "GPTNeoXForCausalLM has no hook 'blocks.N.hook_resid_mid'",
        ),
        (
            {"hook_in": "blocks.3.ln2.hook_normalized", "hook_out": "blocks.3.ln2.hook_normalized"},
            REFUSED,
            "'blocks.N.ln2.hook_normalized' of GPTNeoXForCausalLM can be read but not written. Layer N can be written",
        ),
        (
            {"hook_in": "blocks.6.hook_resid_post", "hook_out": "blocks.6.hook_resid_post"},
            REFUSED,
            "pythia-70m-deduped has no layer 6: layers run from 0 to 5",
        ),
        ({"needs_norm_factor": True}, REFUSED, "its release gives no norm_factor, which norm_factor= has to state"),
        ({"model": "a-new-model", "base": base_model("a-new-model")}, "its model decides", "layer from its path"),
    ],
)
def test_verdicts_that_no_registered_dictionary_has(changes, verdict, why, entries):
    entry = a_pythia_entry(entries, **changes)
    assert entry.verdict == verdict
    assert entry.why.startswith(why)


@pytest.mark.parametrize(("layer", "verdict"), [(0, REFUSED), (7, SUPPORTED), (30, REFUSED), (63, SUPPORTED)])
def test_blocks_with_linear_attention_have_no_heads(layer, verdict, entries):
    hook = f"blocks.{layer}.attn.hook_z"
    entry = entries["qwen-scope-3.5-27b-w80k-l50#layer63"]
    assert replace(entry, hook_in=hook, hook_out=hook, module_in=None, module_out=None).verdict == verdict


@pytest.mark.parametrize("hook", TRANSCODER_INPUTS)
def test_a_layer_of_a_cross_layer_transcoder_is_refused_whatever_its_file_says_it_reads(hook, entries):
    entry = entries["mntss-gemma-2-2b-2.5m-clt-as-per-layer#layer_3"]
    read = replace(entry, hook_in=f"blocks.3.{hook}", hook_out="blocks.3.hook_mlp_out")
    assert read.trial == (("raw", "raw"), None)
    assert (read.verdict, read.why) == (REFUSED, CLT_FAULT)


@pytest.mark.parametrize("changes", [{"conversion_func": "new"}, {"saes_map": {"one": "unheard/of"}}])
def test_a_release_named_in_a_new_way_is_left_to_its_metadata(changes):
    release = get_pretrained_saes_directory()["gemma-scope-2-1b-pt-att"]
    fields = {
        "release": "new-release",
        "saes_map": {"one": "attn_out/layer_7_width_16k_l0_big"},
        "expected_l0": {"one": 0.0},
    }
    assert registry._entry(replace(release, **fields), "one").verdict == SUPPORTED
    assert registry._entry(replace(release, **fields | changes), "one").verdict == "its metadata decides"


def test_a_missing_normalisation_factor_is_found():
    release = get_pretrained_saes_directory()["llama_scope_lxr_8x"]
    assert not registry._entry(release, "l0r_8x").needs_norm_factor
    assert registry._entry(replace(release, norm_scaling_factor={}), "l0r_8x").needs_norm_factor


def test_small_models_leave_the_random_numbers_of_the_process_alone():
    before = torch.random.get_rng_state()
    registry.small_architecture.__wrapped__("llama")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("gpt2-small-res-jb#*", 13),
        ("GPT2-SMALL-RES-JB#*", 13),
        ("goodfire", 2),
        ("llama_scope_lx?_8x#l3[01]?_8x", 6),
    ],
)
def test_search_takes_a_glob_or_a_part(pattern, count, entries):
    matches = search(pattern)
    assert all(row.keys() == matches[0].keys() for row in matches)
    assert len(matches) == count


def test_a_found_row_has_the_columns_of_a_listing(entries):
    assert search("gemma-scope-2b-pt-transcoders#layer_25/*") == [
        {
            "spec": "gemma-scope-2b-pt-transcoders#layer_25/width_16k/average_l0_41",
            "model": "gemma-2-2b",
            "hook": "blocks.25.ln2.hook_normalized -> blocks.25.hook_mlp_out",
            "map": "raw",
            "l0": 41,
            "width": 16384,
            "verdict": "supported",
            "why": "",
        }
    ]


def test_a_search_that_finds_nothing_names_what_is_near(entries):
    message = "No dictionary that SAELens has registered matches 'gpt2-small-res-jbb'. Did you mean 'gpt2-small-res-jb'"
    with pytest.raises(UserError, match=re.escape(message)):
        search("gpt2-small-res-jbb")


def test_the_tables_of_the_documentation_are_current(entries):
    module = spec_from_file_location("specs_table", SCRIPT)
    assert module is not None
    assert module.loader is not None
    script = module_from_spec(module)
    module.loader.exec_module(script)
    text = script.SPECS.read_text()
    assert script.rewritten(text) == text, "run python scripts/specs_table.py"
