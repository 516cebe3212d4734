"""What README and docs tell a user to type is resolved as far as a machine without a network can."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
from lm_eval.utils import simple_parse_args_string

from sae_lm_eval.dictionaries.spec import parse_specs
from sae_lm_eval.harness.model import OWN, SaeHFLM
from sae_lm_eval.splicing.splice import EDITS
from sae_lm_eval.splicing.splice_arguments import MODES, OF_ENTRIES, SpliceArguments

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "docs" / "splicing.md", *sorted((ROOT / "docs" / "tutorials").glob("*.md"))]
TEXT = "\n".join(page.read_text() for page in PAGES)
ARGUMENTS = sorted(set(re.findall(r"--model_args (pretrained=\S+)", TEXT.replace("\\\n", " "))))
RELEASES = [a for a in ARGUMENTS if "#" in a and "sparsify:" not in a and "checkpoints/" not in a and "world#" not in a]


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_every_command_parses(arguments):
    parsed = simple_parse_args_string(arguments)
    if "sae" in parsed:
        assert parse_specs(parsed["sae"])


@pytest.mark.parametrize("arguments", RELEASES)
def test_every_release_is_registered_and_supported_on_that_model(arguments):
    from sae_lm_eval.catalog import saelens_registry as registry
    from sae_lm_eval.dictionaries.model_names import official_name

    parsed = simple_parse_args_string(arguments)
    for spec in parse_specs(parsed["sae"]):
        (row,) = registry.search(str(spec))
        assert row["verdict"] != "refused", row
        assert official_name(row["model"]) == official_name(parsed["pretrained"])


def test_there_are_examples_of_several_families():
    assert {"gpt2", "EleutherAI/pythia-70m-deduped", "google/gemma-2-2b"} <= {
        simple_parse_args_string(a)["pretrained"] for a in RELEASES
    }


def test_every_argument_of_its_own_is_described():
    for name in OWN:
        assert f"`{name}=" in TEXT or f",{name}=" in TEXT, name


def test_the_adapter_takes_the_arguments_with_their_defaults():
    parameters = inspect.signature(SaeHFLM.__init__).parameters
    for argument in fields(SpliceArguments):
        if argument.name in OF_ENTRIES:  # there it is lm_eval's own
            continue
        assert parameters[argument.name].default == argument.default, argument.name


def test_each_mode_but_none_is_an_edit():
    assert set(EDITS) == set(MODES) - {"none"}
