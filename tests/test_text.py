"""Text of the user's in windows, and what passes a model that reads it."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from models import WIDTH, random_model, random_sae

from sae_lm_eval.dictionaries.loading import load
from sae_lm_eval.runtime import text_files as text
from sae_lm_eval.splicing.activations import mean_activations
from sae_lm_eval.splicing.module_io import record
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
    assert text.read_documents(path) == (["one two"] if kind == "txt" else ["one two", "three"])


def test_the_mean_is_over_all_positions_but_special_ones():
    model = random_model("gpt2")
    saes = [random_sae(WIDTH, "blocks.1.hook_resid_mid"), random_sae(WIDTH, "blocks.2.hook_mlp_out")]
    variant = build_variant(model, [load(sae) for sae in saes], Choices(), frozenset())
    texts = [[1, 5, 6, 7], [1, 8, 2, 9, 10]]
    means = mean_activations(model, variant, texts, frozenset({1, 2}))
    for splice, mean in zip(variant.splices, means, strict=True):
        port = splice.site_out.read
        rows = [record(model, [port], torch.tensor([ids]))[port][0] for ids in texts]
        expected = torch.cat([rows[0][1:], rows[1][[1, 3, 4]]]).mean(0)
        torch.testing.assert_close(mean, expected)
