"""`sae-lm-eval export`: what other projects get is theirs in form and ours in content."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import jsonschema
import pandas as pd
import pytest
import yaml
from datasets import load_dataset
from test_report import FIDELITY, QUESTIONS, SPLICE, write_run
from typer.testing import CliRunner

from sae_lm_eval.cli.leaderboard import leaderboard_command
from sae_lm_eval.cli.main import app
from sae_lm_eval.errors import UserError
from sae_lm_eval.exchange.dictionary_names import DictionaryName
from sae_lm_eval.exchange.hub_upload import MARK, write_folder
from sae_lm_eval.exchange.saebench_export import CATEGORIES, file_name
from sae_lm_eval.exchange.score_files import read_scores
from sae_lm_eval.results.documents import write_documents
from sae_lm_eval.results.results import read_results

# Names, types and required fields of SAEBench's own JSON Schema; made by scripts/saebench_fields.py.
CORE = json.loads((Path(__file__).parent / "data" / "saebench_core.json").read_text())
MEASURED = {**FIDELITY, "explained_variance": 0.8, "fvu": 0.2, "fraction_fired": 0.5, "cosine": 0.9, "norm_ratio": 0.95}


def spliced_run(folder: Path, **more: Any) -> None:
    """A run with fidelity whose record says of how many tokens."""
    write_run(folder, QUESTIONS, fidelity=MEASURED, **more)
    (file,) = folder.glob("*/results_*.json")
    content = json.loads(file.read_text())
    content["config"]["sae_lm_eval"]["fidelity"] = {"sae_fidelity": {"tokens": 1000}}
    file.write_text(json.dumps(content))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    write_run(folder / "baseline", QUESTIONS, splice="none")
    spliced_run(folder / "k4")
    spliced_run(folder / "two", splices=[SPLICE, {**SPLICE, "dictionary": "other#a"}])
    spliced_run(folder / "zero", splice="zero")
    return folder


def command(*arguments: Any) -> str:
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_the_form_is_saebenchs_own(out, tmp_path):
    said = command(out, "--saebench", tmp_path / "core")
    assert "Written: 1 file of SAEBench's eval core" in said
    assert "two is no reconstruction by one dictionary, zero is no reconstruction by one dictionary" in said
    (file,) = (tmp_path / "core").iterdir()
    content = json.loads(file.read_text())
    jsonschema.validate(content, CORE)
    categories = CORE["$defs"]["CoreMetricCategories"]["properties"]
    for category, reference in categories.items():
        properties = CORE["$defs"][reference["$ref"].rpartition("/")[2]]["properties"]
        assert content["eval_result_metrics"][category].keys() == properties.keys()
    assert content.keys() <= CORE["properties"].keys()
    assert content["eval_config"].keys() <= CORE["$defs"]["CoreEvalConfig"]["properties"].keys()


@pytest.mark.parametrize(
    ("record", "setting"),
    [
        ({"latent_edits": "ablate=12+57"}, "(ablate=12+57)"),
        ({"splice_input": "clean"}, "(splice_input=clean)"),
        ({"latent_edits": "keep_top=4", "splice_input": "clean"}, "(keep_top=4, splice_input=clean)"),
    ],
)
def test_a_changed_splice_is_not_exported_as_its_dictionary(out, tmp_path, record, setting):
    spliced_run(out / "changed", **record)
    said = command(out, "--saebench", tmp_path / "core")
    assert f"Left out: changed has {setting[1:-1]}, two is no reconstruction" in said
    (file,) = (tmp_path / "core").iterdir()
    assert json.loads(file.read_text())["eval_result_unstructured"]["sae_lm_eval"]["variant"] == "k4"
    command(out, "--hub", "me/numbers", "--dry_run")
    rows = pd.read_parquet(out / "hub" / "documents.parquet")
    assert set(rows.loc[rows["variant"] == "changed", "mode"]) == {f"reconstruction {setting}"}


def test_numbers_are_ours_and_what_was_not_measured_is_undefined(out, tmp_path):
    command(out, "--saebench", tmp_path / "core")
    (file,) = (tmp_path / "core").iterdir()
    content = json.loads(file.read_text())
    metrics = content["eval_result_metrics"]
    assert metrics["model_performance_preservation"] == {
        "ce_loss_score": 0.9643,
        "ce_loss_with_ablation": 10.0,
        "ce_loss_with_sae": 3.25,
        "ce_loss_without_sae": 3.0,
    }
    assert metrics["sparsity"]["l0"] == 32
    assert metrics["token_stats"]["total_tokens_eval_reconstruction"] == 1000
    for category, names in CATEGORIES.items():
        for name, ours in names.items():
            assert math.isnan(metrics[category][name]) == (ours is None), name
    assert (content["sae_lens_release_id"], content["sae_lens_id"]) == ("rel/ease", "blocks.1.hook_resid_post")
    assert content["eval_result_unstructured"]["sae_lm_eval"]["fidelity"]["kl"]["value"] == 0.2


def test_what_was_exported_is_read_as_scores_of_the_same_dictionary(out, tmp_path):
    command(out, "--saebench", tmp_path / "core")
    scores = {score.kind.name: score for score in read_scores(tmp_path / "core").scores}
    assert scores.keys() == {"ce_loss_score", "explained_variance", "frac_alive"}
    assert str(scores["ce_loss_score"].dictionary) == SPLICE["dictionary"]


def test_the_same_results_make_the_same_files_and_replace_them(out, tmp_path):
    contents = []
    for _ in range(2):
        command(out, "--saebench", tmp_path / "core")
        contents.append([path.read_bytes() for path in (tmp_path / "core").iterdir()])
    assert contents[0] == contents[1]


def test_files_of_somebody_elses_stay(out, tmp_path):
    folder = tmp_path / "core"
    folder.mkdir()
    theirs = folder / file_name(DictionaryName.of_spec(SPLICE["dictionary"]))
    theirs.write_text('{"sae_bench_commit_hash": "abc"}')
    with pytest.raises(UserError, match="is there, and this command did not make it"):
        command(out, "--saebench", folder)
    assert theirs.read_text() == '{"sae_bench_commit_hash": "abc"}'


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("rel/ease#layer_1/width", "rel_ease_layer_1_width_eval_results.json"),
        ("../../etc", "_.._etc_eval_results.json"),
        ("a b\u202e#\x1b", "a_b____eval_results.json"),
    ],
)
def test_a_files_name_stays_in_its_folder(name, file):
    assert file_name(DictionaryName.of_spec(name)) == file
    assert len(file_name(DictionaryName("x" * 5000, "y"))) < 255


def test_mistakes_are_told_in_a_sentence(out, tmp_path):
    with pytest.raises(UserError, match="Say what for: --saebench FOLDER, or --hub"):
        command(out)
    with pytest.raises(UserError, match="There is no folder"):
        command(tmp_path / "nothing", "--saebench", tmp_path / "core")
    with pytest.raises(UserError, match="Nothing can be written to"):
        command(out, "--saebench", out / "baseline" / "model" / "results_2026-01-01T00-00-00.000000.json" / "core")
    write_run(tmp_path / "bare" / "baseline", QUESTIONS, splice="none")
    write_run(tmp_path / "bare" / "k4", QUESTIONS)
    with pytest.raises(UserError, match=r"There is nothing for SAEBench: .* k4 has no fidelity"):
        command(tmp_path / "bare", "--saebench", tmp_path / "core")
    assert not (tmp_path / "core").exists()


def test_files_beside_the_made_ones_stay(out):
    folder = out / "hub"
    command(out, "--hub", "me/numbers", "--dry_run")
    figures = sorted(path.name for path in (folder / "figures").iterdir())
    hashes = json.loads((folder / "hashes.json").read_text())
    stale = {"equivalents.parquet": b"old", "figures/old.png": b"old", "edited.md": b"old", "../k4/kept": b"old"}
    mine = {"LICENSE": b"mine", "figures/mine.png": b"mine", "edited.md": b"mine", "../k4/kept": b"old"}
    hashes["files"] |= {name: hashlib.sha256(content).hexdigest() for name, content in stale.items()}
    (folder / "hashes.json").write_text(json.dumps(hashes))
    for name, content in {**stale, **mine}.items():
        (folder / name).write_bytes(content)
    command(out, "--hub", "me/numbers", "--dry_run")
    assert {name: (folder / name).read_bytes() for name in mine} == mine
    assert not (folder / "equivalents.parquet").exists()
    assert sorted(path.name for path in (folder / "figures").iterdir()) == sorted([*figures, "mine.png"])


@pytest.mark.parametrize("content", ["[", "[]", '{"files": 1}'])
def test_a_damaged_list_of_made_files_deletes_nothing(tmp_path, content):
    files = {"README.md": MARK.encode(), "hashes.json": b"{}"}
    write_folder(files, tmp_path)
    (tmp_path / "hashes.json").write_text(content)
    (tmp_path / "LICENSE").write_text("mine")
    write_folder(files, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"LICENSE", *files}


def test_an_upload_leaves_out_files_of_others_and_deletes_its_own_of_before(out, hub):
    kind, environment = hub
    command(out, "--hub", "me/numbers", "--dry_run")
    (out / "hub" / "LICENSE").write_text("mine")
    before = {"theirs.md": b"theirs", "old[1].parquet": b"old"}
    before["hashes.json"] = json.dumps({"files": {"old[1].parquet": hashlib.sha256(b"old").hexdigest()}}).encode()
    kind.received |= before
    code, said = started(environment, out, "--hub", "me/numbers")
    assert code == 0, said
    assert {"theirs.md", "hashes.json", "README.md", "documents.parquet"} <= kind.received.keys()
    assert not {"LICENSE", "old[1].parquet"} & kind.received.keys()
    assert kind.received["theirs.md"] == b"theirs"


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's API as an upload asks for; `received` are the files of its commits by name."""

    received: ClassVar[dict[str, bytes]]
    requests: ClassVar[list[tuple[str, dict[str, Any]]]]
    refuses = False

    @property
    def address(self) -> str:
        return f"http://{self.headers['Host']}"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        if self.refuses or self.headers.get("Authorization") != "Bearer hf_test":
            return self.answer({"error": "You have no right to this."}, 403)
        if path.endswith("/commit/main"):
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    self.received[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del self.received[line["value"]["path"]]
            return self.answer(
                {"success": True, "commitUrl": f"{self.address}/datasets/me/numbers/commit/0", "commitOid": "0" * 40}
            )
        content = json.loads(body)
        self.requests.append((path, content))
        if path == "/api/repos/create":
            return self.answer({"url": f"{self.address}/datasets/me/numbers", "name": "me/numbers"})
        if path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in content["files"]
            ]
            return self.answer({"files": files})
        return self.answer({}) if path == "/api/validate-yaml" else self.answer({"error": path}, 404)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/api/datasets/me/numbers/tree/main":
            listed = [
                {"type": "file", "path": received_path, "oid": "0" * 40, "size": 1} for received_path in self.received
            ]
            return self.answer(listed)
        name = path.removeprefix("/datasets/me/numbers/resolve/main/")
        if name not in self.received:
            return self.answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        headers = {"X-Repo-Commit": "0" * 40, "ETag": hashlib.sha256(self.received[name]).hexdigest()}
        return self.answer(self.received[name], 200, headers)

    do_HEAD = do_GET

    def answer(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path):
    """A stub of the Hub on loopback, and the environment of a command that is to see it."""
    kind = type("OneHub", (Hub,), {"received": {}, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}
    yield kind, {**os.environ, **home, "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"}
    server.shutdown()


def started(environment: dict[str, str], *arguments: Any) -> tuple[int, str]:
    whole = [sys.executable, "-m", "sae_lm_eval", "export", *map(str, arguments)]
    process = subprocess.run(whole, env=environment, capture_output=True, text=True)
    return process.returncode, process.stdout + process.stderr


def test_a_data_set_is_uploaded_with_a_row_for_each_document_and_variant(out, tmp_path, hub):
    kind, environment = hub
    code, said = started(environment, out, "--hub", "me/numbers")
    assert code == 0, said
    assert "Uploaded to the data set me/numbers" in said
    created = dict(kind.requests)["/api/repos/create"]
    assert (created["name"], created["organization"], created["type"]) == ("numbers", "me", "dataset")
    assert created.get("private", created.get("visibility") == "private")
    folder = out / "hub"
    written = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert kind.received == written
    rows = pd.read_parquet(folder / "documents.parquet")
    assert len(rows) == 3 * sum(map(len, QUESTIONS.values()))
    assert not rows.duplicated(["variant", "task", "doc_id"]).any()
    assert set(rows["variant"]) == {"k4", "two", "zero"}
    assert not {"prompt", "answers", "target"} & set(rows)
    hashes = json.loads(written["hashes.json"])
    assert hashes["command"] == f"sae-lm-eval export {out} --hub me/numbers"
    assert hashes["files"] == {
        name: hashlib.sha256(content).hexdigest() for name, content in written.items() if name != "hashes.json"
    }
    assert "k4/results_2026-01-01T00-00-00.000000.json" in hashes["sources"]
    header = yaml.safe_load(written["README.md"].decode().split("---")[1])
    assert [config["config_name"] for config in header["configs"]] == ["documents", "drops", "fidelity"]


def test_every_table_of_the_data_set_can_be_loaded(out, tmp_path):
    command(out, "--hub", "me/numbers", "--dry_run")
    for name in ("documents", "drops", "fidelity"):
        held = load_dataset(str(out / "hub"), name, split="test", cache_dir=str(tmp_path / "cache"))
        assert held.num_rows == len(pd.read_parquet(out / "hub" / f"{name}.parquet")) > 0
    assert load_dataset(str(out / "hub"), split="test", cache_dir=str(tmp_path / "cache")).num_rows == 180


def test_without_a_token_nothing_is_uploaded_and_the_folder_is_what_would_be(out, hub):
    kind, environment = hub
    code, said = started({**environment, "HF_TOKEN": ""}, out, "--hub", "me/numbers")
    assert code == 0, said
    assert "Nothing was uploaded. There is no token of the Hub here" in said
    assert (out / "hub" / "README.md").is_file()
    code, said = started(environment, out, "--hub", "me/numbers", "--dry_run")
    assert code == 0
    assert said.startswith("Nothing was uploaded. In '")
    assert not kind.requests
    assert not kind.received


def test_a_refusal_is_told_in_a_sentence_and_keeps_the_folder(out, hub):
    kind, environment = hub
    kind.refuses = True
    code, said = started(environment, out, "--hub", "me/numbers")
    assert code == 2
    assert "'me/numbers' was not uploaded: " in said
    assert "Traceback" not in said
    assert "hf_test" not in said
    assert (out / "hub" / "hashes.json").is_file()


def test_texts_of_documents_are_there_if_they_are_asked_for(out, tmp_path):
    run_folder = next((out / "k4").glob("*"))
    results = read_results(run_folder)
    table = [
        {"task": task, "doc_id": at, "doc_hash": "h", "prompt": f"{task} {at}?", "answers": ["a"], "target": "0"}
        for task, documents in QUESTIONS.items()
        for at in range(len(documents))
    ]
    write_documents(results, pd.DataFrame(table))
    for more, there in (([], False), (["--texts"], True)):
        command(out, "--hub", "me/numbers", "--dry_run", *more)
        rows = pd.read_parquet(out / "hub" / "documents.parquet")
        assert ("prompt" in rows) == there
        assert set(rows.loc[rows["variant"] == "k4", "doc_hash"]) == {"h"}
        assert rows.loc[rows["variant"] == "two", "doc_hash"].isna().all()
    own = rows.loc[rows["variant"] == "k4"]
    assert list(own["prompt"]) == [f"{task} {at}?" for task, at in zip(own["task"], own["doc_id"], strict=True)]


@pytest.mark.parametrize("kind", ["hub", "saebench", "leaderboard"])
def test_a_token_in_the_results_is_not_written_out(out, tmp_path, kind):
    (file,) = (out / "k4").glob("*/results_*.json")
    content = json.loads(file.read_text())
    content["config"]["model_args"]["token"] = "hf_" + "a" * 34
    file.write_text(json.dumps(content))
    commands = {
        "hub": lambda: command(out, "--hub", "me/numbers", "--dry_run", "--output_path", tmp_path / "made"),
        "saebench": lambda: command(out, "--saebench", tmp_path / "made"),
        "leaderboard": lambda: leaderboard_command([out], tmp_path / "made"),
    }
    with pytest.raises(UserError, match="what looks like a token of the Hub"):
        commands[kind]()
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hub", "numbers"], "'numbers' names no data set of the Hub: give org/name"),
        (["--hub", "a/b c"], "'a/b c' names no data set of the Hub"),
        (["--dry_run", "--saebench", "x"], "are of --hub, which is not given"),
    ],
)
def test_mistakes_of_the_hub_are_told_before_anything_is_read(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        command(tmp_path / "nothing", *arguments)


def test_a_folder_of_somebody_elses_is_not_filled(out, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="holds files that this command did not make"):
        command(out, "--hub", "me/numbers", "--dry_run", "--output_path", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_neither_torch_nor_lm_eval_is_loaded(out, tmp_path):
    scores = tmp_path / "scores.csv"
    scores.write_text(f"sae,judge\n{SPLICE['dictionary']},0.5\n")
    commands = [
        ["export", out, "--saebench", tmp_path / "core", "--hub", "me/numbers", "--dry_run"],
        ["leaderboard", out, "--output_path", tmp_path / "page.html"],
        ["report", out, "--scores", scores],
    ]
    code = f"""
import sys
from sae_lm_eval.cli.main import app
for command in {[[str(word) for word in words] for words in commands]}:
    app(command, standalone_mode=False)
print({{"torch", "lm_eval", "transformers", "sae_lens"}} & set(sys.modules))
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == "set()"
    assert (tmp_path / "page.html").is_file()
    assert (out / "report" / "scores.csv").is_file()
