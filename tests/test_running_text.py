"""Running text is read behind exactly one BOS token, which is never scored, whatever the tokenizer adds by itself."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import tokenizers
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from models import CONTEXT, VOCABULARY, WIDTH, random_model, random_sae, words

from sae_lm_eval import SaeHFLM
from sae_lm_eval.fidelity.source import TextSource
from sae_lm_eval.runs.loss_curve import Text, measure_curve
from sae_lm_eval.runs.members import Member
from sae_lm_eval.talk.conversation import Model
from sae_lm_eval.talk.passages import of_text

RESID = "blocks.1.hook_resid_post"
TEXTS = [words(n, seed=n) for n in (2 * CONTEXT + 7, 5, 1)]
HELD_OUT = tuple(words(30, seed=s) for s in (70, 71))
ADDS = {"nothing": "$A", "bos": "<s> $A", "bos and eos": "<s> $A </s>", "eos": "$A </s>", "nothing, without bos": "$A"}


def tokenizer(adds: str) -> transformers.PreTrainedTokenizerFast:
    """One token a word, w3 to w100, whose ids are their numbers, and what it adds to every text."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<pad>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single=ADDS[adds], special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    own = {} if "without" in adds else {"bos_token": "<s>"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", pad_token="<pad>", unk_token="<pad>", **own
    )


def adapter(adds: str, **kwargs) -> SaeHFLM:
    given = {"sae": random_sae(WIDTH, RESID), "batch_size": 3, **kwargs}
    return SaeHFLM(pretrained=random_model("llama"), tokenizer=tokenizer(adds), **given)


def prefix(adds: str) -> int:
    return 2 if "without" in adds else 1


@torch.no_grad()
def nats(text: str, before: int) -> float:
    """-log p of every word, the first given the prefix token, a window at a time."""
    model, total = random_model("llama"), 0.0
    ids = [int(word[1:]) for word in text.split()]
    for context, piece in map(make_disjoint_window, get_rolling_token_windows(ids, before, CONTEXT, 1)):
        logprob = model(torch.tensor([(context + piece)[:-1]])).logits.log_softmax(-1)[0, -len(piece) :]
        total -= float(logprob.gather(-1, torch.tensor(piece)[:, None]).sum())
    return total


def fidelity(lm: SaeHFLM, texts: list[str]) -> list[dict]:
    source = TextSource("test", HELD_OUT)
    requests = [
        Instance("sae_fidelity", {}, (text, None, source), 0, ("fidelity", i, 1))  # pyright: ignore[reportArgumentType]
        for i, text in enumerate(texts)
    ]
    return lm.sae_fidelity(requests, disable_tqdm=True)


@pytest.mark.parametrize("adds", ADDS)
def test_fidelity_scores_the_text_and_nothing_else(adds):
    records = fidelity(adapter(adds), TEXTS)
    assert [record["tokens"] for record in records] == [len(text.split()) for text in TEXTS]
    for record, text in zip(records, TEXTS, strict=True):
        assert record["nats_baseline"] == pytest.approx(nats(text, prefix(adds)), abs=1e-3)


@pytest.mark.parametrize("adds", ADDS)
def test_a_document_is_read_behind_one_prefix_token(adds):
    lm = adapter(adds)
    (query,) = lm.spliced.rolling("w5 w6 w7")
    assert (list(query.ids), list(query.targets)) == ([prefix(adds), 5, 6], [5, 6, 7])
    assert lm.spliced.windows(["w5 w6 w7", "w8 w9"], 9) == [[prefix(adds), 5, 6, 7], [prefix(adds), 8, 9]]


def test_a_bos_that_stands_in_the_document_is_not_read_twice():
    (query,) = adapter("bos").spliced.rolling("<s> w5 w6")
    assert (list(query.ids), list(query.targets)) == ([1, 5], [5, 6])


def test_a_word_is_read_though_it_is_the_prefix_token():
    lm = adapter("bos", prefix_token_id=5)
    (query,) = lm.spliced.rolling("w5 w5 w6")
    assert (list(query.ids), list(query.targets)) == ([5, 5, 5], [5, 5, 6])


def test_the_mean_is_of_what_the_scored_text_would_be(tmp_path):
    path = tmp_path / "mean.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in HELD_OUT))
    means = {adds: adapter(adds, splice="mean", mean_text=str(path)).spliced.variant.splices[0].mean for adds in ADDS}
    assert all(torch.equal(mean, means["nothing"]) for adds, mean in means.items() if "without" not in adds)
    records = {adds: fidelity(adapter(adds), TEXTS) for adds in ("nothing", "bos", "bos and eos")}
    for adds in ("bos", "bos and eos"):
        for name in ("nll_spliced", "nll_zero", "nll_mean", "kl"):
            ours, theirs = ([record[name] for record in records[kind]] for kind in (adds, "nothing"))
            assert ours == pytest.approx(theirs, rel=1e-5), name


@pytest.mark.parametrize("per", ["token", "byte"])
def test_a_curve_compares_like_with_like(tmp_path, per):
    members = []
    for adds in ("nothing", "bos", "bos and eos"):
        folder = tmp_path / adds.replace(" ", "_")
        random_model("llama").save_pretrained(folder)
        tokenizer(adds).save_pretrained(folder)
        members.append(Member(str(folder), tokens=1e9 * (1 + len(members))))
    measure_curve(members, Text("words", tuple(TEXTS)), tmp_path / "family.csv", per=per)
    rows = pd.read_csv(tmp_path / "family.csv")
    assert rows["text_tokens"].unique().tolist() == [sum(len(text.split()) for text in TEXTS)]
    assert rows["text_nats"].tolist() == pytest.approx([sum(nats(text, 1) for text in TEXTS)] * 3, abs=1e-3)


def test_talk_reads_a_text_as_fidelity_does(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXTS[1])
    model = Model(
        {"pretrained": random_model("llama"), "tokenizer": tokenizer("bos and eos"), "sae": random_sae(WIDTH, RESID)}
    )
    (passage,) = of_text(model, path, 100)
    assert list(passage.ids) == [int(word[1:]) for word in TEXTS[1].split()]
    (record,) = fidelity(adapter("bos and eos"), [TEXTS[1]])
    assert sum(place.kl[0] for place in passage.places) == pytest.approx(record["kl"], rel=1e-4)


@pytest.mark.parametrize("adds", ADDS)
def test_lm_evals_own_rolling_tasks_stay_as_they_are(adds):
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in TEXTS]
    theirs = HFLM(pretrained=random_model("llama"), tokenizer=tokenizer(adds), batch_size=3)
    expected = np.array(theirs.loglikelihood_rolling(requests, disable_tqdm=True))
    for splice in ("none", "with_error"):
        ours = np.array(adapter(adds, splice=splice).loglikelihood_rolling(requests, disable_tqdm=True))
        assert ours == pytest.approx(expected, abs=1e-3)
