"""Files of every kind, damaged as bytes and as values: whoever reads them gets a value or a `UserError`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutated

from sae_lm_eval.comparison.subsets import read_categories_file
from sae_lm_eval.dictionaries.config_file import read_configuration, with_metadata
from sae_lm_eval.dictionaries.untrained import first_of_slice, tokens_left_out
from sae_lm_eval.errors import LONGEST, UserError
from sae_lm_eval.exchange.delphi_scores import delphi_scores
from sae_lm_eval.exchange.score_files import read_scores
from sae_lm_eval.files.reading import read_text
from sae_lm_eval.harness.chat_template import has_chat_template
from sae_lm_eval.harness.context_length import check_length, stated
from sae_lm_eval.report.where_records import read_where_record
from sae_lm_eval.report.where_tables import class_tables, where_picture, where_sentences
from sae_lm_eval.results.digests import check_digests
from sae_lm_eval.runs.additions import with_earlier
from sae_lm_eval.runs.members import MemberRow
from sae_lm_eval.runs.model_files import LAYERS, model_config
from sae_lm_eval.runs.sweep import read_sweep, sweep_of
from sae_lm_eval.runs.task_index import check_tasks, members
from sae_lm_eval.runtime.run_files import read_groups, read_identity, read_pace
from sae_lm_eval.runtime.run_folder import added_names, remember
from sae_lm_eval.runtime.text_files import read_documents
from sae_lm_eval.scaling import effective_compute
from sae_lm_eval.scaling.data_files import read_rows
from sae_lm_eval.scaling.delta import read_document_losses as read_losses
from sae_lm_eval.scaling.law_sources import load_law
from sae_lm_eval.scaling.laws import get_law
from sae_lm_eval.scaling.loss_curves import categories_of, of_category, read_measured, with_losses
from sae_lm_eval.talk.prompt_file import read_prompts

LAW = {
    "E": 1.8,
    "A": 480.0,
    "B": 2000.0,
    "alpha": 0.35,
    "beta": 0.37,
    "counts": "total",
    "loss_range": [1.9, 4],
    "covariance": {"order": ["E", "lnA", "lnB", "alpha", "beta"], "matrix": [[0.0] * 5] * 5, "dof": 100},
    "bytes_per_token": 4.0,
}
CATEGORIES = {"a": ["one"], "b": "two*", "c": {"field": "text", "values": ["x"], "tasks": ["one"]}}
SWEEP = {
    "model_args": {"pretrained": "world"},
    "tasks": ["sae_world_homes"],
    "variants": [{"sae": "world#blocks.2.hook_resid_post.k4", "scale": [0.5, 1], "name": "n"}],
    "controls": ["zero", "baseline_again"],
    "memory": 2.0,
    "limit": 5,
    "output_path": "x",
}
GROUPS = {"bos": True, "groups": [["a", "b"]]}
PACE = {"tokens": 152, "token_passes_per_second": 3265.7}
IDENTITY = {"model": {"weights": "a", "computed": None}, "packages": {"torch": "2"}, "variants": {"v": {"w": "x"}}}
ASKED = {"schema": 3, "model_args": {"pretrained": "world"}, "variants": [{"name": "a", "arguments": {"sae": "b"}}]}
DIGESTS = {"digests.json": "00", "own.json": "0" * 64}
TASK = {"task": "own", "tag": ["tagged"], "dataset_path": "x"}
GROUP = {"group": "inside", "task": ["own", {"task": "own", "num_fewshot": 1}, "sae_world_homes"]}
MODEL = {"model_type": "llama", "num_hidden_layers": 4, "max_position_embeddings": 128, "text_config": {"n_ctx": 16}}
TOKENIZER = {"chat_template": [{"name": "default", "template": "x"}]}
SHARES = {f"{kind}{end}": 0.5 for kind in ("drop", "restored", "alone", "random") for end in ("", "_low", "_high")}
PLACE = {"section": "overall", "name": "overall", "division": "segment", "class": "question", **SHARES}
WHERE = {
    "variant": "k4",
    "level": 0.95,
    "documents": 12,
    "held_out": False,
    "aligned": 0.5,
    "fitted_on": 100,
    "rows": [
        {**PLACE, "measure": "margin", "unit": "nats", "n": 12, "reason": None},
        {**PLACE, "measure": "accuracy", "unit": "pp", "n": 12, "reason": "the drop does not exclude 0"},
    ],
    "coverage": [{"division": "segment", "class": "question", "documents": 12, "positions": 3.5}],
    "norm_edges": {"h": [1.0, 2.0]},
    "energy": {"direction: a": 0.5},
    "provenance": {"splices": [{"dictionary": "a"}]},
}
TRAINED = {"context_size": 128, "seqpos_slice": [1, None], "exclude_special_tokens": [0, 1], "prepend_bos": True}
CONFIG = {
    "architecture": "topk",
    "d_in": 64,
    "d_sae": 8,
    "metadata": {"hook_name": "h", "model_name": "m", "model_from_pretrained_kwargs": {}, **TRAINED},
}


def configured(path: Path) -> None:
    said = with_metadata(read_configuration(path))
    first_of_slice(said)
    tokens_left_out(said)


SUMS = json.dumps({"c": {"nats": 300.5, "tokens": 100, "bytes": 400}}).replace('"', '""')
CURVE = (
    "model,revision,commit,dtype,params,params_non_embedding,tokens,tokens_source,loss,nats_per_byte,text_nats,"
    "text_tokens,text_bytes,tokens_hash,task,documents,text_hash,context,text,source,categories\n"
) + "".join(
    f"m{i},main,,float32,1e{6 + i},1e5,1e{8 + i},given,{4 - i / 2},{1 - i / 8},{4000 - 500 * i},1000,4000,abc,t,6,h,64,"
    f't,s,"{SUMS}"\n'
    for i in range(5)
)
LOSSES = "baseline_nats,spliced_nats,tokens\n" + "".join(f"{100 + i},{110 + i},40\n" for i in range(5))
RUNS = "params,tokens,loss\n" + "".join(
    f"{n},{d},{1.8 + 480 * n**-0.35 + 2000 * d**-0.37}\n" for n in (1e7, 1e8, 1e9) for d in (1e9, 1e10, 1e11)
)


def converted(**curve: Any) -> None:
    for row in effective_compute(ce_baseline=3.1, ce_spliced=3.2, model="pythia-70m", **curve).to_frame().itertuples():
        assert row.curve


def measured(path: Path) -> None:
    rows = read_measured(path)
    for name in categories_of(rows):
        of_category(rows, name)
    if rows:
        with_losses(rows, rows[0], per="byte")


def swept(path: Path) -> None:
    sweep_of(read_sweep(path))


def continued(path: Path) -> None:
    with_earlier(sweep_of(SWEEP), path.parent)
    added_names(path.parent)


def tasks(path: Path) -> None:
    members(["own", "inside", "tagged"], path.parent)
    check_tasks(["sae_world_homes"], path.parent)


def model(path: Path) -> None:
    given = {"pretrained": str(path.parent), "max_length": 8}
    config = model_config(given)
    check_length(given, config)
    stated(config, LAYERS)


def where(path: Path) -> None:
    record = read_where_record(path).model_dump(by_alias=True)
    assert where_sentences(record)
    for table in class_tables(record):
        assert table.title
    where_picture(record)


def remembered(path: Path) -> None:
    remember(path.parent, {"model_args": {"pretrained": "world"}, "variants": []})


SAEBENCH = {
    "eval_type_id": "absorption_first_letter",
    "eval_config": {"model_name": "m"},
    "eval_result_metrics": {"mean": {"mean_absorption_fraction_score": 0.2, "mean_full_absorption_score": 0.1}},
    "sae_lens_release_id": "world",
    "sae_lens_id": "blocks.2.hook_resid_post.k4",
}
SCORES = "release,sae_id,judge,remark\nworld,a,0.5,x\nworld,b,0.7,\n"


Kind = tuple[str, Any, Callable[[Path], Any]]
KINDS: dict[str, Kind] = {
    "law": ("law.json", LAW, lambda path: converted(law=get_law(path))),
    "category map": ("map.yaml", CATEGORIES, read_categories_file),
    "sweep": ("sweep.yaml", SWEEP, swept),
    "groups": (".groups.json", GROUPS, lambda path: read_groups(path.parent)),
    "pace": (".pace.json", PACE, lambda path: read_pace(path.parent)),
    "identity": (".identity.json", IDENTITY, lambda path: read_identity(path.parent)),
    "what was asked": ("run.json", ASKED, remembered),
    "what was asked before": ("run.json", ASKED, continued),
    "digests": ("digests.json", DIGESTS, lambda path: check_digests(path.parent)),
    "task": ("own.yaml", TASK, tasks),
    "group": ("group.yaml", GROUP, tasks),
    "model": ("config.json", MODEL, model),
    "tokenizer": ("tokenizer_config.json", TOKENIZER, lambda path: has_chat_template({"pretrained": str(path.parent)})),
    "where": ("k4.json", WHERE, where),
    "configuration": ("cfg.json", CONFIG, configured),
    "prompts": ("prompts.jsonl", [{"prompt": "a"}, {"prompt": "b"}], read_prompts),
    "text": ("text.jsonl", [{"text": "a"}, {"text": "b"}], lambda path: list(read_documents(path, tokens=50))),
    "plain text": ("text.txt", "one two", lambda path: list(read_documents(path, tokens=50))),
    "parquet": ("text.parquet", "PAR1", lambda path: list(read_documents(path, tokens=50))),
    "family": ("family.csv", CURVE, lambda path: converted(family=path)),
    "checkpoints": ("family.csv", CURVE, lambda path: converted(checkpoints=path)),
    "measured curve": ("family.csv", CURVE, measured),
    "models": ("models.csv", "model,tokens\nworld,10\n", lambda path: read_rows(path, required=[], kind=MemberRow)),
    "losses": ("losses.csv", LOSSES, read_losses),
    "runs": ("runs.csv", RUNS, load_law),
    "SAEBench's result": ("result.json", SAEBENCH, read_scores),
    "scores": ("scores.csv", SCORES, read_scores),
    "delphi's settings": ("run_config.json", {"sparse_model": "a"}, lambda path: list(delphi_scores(path.parent))),
    "scores in Parquet": ("scores.parquet", "PAR1", read_scores),
}
WITHOUT = {
    "groups",
    "pace",
    "identity",
    "what was asked",
    "what was asked before",
    "digests",
    "task",
    "group",
    "tokenizer",
}
BYTES = {
    "empty": b"", "blank": b"\n \n", "binary": bytes(range(256)), "NUL": b"\0" * 99, "cut": b'{"a": [1, 2',
    "UTF-16": "a: é".encode("utf-16"), "Latin-1": "a: é".encode("latin-1"), "BOM": b"\xef\xbb\xbf{}",
    "null": b"null", "number": b"3", "list": b"[]", "object": b"{}", "text": b'"x"', "not a number": b"NaN",
    "deep": b"[" * 100_000, "deep and whole": b"[" * 80 + b"]" * 80, "digits": b"1" * 6000, "infinite": b"1e999",
    "surrogates": b'{"\\ud800": "\\udc00"}', "escapes": "\x1b[31m\u202e\x9b".encode(), "long": b"a" * 300_000,
    "twice": b'{"a": 1, "a": [2]}', "rows": b'a,b\n1\n1,2,3\n"', "anchor": b"a: &a [*a]", "date": b"a: 2021-13-45",
    "billions": b"x0: &x0 [1,1]\n" + b"".join(
        b"x%d: &x%d [%s]\n" % (i, i, b",".join([b"*x%d" % (i - 1)] * 9))
        for i in range(1, 12)
    ),
    "code": b'!!python/object/apply:os.system ["true"]', "merge": b"<<: 3", "key": b"? [a]\n: 1", "tab": b"a:\t- b",
}  # fmt: skip
CELLS = (
    *("", "x", "nan", "inf", "-1", "0", "1e400", "1" * 400, '"', "\0", "\x1b[31m"),
    *("{}", '"{""c"": 3}"', "1e308", "1e-308"),
)


def read(kind: str, folder: Path, content: bytes) -> None:
    """Read a file of a kind; whatever is raised is a sentence."""
    name, _, reader = KINDS[kind]
    (folder / name).write_bytes(content)
    try:
        reader(folder / name)
    except UserError as error:
        said = str(error)
        said.encode()
        assert said
        assert len(said) <= LONGEST
        assert not set("\n\x1b\u202e\x9b") & set(said)


def sound(kind: str) -> bytes:
    content = KINDS[kind][1]
    if isinstance(content, list):
        return "".join(json.dumps(line) + "\n" for line in content).encode()
    return content.encode() if isinstance(content, str) else json.dumps(content).encode()


def changed(kind: str, rng: Random) -> bytes:
    """A sound file with some of its values replaced."""
    content = KINDS[kind][1]
    if isinstance(content, dict):
        return json.dumps(mutated(content, rng)).encode()
    if isinstance(content, list):
        lines = mutated(content, rng)
        return "\n".join(map(json.dumps, lines if isinstance(lines, list) else [lines])).encode()
    rows = [row.split(",") for row in content.split("\n")]
    for _ in range(rng.randint(1, 3)):
        row = rng.choice(rows)
        row[rng.randrange(len(row))] = rng.choice(CELLS)
    return "\n".join(map(",".join, rows)).encode()


@pytest.mark.parametrize("content", BYTES.values(), ids=BYTES)
@pytest.mark.parametrize("kind", KINDS)
def test_other_content(kind, content, tmp_path):
    read(kind, tmp_path, content)


@pytest.mark.parametrize(
    "task",
    [
        *({"include": odd, "task": "own"} for odd in (3, [None], [[]], {"a": 1})),
        *({"group": odd, "task": ["own"]} for odd in (3, ["inside"], None)),
        *({"task": "own", "tag": odd} for odd in (3, [None], [["tagged"]], {"a": 1})),
        *({"group": "inside", "task": odd} for odd in (3, [None], [["own"]], [{"task": ["own"]}], {"a": 1})),
    ],
)
def test_a_task_that_includes_or_is_called_something_odd(task, tmp_path):
    read("task", tmp_path, json.dumps(task).encode())


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(rng=st.randoms(use_true_random=False))
def test_changed_values_and_bytes(kind, tmp_path_factory, rng):
    content = bytearray(changed(kind, rng) if rng.random() < 0.75 else sound(kind))
    if content and rng.random() < 0.25:
        for _ in range(3):
            content[rng.randrange(len(content))] = rng.randrange(256)
    read(kind, tmp_path_factory.mktemp("malformed"), bytes(content))


@pytest.mark.parametrize("value", [None, "yes", 1, [True]])
def test_a_truth_value_of_a_dictionary_is_no_other_value(value, tmp_path):
    (tmp_path / "cfg.json").write_text(json.dumps({"d_in": 8, "apply_b_dec_to_input": value}))
    with pytest.raises(UserError, match="'apply_b_dec_to_input' is "):
        read_configuration(tmp_path / "cfg.json")


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"parquet", "scores in Parquet", "what was asked", "digests"}))
def test_sound_ones_are_read(kind, tmp_path):
    name, _, reader = KINDS[kind]
    (tmp_path / name).write_bytes(sound(kind))
    reader(tmp_path / name)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - WITHOUT))
def test_what_is_no_file(kind, tmp_path):
    name, _, reader = KINDS[kind]
    with pytest.raises(UserError, match=name):
        reader(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=name):
        reader(tmp_path / name)


@pytest.fixture
def in_time():
    """What waits for a pipe waits for ever; here it fails, by what no reader takes for an error of the file."""

    def fail(*_):
        pytest.fail("waits for a pipe")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_what_waits_too_long_fails_alone(in_time):
    with pytest.raises(pytest.fail.Exception, match="waits for a pipe"):
        signal.raise_signal(signal.SIGALRM)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_pipe_into_which_nobody_writes(kind, tmp_path, in_time):
    name, _, reader = KINDS[kind]
    os.mkfifo(tmp_path / name)
    with contextlib.suppress(UserError):
        reader(tmp_path / name)


def test_a_pipe_into_which_a_command_writes(tmp_path, in_time):
    """As a shell makes one of <(command)."""
    os.mkfifo(tmp_path / "law.json")
    held = os.open(tmp_path / "law.json", os.O_RDWR)
    os.write(held, sound("law"))
    reader = os.open(tmp_path / "law.json", os.O_RDONLY)
    os.close(held)
    try:
        assert read_text(Path(f"/dev/fd/{reader}")) == sound("law").decode()
    finally:
        os.close(reader)
