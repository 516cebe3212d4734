"""Names of variants, which are folders' names: none that is derived or given is another's."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_lm_eval import UserError
from sae_lm_eval.runs.additions import with_earlier
from sae_lm_eval.runs.folder_names import TAKEN, check_name, folder_name, free_name
from sae_lm_eval.runs.sweep import sweep_of


def names(*variants: object) -> list[str]:
    given = {"model_args": "pretrained=world", "tasks": "sae_world_homes"}
    return [one.name for one in sweep_of({**given, "variants": list(variants)}).variants]


@pytest.mark.parametrize(
    "sae", [".", "./", "..", "baseline", "./baseline", "baseline/", "BASELINE", "report", "./report/"]
)
def test_a_folder_that_is_called_as_a_part_of_the_run(sae):
    (name,) = names(sae)
    assert name.startswith("sae=")
    assert name.casefold() not in TAKEN


@pytest.mark.parametrize("name", sorted(TAKEN))
def test_what_lies_in_the_folder_of_a_run_is_no_name(name):
    assert names(f"./{name}") == [f"sae={name}"]
    for one in (name, name.upper()):
        with pytest.raises(UserError, match="is the name of something else in the folder of a run: choose another"):
            names({"sae": "k4", "name": one})


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".k4", "a.", "x" * 201, "a\0b", "\u202ea", "a b", "~"])
def test_what_is_no_name_for_a_folder(name):
    with pytest.raises(UserError, match="is no name for a folder"):
        names({"sae": "k4", "name": name})


@given(st.text(st.characters(blacklist_categories=["Cs"]), max_size=300))
def test_every_derived_name_passes_the_check_of_given_ones(text):
    name = free_name(folder_name({"sae": text}))
    assert check_name(name, "") == name


@pytest.mark.parametrize("name", ["../k4", "/tmp/k4", "baseline", ".", ["k4"], None, {"k4": 1}, 4])
def test_a_record_of_a_run_names_no_folder_elsewhere(name, tmp_path):
    earlier = [{"name": one, "arguments": {"sae": "a"}, "control_of": []} for one in ("k4", name)]
    sweep = sweep_of({"model_args": "pretrained=world", "tasks": "sae_world_homes", "variants": ["k32"]})
    (tmp_path / "run.json").write_text(json.dumps({"variants": earlier[:1]}))
    assert [one.name for one in with_earlier(sweep, tmp_path).variants] == ["k4", "k32"]
    (tmp_path / "run.json").write_text(json.dumps({"variants": earlier}))
    assert with_earlier(sweep, tmp_path) == sweep
