"""Names of variants, which are folders' names: none that is derived or given is another's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_lm_eval import UserError
from sae_lm_eval.runs.additions import with_earlier
from sae_lm_eval.runs.folder_names import OF_RUN, TAKEN, check_name, folder_name, free_name
from sae_lm_eval.runs.sweep import sweep_of
from sae_lm_eval.runtime.run_folder import check_folder, remember


def names(*variants: object) -> list[str]:
    given = {"model_args": "pretrained=world", "tasks": "sae_world_homes"}
    return [request.name for request in sweep_of({**given, "variants": list(variants)}).variants]


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
    for folder in (name, name.upper()):
        with pytest.raises(UserError, match="is the name of something else in the folder of a run: choose another"):
            names({"sae": "k4", "name": folder})


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".k4", "a.", "x" * 201, "a\0b", "\u202ea", "a b", "~"])
def test_what_is_no_name_for_a_folder(name):
    with pytest.raises(UserError, match="is no name for a folder"):
        names({"sae": "k4", "name": name})


def test_a_letter_and_its_parts_are_one_name_on_some_disks():
    composed, parts = "\ud55c", "\u1112\u1161\u11ab"
    assert names({"sae": "k4", "name": composed}, "k32") == [composed, "k32"]
    with pytest.raises(UserError, match="which some disks take for the same"):
        names({"sae": "k4", "name": composed}, {"sae": "k32", "name": parts})


@given(st.text(st.characters(blacklist_categories=["Cs"]), max_size=300))
def test_every_derived_name_passes_the_check_of_given_ones(text):
    name = free_name(folder_name({"sae": text}))
    assert check_name(name, "") == name


@pytest.mark.parametrize("name", ["../k4", "/tmp/k4", "baseline", ".", ["k4"], None, {"k4": 1}, 4])
def test_a_record_of_a_run_names_no_folder_elsewhere(name, tmp_path):
    earlier = [{"name": variant, "arguments": {"sae": "a"}, "control_of": []} for variant in ("k4", name)]
    sweep = sweep_of({"model_args": "pretrained=world", "tasks": "sae_world_homes", "variants": ["k32"]})
    (tmp_path / "run.json").write_text(json.dumps({"variants": earlier[:1]}))
    assert [variant.name for variant in with_earlier(sweep, tmp_path).variants] == ["k4", "k32"]
    (tmp_path / "run.json").write_text(json.dumps({"variants": earlier}))
    assert [variant.name for variant in with_earlier(sweep, tmp_path).variants] == ["k4", "k32"]


GOOD = {"name": "a", "arguments": {"sae": "a"}, "control_of": []}
ODD = [
    *({**GOOD, "name": "b", "control_of": odd} for odd in (None, "a", [1])),
    *({**GOOD, "name": "b", "arguments": odd} for odd in (None, [], "sae=a")),
    *({key: GOOD[key] for key in GOOD if key != left_out} for left_out in GOOD),
    *(None, "b", 3, [], {}, {**GOOD, "name": "report"}, {**GOOD, "name": "run.json"}, {**GOOD, "name": "Baseline"}),
]


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_entry_of_a_record_costs_no_other_its_place(odd, tmp_path, caplog):
    sweep = sweep_of({"model_args": "pretrained=world", "tasks": "sae_world_homes", "variants": ["k32"]})
    (tmp_path / "run.json").write_text(json.dumps({"variants": [odd, GOOD, {**GOOD, "name": "c"}]}))
    assert [variant.name for variant in with_earlier(sweep, tmp_path).variants] == ["a", "c", "k32"]
    assert "left out. run.json, variants.0" in caplog.text
    assert json.loads((tmp_path / "run.json").read_text()) == {"variants": [GOOD, {**GOOD, "name": "c"}]}
    assert json.loads((tmp_path / ".run.json.before").read_text())["variants"][0] == odd
    caplog.clear()
    continued = with_earlier(sweep, tmp_path)
    remember(tmp_path, {"variants": [variant.record for variant in continued.variants]})
    assert not caplog.text


def test_edits_that_a_control_of_before_carried_in_vain_are_left_out(tmp_path):
    sweep = sweep_of({"model_args": "pretrained=world", "tasks": "sae_world_homes", "variants": ["k32"]})
    arguments = {"sae": "a", "splice": "zero", "ablate": 3, "keep_top": 2, "clamp": "1:2"}
    (tmp_path / "run.json").write_text(json.dumps({"variants": [{**GOOD, "arguments": arguments}]}))
    before = with_earlier(sweep, tmp_path).variants[0]
    assert before.arguments == {"sae": "a", "splice": "zero"}
    remember(tmp_path, {"variants": [before.record]})
    arguments = {"sae": "a", "ablate": 3}
    (tmp_path / "run.json").write_text(json.dumps({"variants": [{**GOOD, "arguments": arguments}]}))
    assert with_earlier(sweep, tmp_path).variants[0].arguments == arguments


@pytest.mark.parametrize("name", sorted(TAKEN - OF_RUN))
def test_a_variant_of_before_keeps_a_name_that_no_new_one_gets(name, tmp_path, caplog):
    sweep = sweep_of({"model_args": "pretrained=world", "tasks": "sae_world_homes", "variants": ["k32"]})
    (tmp_path / "run.json").write_text(json.dumps({"variants": [GOOD, {**GOOD, "name": name}]}))
    assert [variant.name for variant in with_earlier(sweep, tmp_path).variants] == ["a", name, "k32"]
    assert not caplog.text
    with pytest.raises(UserError, match="something else in the folder of a run"):
        names({"sae": "k4", "name": name})


@pytest.mark.parametrize("record", ["{}", '{"variants": null}', '{"variants": {"a": 1}}', '{"variants": "ab"}'])
def test_what_is_no_record_of_a_run_adds_nothing(record, tmp_path):
    sweep = sweep_of({"model_args": "pretrained=world", "tasks": "sae_world_homes", "variants": ["k32"]})
    (tmp_path / "run.json").write_text(record)
    assert with_earlier(sweep, tmp_path) == sweep


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "a\ud800b"], ids=["too long", "NUL", "lone surrogate"])
def test_what_can_be_no_folder_is_told_before_anything_is_loaded(name):
    with pytest.raises(UserError, match="can be no folder: "):
        check_folder(Path(name))
