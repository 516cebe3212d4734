"""Spec text and its value are one thing."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sae_lm_eval import UserError
from sae_lm_eval.dictionaries.spec import LOADERS, SaeSpec, parse_specs
from sae_lm_eval.dictionaries.spec_patterns import specs_of
from sae_lm_eval.runs.sweep import sweep_of
from sae_lm_eval.splicing.adapter_spec import AdapterSpec
from sae_lm_eval.splicing.arguments import requested_splices
from sae_lm_eval.splicing.choices import choices_of
from sae_lm_eval.splicing.splice_arguments import SpliceArguments

NAME = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="._-"), min_size=2, max_size=12)
PATH = st.lists(NAME, min_size=1, max_size=3).map("/".join)
SPECS = st.builds(SaeSpec, source=PATH, id=st.none() | PATH, revision=st.none() | NAME, loader=st.sampled_from(LOADERS))


@given(SPECS)
def test_parse_undoes_str(spec):
    assert SaeSpec.parse(str(spec)) == spec


@given(st.lists(SPECS, min_size=1, max_size=4))
def test_a_joined_list_comes_apart_again(specs):
    assert list(parse_specs("+".join(map(str, specs)))) == specs


@given(SPECS)
def test_a_spec_passes_through_model_args(spec):
    from lm_eval.utils import simple_parse_args_string

    assume(not _is_number(str(spec)))  # lm_eval makes numbers of what reads like one
    assert simple_parse_args_string(f"pretrained=gpt2,sae={spec}")["sae"] == str(spec)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.lower() in ("true", "false", "none")
    return True


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("gpt2-small-res-jb#blocks.8.hook_resid_pre", SaeSpec("gpt2-small-res-jb", "blocks.8.hook_resid_pre")),
        ("org/name@v1", SaeSpec("org/name", revision="v1")),
        ("sparsify:EleutherAI/sae-pythia#layers.3", SaeSpec("EleutherAI/sae-pythia", "layers.3", loader="sparsify")),
        ("/a/folder#sub/one", SaeSpec("/a/folder", "sub/one")),
        (
            "gemma-scope-2b-pt-res#layer_0/width_16k/average_l0_105",
            SaeSpec("gemma-scope-2b-pt-res", "layer_0/width_16k/average_l0_105"),
        ),
    ],
)
def test_known_specs(text, spec):
    assert SaeSpec.parse(text) == spec
    assert str(spec) == text


def test_the_package_shows_what_it_has():
    import sae_lm_eval

    assert {"SaeHFLM", "effective_compute", "__version__"} <= set(dir(sae_lm_eval))
    assert sae_lm_eval.__version__


@pytest.mark.parametrize(
    "module", ["sae_lm_eval", "sae_lm_eval.dictionaries.spec", "sae_lm_eval.cli.main", "sae_lm_eval.errors"]
)
def test_light_modules_take_no_torch(module):
    code = f"import sys, {module}; print('torch' in sys.modules, 'lm_eval' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "False"]


class TestPatterns:
    def test_all_that_match_in_the_order_of_their_numbers(self, tmp_path):
        for layer in (10, 9, 2):
            folder = tmp_path / f"blocks.{layer}.hook_resid_post"
            folder.mkdir()
            (folder / "cfg.json").write_text("{}")
        ids = [spec.id for spec in specs_of(f"{tmp_path}#blocks.*")]
        assert ids == [f"blocks.{layer}.hook_resid_post" for layer in (2, 9, 10)]

    def test_of_the_world_a_release_and_files_of_layers(self, tmp_path):
        (tmp_path / "low").mkdir()
        for layer in range(3):
            (tmp_path / "low" / f"layer_{layer}.safetensors").write_bytes(b"")
        given = {
            "world#*.k4": ["blocks.1.hook_resid_post.k4", "blocks.2.hook_resid_post.k4", "blocks.3.hook_resid_post.k4"],
            "gpt2-small-res-jb#blocks.1*.hook_resid_pre": [f"blocks.{n}.hook_resid_pre" for n in (1, 10, 11)],
            f"circuit_tracer:{tmp_path}#low/layer_*": [f"low/layer_{layer}" for layer in range(3)],
        }
        for text, ids in given.items():
            assert [spec.id for spec in specs_of(text)] == ids
        joined = specs_of("world#*.k4+world#blocks.2.mlp.transcoder")
        assert [spec.id for spec in joined] == [*given["world#*.k4"], "blocks.2.mlp.transcoder"]

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("world#*.k5", r"'world#\*.k5' matches no dictionary of 'world'"),
            ("gpt2-small-res-jb#layers.*", "matches no dictionary of 'gpt2-small-res-jb'"),
            ("clt:world#layer_*", r"a '\*' stands for dictionaries of a release or folder"),
            ("nothing#*", "neither a folder here nor a SAELens release"),
        ],
    )
    def test_what_matches_nothing_is_told(self, text, sentence):
        with pytest.raises(UserError, match=sentence):
            specs_of(text)

    def test_they_are_spliced_in_together(self):
        wanted = requested_splices("world#blocks.*.hook_resid_post.k32")
        assert [dictionary.hook_out for dictionary in wanted.dictionaries] == [
            f"blocks.{n}.hook_resid_post" for n in (1, 2, 3)
        ]


def test_a_name_that_is_too_long_for_a_path_is_no_folder():
    assert SaeSpec.parse("x" * 5000).folder is None
    assert not AdapterSpec.parse("x" * 5000).is_folder


@pytest.mark.parametrize(
    "given", [{"scale": 10**400}, {"seed": 10**400}, {"seed": float("inf")}, {"scale": float("nan")}]
)
def test_numbers_that_no_double_or_tensor_holds(given):
    with pytest.raises(UserError, match="must be"):
        choices_of(SpliceArguments(sae="a#b", **given))


def test_a_list_of_layers_makes_variants():
    entry = {"sae": "clt:world", "name": "mlps", "splice_layers": [3, "2-3"]}
    sweep = sweep_of({"model_args": {"pretrained": "world"}, "tasks": ["sae_world_homes"], "variants": [entry]})
    assert [variant.name for variant in sweep.variants] == ["mlps,splice_layers=3", "mlps,splice_layers=2-3"]
    assert [variant.arguments["splice_layers"] for variant in sweep.variants] == [3, "2-3"]


def test_controls_at_the_same_sites_are_run_once():
    chosen = {"sae": "world#blocks.*.hook_resid_post.k4", "name": "chosen", "splice_layers": 1}
    clean = {"sae": "world#blocks.1.hook_resid_post.k4", "name": "clean", "splice_input": "clean"}
    entries = {"model_args": {"pretrained": "world"}, "tasks": ["sae_world_homes"], "variants": [chosen, clean]}
    sweep = sweep_of({**entries, "controls": ["zero"]})
    (control,) = [variant for variant in sweep.variants if variant.control_of]
    assert control.control_of == ("chosen", "clean")
    chosen["splice_layers"] = "1-2"
    assert len([variant for variant in sweep_of({**entries, "controls": ["zero"]}).variants if variant.control_of]) == 2
