"""The journal of answers gives out what was put into it, or nothing, whatever has become of its file."""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import tempfile
from pathlib import Path

import pytest

from sae_lm_eval.runtime.journal import ASIDE, TABLE, DiskError, Journal

ANSWERS = {bytes([i]) * 16: bytes([i, 255 - i]) * (12 if i % 3 else 900) for i in range(12)}


@pytest.fixture
def memory(tmp_path):
    """A folder that is in memory where there is such a thing: a disk takes its time to confirm each batch."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def sound(tmp_path):
    journal = Journal(tmp_path / "sound")
    journal.put("models", ANSWERS)
    journal.close()
    return (tmp_path / "sound").read_bytes()


def flipped(data: bytes, bits) -> bytes:
    out = bytearray(data)
    for bit in bits:
        out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


def check_damaged(file, data, caplog):
    """Every answer is right or not there; once all are put again, they are there in a new process as well."""
    caplog.clear()
    file.write_bytes(data)
    journal = Journal(file)
    stored = {question: journal.get("models", question) for question in ANSWERS}
    lost = {question: ANSWERS[question] for question, answer in stored.items() if answer is None}
    assert {**stored, **lost} == ANSWERS
    journal.put("models", lost)
    journal.close()
    journal = Journal(file)
    assert {question: journal.get("models", question) for question in ANSWERS} == ANSWERS
    journal.close()
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert bool(warned) >= bool(lost)
    for text in warned:
        assert "damaged" in text
        assert ASIDE in text
    return bool(warned)


def test_a_thousand_random_flips(sound, memory, caplog):
    rng = random.Random(0)
    warning_count = 0
    for _ in range(1000):
        bits = [rng.randrange(8 * len(sound)) for _ in range(rng.randint(1, 3))]
        warning_count += check_damaged(memory / "journal", flipped(sound, bits), caplog)
    assert warning_count > 500


def test_each_bit_of_the_header(sound, memory, caplog):
    for bit in range(8 * 112):
        check_damaged(memory / "journal", flipped(sound, [bit]), caplog)


def test_each_first_bit_of_the_schema(sound, memory, caplog):
    """SQLite repeats it in its messages, which Python cannot decode then."""
    start = sound.index(b"CREATE TABLE")
    for byte in range(start - 20, start + len(TABLE)):
        check_damaged(memory / "journal", flipped(sound, [8 * byte + 7]), caplog)


def test_cut_short_or_overwritten(sound, memory, caplog):
    rng = random.Random(0)
    for length in (*range(1, 40), *range(100, len(sound), 997)):
        check_damaged(memory / "journal", sound[:length], caplog)
    for _ in range(50):
        start = rng.randrange(len(sound))
        check_damaged(memory / "journal", sound[:start] + rng.randbytes(600) + sound[start + 600 :], caplog)


def test_an_answer_of_another_question_is_not_given_out(tmp_path, caplog):
    file = tmp_path / "journal"
    journal = Journal(file)
    journal.put("models", {b"a": b"one", b"b": b"two"})
    journal.close()
    with sqlite3.connect(file) as store:
        store.execute("update answers set answer = (select answer from answers where asked = x'61')")
    store.close()
    journal = Journal(file)
    assert journal.get("models", b"a") == b"one"
    assert journal.get("models", b"b") is None
    assert "does not agree with its digest" in caplog.text
    assert journal.get("models", b"a") == b"one"
    journal.close()


def test_damage_while_it_is_in_use(tmp_path, caplog):
    file = tmp_path / "journal"
    journal = Journal(file)
    journal.put("models", ANSWERS)
    file.write_bytes(b"\0" * file.stat().st_size)
    for question, answer in ANSWERS.items():
        assert journal.get("models", question) in (answer, None)
    journal.put("models", ANSWERS)
    assert {question: journal.get("models", question) for question in ANSWERS} == ANSWERS
    journal.close()


def test_a_table_of_somebody_elses(tmp_path, caplog):
    file = tmp_path / "journal"
    with sqlite3.connect(file) as store:
        store.execute("create table answers (models text, asked blob, answer blob, primary key (models, asked))")
        store.execute("insert into answers values ('models', x'61', x'62')")
    store.close()
    journal = Journal(file)
    assert journal.get("models", b"a") is None
    assert "does not hold the table" in caplog.text
    journal.close()


def test_what_was_drained_is_what_was_put(tmp_path):
    journal = Journal()
    journal.put("models", ANSWERS)
    rows = journal.drain()
    assert {question: answer for _, question, answer in rows} == ANSWERS
    assert journal.drain() == []
    other = Journal(tmp_path / "journal")
    other.put_all(rows)
    assert other.get("models", b"\1" * 16) == ANSWERS[b"\1" * 16]
    other.close()


def test_what_is_no_damage_is_not_set_aside(tmp_path):
    (tmp_path / "journal").mkdir()
    with pytest.raises(DiskError, match="cannot be kept"):
        Journal(tmp_path / "journal")
    assert os.listdir(tmp_path) == ["journal"]
