"""What variants answer together is what each answers alone; and what is kept of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from models import WIDTH, random_model, random_sae, word_tokenizer, words

from sae_lm_eval.fidelity.source import TextSource
from sae_lm_eval.harness.joined import joined
from sae_lm_eval.harness.model import SaeHFLM
from sae_lm_eval.runtime.journal import Journal
from sae_lm_eval.scoring.scorer import Scorer
from sae_lm_eval.scoring.shared_answers import SharedAnswers
from sae_lm_eval.splicing.arguments import requested_splices

HOOKS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", "blocks.2.hook_mlp_out")


def saes():
    return [random_sae(WIDTH, hook, seed=i) for i, hook in enumerate(HOOKS)]


def instances():
    out = []
    for document in range(12):
        context = words(20, seed=document % 3) + " " + words(4, seed=document)
        for answer in range(3):
            arguments = (context, " " + words(1 + answer, seed=100 + answer))
            task = ("first", "second")[document % 2]
            out.append(Instance("loglikelihood", {}, arguments, answer, (task, document, 1)))
    return out


def make(**arguments):
    return SaeHFLM(pretrained=random_model("llama"), tokenizer=word_tokenizer(), device="cpu", **arguments)


@pytest.fixture
def family():
    baseline = make(sae=[], splice="none")
    variants = [baseline.as_variant(requested_splices(sae)) for sae in saes()]
    return baseline, variants


def test_together_as_alone(family):
    baseline, variants = family
    baseline, *variants = joined(baseline, variants)
    plain = make(sae=[], splice="none")
    together = [lm.loglikelihood(instances()) for lm in (baseline, *variants)]
    alone = [lm.loglikelihood(instances()) for lm in (plain, *(make(sae=sae) for sae in saes()))]
    for some, others in zip(together, alone, strict=True):
        np.testing.assert_allclose([a for a, _ in some], [a for a, _ in others], atol=2e-5)
        assert [greedy for _, greedy in some] == [greedy for _, greedy in others]


def never(*_args, **_kwargs):
    raise AssertionError("nothing is to be computed")


def test_the_first_computes_and_the_others_look_up(family, monkeypatch):
    baseline, variants = family
    baseline, *variants = joined(baseline, variants)
    baseline.loglikelihood(instances())
    monkeypatch.setattr(Scorer, "score", never)
    for lm in variants:
        assert lm.loglikelihood(instances())


def test_rolling_is_answered_together_as_well(family):
    baseline, variants = family
    baseline, *variants = joined(baseline, variants)
    documents = [Instance("loglikelihood_rolling", {}, (words(150, seed=i),), 0, ("text", i, 1)) for i in range(3)]
    expected = make(sae=saes()[1]).loglikelihood_rolling(documents)
    np.testing.assert_allclose(variants[1].loglikelihood_rolling(documents), expected, atol=1e-4)


def test_documents_are_rolled_over_at_once(family, monkeypatch):
    baseline, variants = family
    baseline, *variants = joined(baseline, variants)
    documents = [Instance("loglikelihood_rolling", {}, (words(n, seed=n),), 0, ("text", n, 1)) for n in (150, 9, 0, 1)]
    batches = []
    answers = SharedAnswers.answers
    monkeypatch.setattr(
        SharedAnswers,
        "answers",
        lambda self, queries, *given: batches.append(queries) or answers(self, queries, *given),
    )
    logprobs = variants[1].loglikelihood_rolling(documents, disable_tqdm=True)
    (queries,) = batches
    assert sum(len(query.targets) for query in queries) == 150 + 9 + 1
    assert logprobs[2] == 0
    alone = [variants[1].loglikelihood_rolling([document], disable_tqdm=True)[0] for document in documents]
    np.testing.assert_allclose(logprobs, alone, atol=1e-4)


def test_divergence_on_documents_is_that_of_the_fidelity_tasks(family):
    baseline, variants = family
    baseline, *variants = joined(baseline, variants)
    texts = [words(n, seed=n) for n in (150, 9, 30)]
    documents = [Instance("loglikelihood_rolling", {}, (text,), 0, ("text", i, 1)) for i, text in enumerate(texts)]
    # As several processes have it, so that each has as many requests.
    variants[1].loglikelihood_rolling([*documents, documents[-1]], disable_tqdm=True)
    requests = [
        Instance("sae_fidelity", {}, (text, None, TextSource("text")), 0, ("text", i, 1))
        for i, text in enumerate(texts)
    ]
    records = variants[1].sae_fidelity(requests, disable_tqdm=True)
    kl = sum(record["kl"] for record in records) / sum(record["tokens"] for record in records)
    divergence = variants[1].divergence.by_task()["text"]
    assert divergence["kl"] == pytest.approx(kl, rel=1e-4)
    assert (divergence["positions"], divergence["documents"]) == (150 + 9 + 30, 3)


def test_the_journal_answers_another_process(family, tmp_path, monkeypatch):
    baseline, variants = family
    baseline, *variants = joined(baseline, variants, Journal(tmp_path / "journal"))
    expected = variants[2].loglikelihood(instances())
    baseline = make(sae=[], splice="none")
    variants = [baseline.as_variant(requested_splices(sae)) for sae in saes()]
    baseline, *variants = joined(baseline, variants, Journal(tmp_path / "journal"))
    monkeypatch.setattr(Scorer, "score", never)
    assert variants[2].loglikelihood(instances()) == expected
    other = baseline.as_variant(requested_splices(saes()[0], splice="zero"))
    _, other = joined(baseline, [other], Journal(tmp_path / "journal"))
    with pytest.raises(AssertionError, match="nothing is to be computed"):
        other.loglikelihood(instances())


def test_one_bos_token_for_all_where_one_dictionary_had_one(family):
    baseline, _ = family
    variants = [
        baseline.as_variant(requested_splices(random_sae(WIDTH, HOOKS[0], prepend_bos=prepend)))
        for prepend in (True, False)
    ]
    baseline, *variants = joined(baseline, variants)
    for lm in (baseline, *variants):
        assert lm.tok_encode("w5 w6") == [1, 5, 6]
        assert lm.spliced.provenance()["bos"].startswith("one BOS token is added")


class TestDivergence:
    def test_it_is_the_mean_over_scored_tokens_by_task(self, family):
        baseline, variants = family
        baseline, *variants = joined(baseline, variants)
        variants[0].loglikelihood(instances())
        by_task = variants[0].get_model_info()["sae_lm_eval"]["kl_at_answers"]
        assert set(by_task) == {"first", "second"}
        assert by_task["first"]["documents"] == 6
        assert by_task["first"]["positions"] == 6 * (1 + 2 + 3)
        by_document = []
        for document in range(0, 12, 2):
            lm = make(sae=saes()[0])
            lm.loglikelihood([i for i in instances() if i.doc_id == document])
            by_document.append(lm.divergence.by_task()["first"]["kl"])
        assert math.isclose(by_task["first"]["kl"], np.mean(by_document), rel_tol=1e-5)
        assert math.isclose(by_task["first"]["stderr"], np.std(by_document, ddof=1) / 6**0.5, rel_tol=1e-4)

    def test_the_baseline_has_none(self, family):
        baseline, variants = family
        baseline, *variants = joined(baseline, variants)
        baseline.loglikelihood(instances())
        assert {divergence["kl"] for divergence in baseline.divergence.by_task().values()} == {0.0}

    def test_it_is_left_out_where_it_was_not_taken(self):
        lm = make(sae=saes()[0], splice="none")
        lm.loglikelihood(instances())
        assert lm.divergence.by_task() == {}
