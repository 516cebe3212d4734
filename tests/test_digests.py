"""Results that changed since a run wrote them are told, wherever they are read."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from runs import question, write_run

from sae_lm_eval.errors import UserError
from sae_lm_eval.results.digests import DIGESTS, ChangedFile, check_digest, check_digests, write_digests
from sae_lm_eval.results.results import read_results
from sae_lm_eval.runs.finished import set_damaged_aside


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "results_1.json").write_text('{"acc": 0.25}')
    (tmp_path / "model" / "samples_a_1.jsonl").write_text('{"doc_id": 0}\n')
    write_digests(tmp_path)
    return tmp_path


def test_every_flip_of_a_bit_is_told(folder):
    file = folder / "model" / "results_1.json"
    whole = file.read_bytes()
    check_digest(file)
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=re.escape("results_1.json' is not as it was written: something changed")):
            check_digest(file)
    file.write_bytes(whole)
    check_digest(file)


def test_a_folder_may_be_moved_and_renamed(folder):
    moved = folder.rename(folder.parent / f"{folder.name} moved")
    check_digests(moved)
    with (moved / "model" / "results_1.json").open("a") as opened:
        opened.write(" ")
    with pytest.raises(UserError, match="is not as it was written"):
        check_digest(moved / "model" / "results_1.json")


def test_a_file_that_is_gone_is_told(folder):
    (folder / "model" / "samples_a_1.jsonl").unlink()
    with pytest.raises(UserError, match=r"There is no .*samples_a_1\.jsonl. any more"):
        check_digests(folder)


def test_files_of_others_are_taken_as_they_are(folder):
    (folder / "model" / "notes.json").write_text("{}")
    check_digest(folder / "model" / "notes.json")
    (folder / DIGESTS).unlink()
    (folder / "model" / "results_1.json").write_text("{}")
    check_digest(folder / "model" / "results_1.json")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"model/results_1.json": 3}', b"\xff", b"[" * 5000])
def test_a_damaged_record_is_told(folder, content):
    (folder / DIGESTS).write_bytes(content)
    with pytest.raises(UserError, match=DIGESTS):
        check_digest(folder / "model" / "results_1.json")


def test_digests_are_by_path_in_the_folder(folder):
    assert list(json.loads((folder / DIGESTS).read_text())) == ["model/results_1.json", "model/samples_a_1.jsonl"]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Of a run that finished a variant `v` and its baseline."""
    rng = np.random.default_rng(0)
    for name in ("baseline", "v"):
        write_run(tmp_path / name, {"t": [question("t", i, 1.0, rng, f"p{i}") for i in range(3)]})
        write_digests(tmp_path / name)
    return tmp_path


def only_file(folder: Path, pattern: str) -> Path:
    (file,) = folder.rglob(pattern)
    return file


CHANGES = {
    "other ends of lines": ("samples_*.jsonl", lambda content: content.replace(b"\n", b"\r\n")),
    "a digit of an answer": ("samples_*.jsonl", lambda content: content.replace(b'"doc_id": 0', b'"doc_id":  0')),
    "another layout": ("results_*.json", lambda content: json.dumps(json.loads(content), indent=7).encode()),
    "another digest": (DIGESTS, lambda content: re.sub(rb'": "[0-9a-f]', b'": "g', content)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_can_be_read_is_the_users_to_judge(run_folder, change):
    pattern, edit = CHANGES[change]
    file = only_file(run_folder / "v", pattern)
    file.write_bytes(edit(whole := file.read_bytes()))
    assert file.read_bytes() != whole
    only_file(run_folder / "baseline", "results_*.json").write_text("{")
    before = sorted(run_folder.rglob("*"))
    both = (
        f"To keep it as it is, delete '{run_folder}/v/{DIGESTS}'; to evaluate anew, delete the folder '{run_folder}/v'"
    )
    with pytest.raises(ChangedFile, match=re.escape(both)):
        set_damaged_aside(run_folder, ["baseline", "v"])
    assert sorted(run_folder.rglob("*")) == before
    (run_folder / "v" / DIGESTS).unlink()
    set_damaged_aside(run_folder, ["v"])
    assert (run_folder / "v").is_dir()


DAMAGE = {
    "cut": ("results_*.json", lambda file: file.write_bytes(file.read_bytes()[:50])),
    "gone": ("samples_*.jsonl", Path.unlink),
    "a document gone": ("samples_*.jsonl", lambda file: file.write_text("".join(file.open().readlines()[1:]))),
    "no text": ("samples_*.jsonl", lambda file: file.write_bytes(b"\xff")),
    "a folder": ("samples_*.jsonl", lambda file: (file.unlink(), file.mkdir())),
    "not to be read": ("samples_*.jsonl", lambda file: file.chmod(0)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_cannot_be_read_is_set_aside_beside_what_was_before(run_folder, damage, caplog, monkeypatch):
    if damage == "not to be read" and os.geteuid() == 0:
        opened = Path.open

        def refuse(self, *args, **kwargs):
            if self.name.startswith("samples_") and not self.stat().st_mode & 0o400:
                raise PermissionError(13, "Permission denied", str(self))
            return opened(self, *args, **kwargs)

        monkeypatch.setattr(Path, "open", refuse)
    pattern, harm = DAMAGE[damage]
    harm(only_file(run_folder / "v", pattern))
    older = run_folder / ".v.damaged"
    older.mkdir()
    (older / "kept").write_text("")
    set_damaged_aside(run_folder, ["v"])
    assert f"set aside as '{run_folder}/.v.damaged.2'" in caplog.text
    assert (older / "kept").is_file()
    assert not (run_folder / "v").exists()
    assert (run_folder / ".v.damaged.2" / DIGESTS).is_file()


@pytest.mark.parametrize("content", ["", "[", "[]", '{"a": 3}', "\x00"])
def test_digests_that_cannot_be_read_cost_no_results(run_folder, content):
    (run_folder / "v" / DIGESTS).write_text(content)
    before = sorted(run_folder.rglob("*"))
    for read in (lambda: set_damaged_aside(run_folder, ["baseline", "v"]), lambda: read_results(run_folder / "v")):
        with pytest.raises(ChangedFile, match=f"To keep it as it is, delete '{run_folder}/v/{DIGESTS}'"):
            read()
    assert sorted(run_folder.rglob("*")) == before
    (run_folder / "v" / DIGESTS).unlink()
    set_damaged_aside(run_folder, ["baseline", "v"])
    assert read_results(run_folder / "v").tasks
