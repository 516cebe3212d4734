"""Files of somebody else's with values of other types, too much, too little or nothing in them: only `UserError`."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutated
from runs import answers, write_run

from sae_lm_eval.comparison.compare import paired_comparison
from sae_lm_eval.comparison.subsets import read_categories_file
from sae_lm_eval.errors import UserError
from sae_lm_eval.exchange.dictionary_names import DictionaryName
from sae_lm_eval.exchange.leaderboard import Leaderboard, rows_of
from sae_lm_eval.exchange.leaderboard_page import leaderboard_html
from sae_lm_eval.exchange.saebench_export import saebench_files
from sae_lm_eval.exchange.score_report import with_scores
from sae_lm_eval.exchange.scores import DictionaryScore, ScoreKind, ScoreSet
from sae_lm_eval.files.reading import checked, json_value, yaml_value
from sae_lm_eval.report.assemble import build, compare_tasks, shape
from sae_lm_eval.report.capability_tables import equivalents_of
from sae_lm_eval.report.where_records import records_beside
from sae_lm_eval.results.digests import write_digests
from sae_lm_eval.results.documents import document_table
from sae_lm_eval.results.find import find_results
from sae_lm_eval.results.results import read_results
from sae_lm_eval.runs.sweep import read_sweep
from sae_lm_eval.runs.task_index import check_tasks
from sae_lm_eval.runtime.placed_files import refuse_linked
from sae_lm_eval.runtime.run_files import read_identity
from sae_lm_eval.runtime.run_folder import added_names
from sae_lm_eval.scaling.of_results import convert

TRIED = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
RIGHT = {"one": [1.0, 0.0, 1.0, 1.0, 0.0, 1.0], "two": [1.0, 0.0, 1.0, 0.0, 1.0, 1.0]}
SPLICE = {"dictionary": "a#b", "hook_in": "h", "hook_out": "blocks.1.h", "mode": "reconstruction", "d_dictionary": 8}
KL = {"kl": 0.1, "stderr": 0.01, "positions": 6, "documents": 6}
FIDELITY = {"ce_baseline": 3.0, "ce_spliced": 3.2, "ce_zero": 9.0, "loss_recovered_zero": 0.96, "l0": 12.0, "kl": 0.2}
RELEASED = {"site": "h", "agrees": False, "verdict": "other", "numbers": []}
RELEASED["numbers"] = [{"name": "l0", "stated": 10.0, "measured": 12.0, "ratio": 1.2}]
RECORD = {
    "schema": 2,
    "splices": [SPLICE],
    "splice": "reconstruction",
    "scale": 1.0,
    "splice_tokens": "non_special",
    "bos": None,
    "max_length": 64,
    "packages": {"lm_eval": "0.4.13"},
    "kl_at_answers": {"one": KL, "two": KL},
    "cut_prompts": {"one": {"prompts": 6, "cut": 1, "tokens_of_cut_prompts": 20, "tokens_lost": 3}},
    "fidelity": {
        "text": {"tokens": 600, "by_category": {"c": {"documents": 2, **FIDELITY}}, "as_released": [RELEASED]}
    },
    "effective_compute": {
        "text": {"fraction": 0.5, "low": 0.4, "high": 0.6, "law": "x", "flags": ["f"], "reason": None}
    },
}
STAMP = "2026-01-01T00-00-00.000000"
SCORES = ScoreSet((DictionaryScore(ScoreKind("judge", "x"), DictionaryName("a", "b"), 0.5, "x"),))


def run_of(folder: Path, record=None, seed: int = 0) -> tuple[Path, dict]:
    samples = answers(RIGHT, seed=seed)
    config = {"sae_lm_eval": record} if record else None
    write_run(folder, samples, groups={"both": (["one", "two"], "sized")}, config=config)
    (file,) = folder.glob("*/results_*.json")
    raw = json.loads(file.read_text())
    if record:
        raw["results"]["text"] = {"alias": "text", **{f"{name},none": value for name, value in FIDELITY.items()}}
        raw["n-samples"]["text"] = {"original": 6, "effective": 6}
        raw["n-shot"]["text"], raw["versions"]["text"], raw["higher_is_better"]["text"] = 0, 1, {}
        raw["date"], raw["max_length"] = 1.7e9, 64
    return file, raw


@contextlib.contextmanager
def two_runs():
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder), *run_of(Path(folder) / "baseline"), *run_of(Path(folder) / "variant", RECORD, seed=1)


def check_reader(folder: Path) -> None:
    """All that the reader of a folder does, or the sentence that it ends in."""
    try:
        baseline, variant = (read_results(folder / name) for name in ("baseline", "variant"))
        comparison = paired_comparison(baseline, [variant], categories={"c": {"field": "text"}}, draws=20)
        report = build(comparison)
        leaderboard_html(Leaderboard(tuple(rows_of(shape(comparison), "run")), ()))
        saebench_files([variant])
        with_scores(report, comparison, SCORES)
    except UserError as error:
        text = str(error)
        text.encode()
        assert "\n" not in text
        assert len(text) < 3000


def test_sound_files_are_read():
    with two_runs() as (folder, _, _, variant, raw):
        variant.write_text(json.dumps(raw))
        results = read_results(folder / "variant")
        assert results.scores["text"]["ce_baseline,none"] == 3
        assert results.provenance["splices"][0]["dictionary"] == "a#b"
        check_reader(folder)
        assert len(paired_comparison(read_results(folder / "baseline"), [results], draws=20).drops) == 4


@TRIED
@given(rng=st.randoms(use_true_random=False), which=st.sampled_from(["baseline", "variant", "both"]))
def test_results(rng, which):
    with two_runs() as (folder, baseline_file, baseline, variant_file, variant):
        baseline_file.write_text(json.dumps(baseline if which == "variant" else mutated(baseline, rng)))
        variant_file.write_text(json.dumps(variant if which == "baseline" else mutated(variant, rng)))
        check_reader(folder)


@TRIED
@given(rng=st.randoms(use_true_random=False), which=st.sampled_from(["baseline", "variant"]))
def test_samples(rng, which):
    with two_runs() as (folder, *_):
        (file,) = (folder / which).glob("*/samples_one_*.jsonl")
        lines = file.read_text().splitlines()
        place = rng.randrange(len(lines))
        lines[place] = json.dumps(mutated(json.loads(lines[place]), rng))
        file.write_text("\n".join(lines) + "\n")
        check_reader(folder)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"null", b"[" * 1000 + b"]" * 1000, b'{"a": ' * 990, b"1" * 6000]
)
def test_what_is_no_results_file(tmp_path, content):
    (tmp_path / "results_x.json").write_bytes(content)
    with pytest.raises(UserError, match=r"results_x\.json"):
        read_results(tmp_path)


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "\ud800"])
def test_what_is_no_path(path):
    with pytest.raises(UserError, match="There is no"):
        read_results(path)


def test_a_file_of_a_gigabyte(tmp_path):
    with (tmp_path / "results_x.json").open("wb") as file:
        file.truncate(10**9)
    with pytest.raises(UserError, match=r"has 1,000 MB; at most 200 MB are read"):
        read_results(tmp_path)


@pytest.mark.parametrize("read", [read_sweep, read_categories_file], ids=["sweep", "categories"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 5000, "nested"),
        ("a: [1", "is not YAML"),
        ("a: 2021-13-45", "is not YAML"),
        ("[" * 100 + "]" * 100, "nested"),
        ("tasks: [one]\ntasks: [two]", "the key 'tasks' stands twice in the mapping of line 1"),
        ("a: one\nb: {field: x,\n  field: y}", "the key 'field' stands twice in the mapping of line 2"),
    ],
    ids=["too deep", "cut", "no date", "deep", "twice", "twice inside"],
)
def test_yaml_is_read_in_one_place(read, text, said, tmp_path):
    file = tmp_path / "file.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        read(file)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"dtype": "float32", "dtype": "float32", "a": [1, {"b": 2}], "a": [1, {"b": 2}]}', None),
        ('{"a": 1, "a": 1.0}', "the key 'a' stands twice in one object"),
        ('{"a": [1], "a": [2]}', "the key 'a' stands twice in one object"),
        (f'{{"a": {"9" * 300}}}', None),
        (f'{{"a": -1{"0" * 300}}}', "a whole number of more than 300 digits"),
        (f'{{"a": {"1" * 5000}}}', "cannot be read as JSON: it has a whole number of more than 300 digits"),
    ],
)
def test_json_with_keys_that_stand_twice_and_long_numbers(text, value):
    if value is None:
        assert json_value(text, "here") == json.loads(text)
    else:
        with pytest.raises(UserError, match=value):
            json_value(text, "here")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1\na: 1", {"a": 1}),
        ("1: a\n0x1: b", "the key '0x1' stands twice in the mapping of line 1"),
        ("yes: a\ntrue: b", "the key 'true' stands twice"),
        (
            "x: &x {p: 1}\ny: &y {q: 2}\nz:\n  <<: *x\n  <<: *y\n  p: 3",
            {"x": {"p": 1}, "y": {"q": 2}, "z": {"p": 3, "q": 2}},
        ),
        ("n: 0x" + "f" * 5000, "is not YAML: it has a whole number of more than 300 digits"),
        ("n: 0b1" + "0" * 1100, "it has a whole number of more than 300 digits"),
        ("1" * 400 + ": n", "it has a whole number of more than 300 digits"),
    ],
)
def test_yaml_with_keys_that_stand_twice_and_long_numbers(text, value):
    if isinstance(value, str):
        with pytest.raises(UserError, match=value):
            yaml_value(text, "here")
    else:
        assert yaml_value(text, "here") == value


def test_a_field_with_more_digits_than_python_writes_out():
    with pytest.raises(UserError, match="'a' is what has more digits than are written out"):
        checked(dict[str, str], {"a": 16**5000}, "here", "a mapping of texts")


def test_names_longer_than_a_path_takes():
    name = "x" * 5000
    assert read_identity(Path(name)) is None
    refuse_linked(Path(name), "Remove it.")
    with pytest.raises(UserError, match="There is no file"):
        check_tasks([f"{name}.yaml"])
    with pytest.raises(UserError, match="There is no task"):
        check_tasks([name])


def placed(path: Path, kind: str) -> None:
    """What is no file of the kind that is expected, in the place of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"loop": path.name, "broken link": "nowhere\u202e", "endless": "/dev/zero"}[kind])


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "broken link", "endless"])
@pytest.mark.parametrize(
    "name",
    [
        *("variant/model/results_{}.json", "variant/model/results_9.json", "variant/model/samples_one_{}.jsonl"),
        *("variant/model/documents_{}.parquet", "variant/digests.json", "run.json", ".identity.json"),
        *("task_family.csv", "curve.csv", "where/x.json"),
    ],
)
def test_what_is_no_file_among_results(name, kind, tmp_path):
    for place, folder in enumerate(("baseline", "variant")):
        run_of(tmp_path / folder, RECORD if place else None, seed=place)
        write_digests(tmp_path / folder)
    placed(tmp_path / name.format(STAMP), kind)
    for read in (compared, convert_all, added_names, read_identity):
        with contextlib.suppress(UserError):
            read(tmp_path)


def compared(folder: Path) -> None:
    comparison = compare_tasks(*find_results(folder, "baseline"), draws=20)
    records_beside(comparison)
    equivalents_of(comparison)
    document_table(comparison.variants[0])


def convert_all(folder: Path) -> None:
    assert convert(folder, original={})
