"""Reading what lm_eval wrote, and saying what is wrong with what it did not."""

from __future__ import annotations

import json

import pytest
from runs import answers, write_run

from sae_lm_eval.errors import UserError
from sae_lm_eval.results.results import read_results

RIGHT = {"one": [1, 0, 1], "two": [0, 0, 1, 1]}
OLD, NEW = "2026-01-01T00-00-00.000000", "2026-01-02T00-00-00.000000"


def test_outer_folder_inner_folder_and_file_are_the_same_run(tmp_path):
    folder = write_run(tmp_path / "out", answers(RIGHT), groups={"both": (["one", "two"], "sized")})
    for path in (folder, folder / "model", folder / "model" / f"results_{OLD}.json", str(folder)):
        results = read_results(path)
        assert results.tasks == ["one", "two"]
        assert results.groups == {"both": ["one", "two"]}
        assert results.folder == folder / "model"
        assert results.scores["both"]["acc,none"] == pytest.approx(4 / 7)
        assert results.notes == ()


def test_samples_are_the_lines_of_the_task(tmp_path):
    samples = read_results(write_run(tmp_path, answers(RIGHT))).samples("two")
    assert samples["acc"].tolist() == RIGHT["two"]
    assert samples["doc_id"].tolist() == [0, 1, 2, 3]
    assert samples["doc"][2] == {"text": "two 2"}


def test_the_newest_of_several_runs_is_taken_and_told(tmp_path):
    write_run(tmp_path, answers({"one": [1, 1]}), stamp=NEW)
    write_run(tmp_path, answers({"one": [0, 0]}), stamp=OLD)
    results = read_results(tmp_path)
    assert results.scores["one"]["acc,none"] == 1
    assert results.samples("one")["acc"].tolist() == [1, 1]
    assert "holds 2 runs; the newest is taken" in results.notes[0]
    assert NEW in results.notes[0]


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({}, "gpt2"),
        ({"sae_lm_eval": {"splices": [{"dictionary": "a#b"}], "splice": "reconstruction"}}, "a#b"),
        ({"sae_lm_eval": {"splices": [{"dictionary": "a#b"}], "splice": "zero"}}, "a#b (zero)"),
        ({"sae_lm_eval": {"splices": [{"dictionary": "a#b"}, {"dictionary": "c"}], "splice": "none"}}, "a#b+c (none)"),
    ],
)
def test_names(tmp_path, config, name):
    assert read_results(write_run(tmp_path, answers(RIGHT), config=config)).name == name


def test_arguments_of_the_model_as_text_and_as_mapping(tmp_path):
    text = read_results(
        write_run(tmp_path / "a", answers(RIGHT), config={"model_args": "pretrained=gpt2,dtype=float32"})
    )
    mapping = {"pretrained": "gpt2", "dtype": "float32"}
    assert text.model_args == mapping
    assert read_results(write_run(tmp_path / "b", answers(RIGHT), config={"model_args": mapping})).model_args == mapping


def test_missing_samples_say_how_to_get_them(tmp_path):
    folder = write_run(tmp_path, answers(RIGHT))
    (folder / "model" / f"samples_two_{OLD}.jsonl").unlink()
    with pytest.raises(UserError, match=r"answers of gpt2 to two are missing: there is no samples_two_.*--log_samples"):
        read_results(folder).samples("two")


@pytest.mark.parametrize("line", ['{"doc_id": 0, "do', "[]", "{}", "3", '{"doc_id": 0}'])
def test_a_line_that_is_no_sample_is_named(tmp_path, line):
    folder = write_run(tmp_path, answers(RIGHT))
    with (folder / "model" / f"samples_two_{OLD}.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(
        UserError, match=r"Line 5 of .*samples_two.* (is not a sample of lm_eval's|cannot be read as JSON)"
    ):
        read_results(folder).samples("two")


def test_an_empty_file_of_samples(tmp_path):
    folder = write_run(tmp_path, answers(RIGHT))
    (folder / "model" / f"samples_two_{OLD}.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no documents"):
        read_results(folder).samples("two")


def test_no_folder_and_an_empty_one(tmp_path):
    with pytest.raises(UserError, match=r"There is no '.*nowhere'.*--output_path"):
        read_results(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no results_\*\.json"):
        read_results(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "\x00\xff", "[1, 2]", "3", "null", json.dumps({"results": {}})])
def test_a_file_that_is_no_results_file(tmp_path, text):
    file = tmp_path / "results_x.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"results_x.json' (cannot be read( as JSON|: it is no)|is not a results file)"):
        read_results(file)


def test_results_have_a_short_repr(tmp_path):
    results = read_results(write_run(tmp_path / "a", answers({"x": [1.0, 0.0], "y": [1.0]})))
    assert repr(results) == f"<Results of gpt2 on 2 tasks, '{results.file}'>"
