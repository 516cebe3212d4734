"""`SaeHFLM` against lm_eval's own `HFLM`, on a small random model, and what it adds to the results."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM
from models import CONTEXT, WIDTH, random_model, random_sae, word_tokenizer, words

from sae_lm_eval import SaeHFLM, UserError
from sae_lm_eval.dictionaries.loading import load_dictionary

RESID = "blocks.1.hook_resid_post"


def adapter(sae=None, *, model: str = "llama", adds_bos: bool = False, **kwargs) -> SaeHFLM:
    sae = random_sae(WIDTH, RESID) if sae is None else sae
    return SaeHFLM(
        pretrained=random_model(model), tokenizer=word_tokenizer(adds_bos=adds_bos), sae=sae, batch_size=3, **kwargs
    )


def plain(*, model: str = "llama", adds_bos: bool = False, **kwargs) -> HFLM:
    return HFLM(pretrained=random_model(model), tokenizer=word_tokenizer(adds_bos=adds_bos), batch_size=3, **kwargs)


def requests(kind: str) -> list[Instance]:
    """Contexts of several lengths, some shared by several answers, one empty, one longer than the model's context."""
    contexts = [words(n, seed=n) for n in (4, 9, 9, 17, CONTEXT + 9)]
    if kind == "loglikelihood":
        pairs = [(c, f" {words(n, seed=s)}") for c in contexts for s, n in ((50, 1), (51, 1), (52, 3))]
        arguments: list[tuple] = [*pairs, ("", words(3, seed=60))]
    elif kind == "loglikelihood_rolling":
        arguments = [(c,) for c in contexts]
    else:
        arguments = [(c, {"until": ["w5"], "max_gen_toks": 6, "do_sample": False}) for c in contexts]
    return [Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)]  # pyright: ignore


KINDS = ("loglikelihood", "loglikelihood_rolling", "generate_until")


class TestSpliceNone:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("adds_bos", [False, True])
    @pytest.mark.parametrize("model", ["gpt2", "llama", "gemma3"])
    def test_gives_the_same_bits_as_hf(self, kind, adds_bos, model):
        ours = getattr(adapter(splice="none", model=model, adds_bos=adds_bos), kind)(requests(kind))
        theirs = getattr(plain(model=model, adds_bos=adds_bos), kind)(requests(kind))
        assert ours == theirs

    def test_with_error_changes_no_answer(self):
        ours = adapter(splice="with_error").loglikelihood(requests("loglikelihood"))
        theirs = plain().loglikelihood(requests("loglikelihood"))
        for (a, greedy_a), (b, greedy_b) in zip(ours, theirs, strict=True):
            assert a == pytest.approx(b, abs=1e-5 * 20)
            assert greedy_a == greedy_b


@pytest.mark.parametrize("kind", KINDS)
def test_a_reconstruction_changes_answers(kind):
    assert getattr(adapter(), kind)(requests(kind)) != getattr(plain(), kind)(requests(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_batch_size_changes_nothing(kind):
    def answers(batch_size):
        lm = adapter()
        lm.batch_size_per_gpu = batch_size
        return getattr(lm, kind)(requests(kind))

    first, second = answers(1), answers(7)
    if kind == "generate_until":
        assert first == second
    else:
        value = (lambda a: a[0]) if kind == "loglikelihood" else (lambda a: a)
        assert [value(a) for a in first] == pytest.approx([value(a) for a in second], abs=1e-4)


def test_model_call_gives_the_spliced_logits():
    lm, ids = adapter(), torch.tensor([[5, 6, 7, 8]])
    first = lm._model_call(ids)
    assert (first - plain()._model_call(ids)).abs().max() > 1e-2
    assert torch.equal(first, lm._model_call(ids))


class TestBos:
    @staticmethod
    def behind_bos(adds_bos=False, **kwargs):
        return adapter(random_sae(WIDTH, RESID, prepend_bos=True), adds_bos=adds_bos, **kwargs)

    def test_one_is_added_where_lm_eval_adds_none(self):
        lm = self.behind_bos()
        assert lm.tok_encode("w4 w5") == [1, 4, 5]
        assert lm.tok_encode("<s> w4 w5") == [1, 4, 5]
        assert lm.tok_encode("w4 w5", add_special_tokens=False) == [4, 5]
        assert lm._encode_pair("w4 w5", " w6") == ([1, 4, 5], [6])
        ids, mask = lm.tok_batch_encode(["w4", "w4 w5 w6"])
        assert ids.tolist() == [[0, 0, 1, 4], [1, 4, 5, 6]]
        assert mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
        assert "one BOS token is added" in lm.spliced.provenance()["bos"]

    def test_none_is_added_to_one(self):
        lm = self.behind_bos(adds_bos=True)
        assert lm.tok_encode("w4 w5") == [1, 4, 5]
        assert lm.spliced.provenance()["bos"] == "lm_eval's default, which adds one"

    def test_the_user_has_the_last_word(self):
        assert self.behind_bos(add_bos_token=False).tok_encode("w4 w5") == [4, 5]

    def test_none_is_added_for_a_dictionary_that_says_nothing(self):
        assert adapter().tok_encode("w4 w5") == [4, 5]

    def test_the_same_prompts_give_hf_with_a_bos(self):
        ours = self.behind_bos(splice="none").loglikelihood(requests("loglikelihood"))
        theirs = plain(adds_bos=True).loglikelihood(requests("loglikelihood"))
        assert ours == theirs
        ours = self.behind_bos(splice="none").generate_until(requests("generate_until"))
        assert ours == plain(adds_bos=True).generate_until(requests("generate_until"))

    def test_a_document_is_given_one_bos_and_not_two(self):
        ours = self.behind_bos(splice="none").loglikelihood_rolling(requests("loglikelihood_rolling"))
        assert ours == plain().loglikelihood_rolling(requests("loglikelihood_rolling"))


def test_prompts_beyond_the_dictionarys_context_are_told_of_once(caplog):
    lm = adapter(random_sae(WIDTH, RESID, context_size=16))
    with caplog.at_level(logging.WARNING, logger="lm_eval"):
        logging.getLogger("lm_eval").propagate = True
        lm.loglikelihood(requests("loglikelihood"))
        lm.loglikelihood(requests("loglikelihood"))
    messages = [r.message for r in caplog.records if "longer than the 16 tokens" in r.message]
    longer = "are longer than the 16 tokens that the dictionary of <StandardSAE> was trained on."
    assert messages == [f"6 of 16 prompts (38%) {longer}"]


def test_documents_are_counted_as_prompts_are(caplog):
    lm = adapter(random_sae(WIDTH, RESID, context_size=16))
    logging.getLogger("lm_eval").propagate = True
    with caplog.at_level(logging.WARNING, logger="lm_eval"):
        lm.loglikelihood_rolling(requests("loglikelihood_rolling"))
    messages = [r.message for r in caplog.records if "longer than the 16 tokens" in r.message]
    longer = "are longer than the 16 tokens that the dictionary of <StandardSAE> was trained on."
    assert messages == [f"2 of 5 prompts (40%) {longer}"]


class TestCache:
    def test_two_splices_never_share_an_answer(self, tmp_path):
        cache = str(tmp_path / "answers.db")
        instances = requests("loglikelihood")
        saes = [random_sae(WIDTH, RESID, seed=s) for s in (0, 1)]
        expected = [adapter(sae).loglikelihood(instances) for sae in saes]
        assert expected[0] != expected[1]
        for _ in range(2):  # the second round is answered from the file
            for sae, answers in zip(saes, expected, strict=True):
                assert CachingLM(adapter(sae), cache).loglikelihood(instances) == answers
            assert CachingLM(adapter(saes[0], splice="zero"), cache).loglikelihood(instances) != expected[0]

    def test_the_same_splice_is_answered_from_the_file(self, tmp_path, monkeypatch):
        cache, instances = str(tmp_path / "answers.db"), requests("loglikelihood")
        answers = CachingLM(adapter(), cache).loglikelihood(instances)
        monkeypatch.setattr(SaeHFLM, "_model_call", lambda *_: pytest.fail("the answers are there already"))
        assert CachingLM(adapter(), cache).loglikelihood(instances) == answers

    def test_plain_hf_keeps_its_own(self, tmp_path):
        cache, instances = str(tmp_path / "answers.db"), requests("loglikelihood")
        spliced = CachingLM(adapter(), cache).loglikelihood(instances)
        assert CachingLM(plain(), cache).loglikelihood(instances) == plain().loglikelihood(instances) != spliced


def test_results_say_what_they_came_from():
    info = adapter(random_sae(WIDTH, RESID, model_name="llama-tiny", context_size=128)).get_model_info()
    said = json.loads(json.dumps(info["sae_lm_eval"]))
    (splice,) = said["splices"]
    assert splice["hook_in"] == splice["hook_out"] == RESID
    assert splice["reads"] == splice["writes"] == "model.layers.1.output"
    assert splice["map_in"] == "raw"
    assert splice["dtype"] == "float32"
    assert (splice["trained_on"], splice["context_size"]) == (["llama-tiny"], 128)
    assert splice["weights_checksum"] == load_dictionary(random_sae(WIDTH, RESID)).fingerprint()
    assert said["splice"] == "reconstruction"
    assert said["special_token_ids"] == [0, 1, 2]
    assert said["packages"]["lm_eval"]
    assert said["seed"] is None


def test_not_a_number_names_the_request_and_the_variant():
    sae = random_sae(WIDTH, RESID)
    with torch.no_grad():
        sae.W_dec[0] = torch.nan
    lm = adapter(sae)
    with pytest.raises(UserError, match=r"The log-probability of 'w\d+.*' -> .* is nan with '<StandardSAE>'"):
        lm.loglikelihood(requests("loglikelihood"))
    with pytest.raises(UserError, match="The logits are nan while '<StandardSAE>' generates from"):
        lm.generate_until(requests("generate_until"))


def test_a_temporal_dictionary_decodes_without_a_cache():
    sae = random_sae(WIDTH, RESID, "temporal")
    lm = adapter(sae)
    instances = requests("generate_until")[:3]
    together = lm.generate_until(instances)
    alone = [lm.generate_until([request])[0] for request in instances]
    assert together == alone
    prompt = lm.tok_encode(instances[0].args[0])
    for word in together[0].split():
        best = int(lm._model_call(torch.tensor([prompt]))[0, -1].argmax())
        assert best == lm.tok_encode(word)[0]
        prompt.append(best)


def test_several_dictionaries_in_a_list_or_objects_of_other_kinds():
    saes = [random_sae(WIDTH, f"blocks.{layer}.hook_resid_post", seed=layer) for layer in (0, 1)]
    lm = adapter(saes)
    assert [s.site_out.layer for s in lm.spliced.variant.splices] == [0, 1]
    assert lm.spliced.name == "<StandardSAE>+<StandardSAE>"


def test_splice_mean_takes_the_mean_of_a_text(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": words(30, seed=s)}) for s in range(4)))
    lm = adapter(splice="mean", mean_text=str(path), mean_tokens=100)
    said = lm.spliced.provenance()
    assert said["mean"]["text"] == str(path)
    assert said["mean"]["tokens"] == 100
    (splice,) = lm.spliced.variant.splices
    assert splice.mean is not None
    assert splice.mean.shape == (WIDTH,)
    first, second = lm._model_call(torch.tensor([[1, 5, 6]])), lm._model_call(torch.tensor([[1, 7, 6]]))
    assert not torch.equal(first[0, 2], plain()._model_call(torch.tensor([[1, 5, 6]]))[0, 2])
    assert first.shape == second.shape


def test_none_is_a_mode_however_lm_eval_reads_it():
    assert adapter(splice=None).spliced.choices.splice == adapter(splice="none").spliced.choices.splice == "none"


def test_what_a_release_warns_of_is_told(caplog):
    from dataclasses import replace

    remarked = replace(load_dictionary(random_sae(WIDTH, RESID)), name="clt#3", remarks=("its decoders are summed",))
    logging.getLogger("lm_eval").propagate = True
    with caplog.at_level(logging.WARNING, logger="lm_eval"):
        lm = adapter(remarked)
    assert "clt#3: its decoders are summed" in [r.message for r in caplog.records]
    assert lm.spliced.provenance()["splices"][0]["remarks"] == ["its decoders are summed"]


def test_a_dictionary_follows_the_device_of_its_module():
    from sae_lm_eval.splicing.variants import Choices, build_variant, place_dictionaries

    model = random_model("llama")
    saes = [random_sae(WIDTH, f"blocks.{layer}.hook_resid_post", seed=layer) for layer in (0, 1)]
    variant = build_variant(model, [load_dictionary(sae) for sae in saes], Choices(), frozenset())
    model.model.layers[1].to("meta")  # as a sharded model has its blocks on several devices
    place_dictionaries(model, variant)
    assert [splice.dictionary.device.type for splice in variant.splices] == ["cpu", "meta"]


def test_a_chat_template_brings_its_own_bos():
    lm = adapter(random_sae(WIDTH, RESID, prepend_bos=True))
    lm.tokenizer.chat_template = "<s>{% for m in messages %} {{ m.content }}{% endfor %}"
    prompt = lm.apply_chat_template([{"role": "user", "content": "w4 w5"}])
    assert lm.tok_encode(prompt) == [1, 4, 5]
    assert lm.tok_batch_encode([prompt])[0].tolist() == [[1, 4, 5]]


def test_batch_size_auto_finds_one():
    lm = adapter()
    lm.batch_size_per_gpu, lm.max_batch_size = "auto", 4
    first = [answer[0] for answer in lm.loglikelihood(requests("loglikelihood"))]
    assert first == pytest.approx(
        [answer[0] for answer in adapter().loglikelihood(requests("loglikelihood"))], abs=1e-4
    )


def test_more_tokens_than_the_model_reads_are_told():
    most = f"max_length={CONTEXT + 1} is more than the {CONTEXT} tokens that .* reads by its configuration"
    with pytest.raises(UserError, match=most):
        adapter(max_length=CONTEXT + 1)
    assert adapter(max_length=CONTEXT).max_length == CONTEXT
