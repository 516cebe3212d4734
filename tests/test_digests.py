"""Results that changed since a run wrote them are told, wherever they are read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sae_lm_eval.errors import UserError
from sae_lm_eval.results.digests import DIGESTS, check_digest, check_digests, write_digests


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
