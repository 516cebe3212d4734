"""Spec text and its value are one thing."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sae_lm_eval.dictionaries.spec import LOADERS, SaeSpec, parse_specs

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
