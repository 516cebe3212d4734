"""Text of the user's in windows, and what passes a model that reads it."""

from __future__ import annotations

import contextlib
import random

import pandas as pd
import pyarrow as pa
import pytest
import torch
from models import WIDTH, random_model, random_sae
from pyarrow import parquet

from sae_lm_eval.dictionaries.loading import load_dictionary
from sae_lm_eval.errors import UserError
from sae_lm_eval.runtime import text_files as text
from sae_lm_eval.splicing.activations import mean_activations
from sae_lm_eval.splicing.module_io import record_activations
from sae_lm_eval.splicing.variants import Choices, build_variant


def encode(document: str) -> list[int]:
    return [int(word) for word in document.split()]


def test_windows_hold_the_first_tokens_behind_one_prefix():
    documents = ["1 3 4 5 6 7", "1 8 9", "10 11 12"]
    assert text.windows(documents, encode, prefix=1, length=4, tokens=8) == [
        [1, 3, 4, 5],
        [1, 6, 7],
        [1, 8, 9],
        [1, 10],
    ]
    assert text.windows(documents, encode, prefix=None, length=3, tokens=4) == [[1, 3, 4], [5]]


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_documents_of_each_kind_of_file(kind, tmp_path):
    path = tmp_path / f"a.{kind}"
    frame = pd.DataFrame({"text": ["one two", "  ", "three"]})
    if kind == "txt":
        path.write_text("one two")
    elif kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    assert list(text.read_documents(path)) == (["one two"] if kind == "txt" else ["one two", "three"])


def test_no_more_of_a_text_is_read_than_is_asked_for(tmp_path):
    path, seen = tmp_path / "a.txt", []
    path.write_text("".join(f"{i} " for i in range(2, 600_000)))

    def counted(document):
        seen.append(len(document))
        return encode(document)

    (window,) = text.windows(text.read_documents(path, tokens=64), counted, prefix=1, length=100, tokens=64)
    assert window == [1, *range(2, 66)]
    assert max(seen) < 20_000
    assert len(next(text.read_documents(path, tokens=64))) == text.LEAST_LETTERS


def test_the_first_ids_are_those_of_the_whole():
    """Where what comes later changes the ids before it, the whole is tokenised."""
    document = "a" * 100_000
    assert text.first_ids(document, lambda part: [1] * len(part), 50) == [1] * 50
    assert text.first_ids(document, lambda part: [len(part)] * 3 + [1] * len(part), 50)[:4] == [100_000] * 3 + [1]
    assert text.first_ids(document, lambda part: [7] * (len(part) // 1000), 50)[:50] == [7] * 50


DAMAGED = {
    "binary.txt": (b"\xff\xfe\x00", "is no UTF-8 at byte 0"),
    "empty.txt": (b"", "holds no text"),
    "empty.jsonl": (b"", "holds no text"),
    "cut.jsonl": (b'{"text": "a', "Line 1 of .* cannot be read as JSON"),
    "deep.jsonl": (b"[" * 1000 + b"]" * 1000, "Line 1 of .* is nested more than"),
    "list.jsonl": (b"[1]", "Line 1 of .* is not an object"),
    "other.jsonl": (b'{"texts": "a"}', "Line 1 of .* has no column 'text'. It has texts"),
    "null.jsonl": (b'{"text": null}', "Line 1 of .* is not a text"),
    "a.parquet": (b"PAR1" + b"\0" * 50 + b"PAR1", "is no sound Parquet file"),
    "empty.parquet": (b"", "is no sound Parquet file"),
    "a.bin": (b"a", "The kind of 'a.bin':"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_no_text(tmp_path, name):
    content, message = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(text.read_documents(tmp_path / name))


@pytest.mark.parametrize("cell", [["a"], {"a": 1}, b"\xff"], ids=["list", "mapping", "bytes"])
def test_a_column_of_a_parquet_file_that_holds_no_texts(cell, tmp_path):
    pd.DataFrame({"text": [cell]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet', text, is not a text"):
        list(text.read_documents(tmp_path / "a.parquet"))


def test_a_column_of_dates_beyond_those_of_python(tmp_path):
    parquet.write_table(pa.table({"text": pa.array([2**40], pa.timestamp("s"))}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="is no sound Parquet file"):
        list(text.read_documents(tmp_path / "a.parquet"))


def test_a_column_that_is_there_twice(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="has the column 'text' twice"):
        list(text.read_documents(tmp_path / "a.parquet"))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_the_mark_of_utf_8_is_no_part_of_a_text(name, tmp_path):
    (tmp_path / name).write_text("one" if name == "a.txt" else '{"text": "one"}', encoding="utf-8-sig")
    assert list(text.read_documents(tmp_path / name)) == ["one"]


def test_flipped_bits_in_a_parquet_file(tmp_path):
    pd.DataFrame({"text": [f"some text {i}" for i in range(50)]}).to_parquet(tmp_path / "sound.parquet")
    sound, rng = (tmp_path / "sound.parquet").read_bytes(), random.Random(0)
    for _ in range(150):
        damaged = bytearray(sound)
        damaged[rng.randrange(len(sound))] ^= 1 << rng.randrange(8)
        (tmp_path / "a.parquet").write_bytes(damaged)
        with contextlib.suppress(UserError):
            list(text.read_documents(tmp_path / "a.parquet"))


def test_the_mean_is_over_all_positions_but_special_ones():
    model = random_model("gpt2")
    saes = [random_sae(WIDTH, "blocks.1.hook_resid_mid"), random_sae(WIDTH, "blocks.2.hook_mlp_out")]
    variant = build_variant(model, [load_dictionary(sae) for sae in saes], Choices(), frozenset())
    texts = [[1, 5, 6, 7], [1, 8, 2, 9, 10]]
    means = mean_activations(model, variant, texts, frozenset({1, 2}))
    for splice, mean in zip(variant.splices, means, strict=True):
        port = splice.site_out.read
        rows = [record_activations(model, [port], torch.tensor([ids]))[port][0] for ids in texts]
        expected = torch.cat([rows[0][1:], rows[1][[1, 3, 4]]]).mean(0)
        torch.testing.assert_close(mean, expected)
