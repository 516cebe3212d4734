"""Which positions keep their activation: the tokenizer's special tokens, and where a release was not trained."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from lm_eval.api.instance import Instance
from models import VOCABULARY, WIDTH, random_model, random_sae, word_tokenizer, words

from sae_lm_eval import SaeHFLM, UserError
from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.dictionaries.loading import load_dictionary
from sae_lm_eval.dictionaries.saelens_object import from_sae
from sae_lm_eval.dictionaries.untrained import rule_of
from sae_lm_eval.fidelity.source import TextSource
from sae_lm_eval.runs.sweep import variant_requests
from sae_lm_eval.scoring.request import Query, ScoreRequest
from sae_lm_eval.splicing.arguments import requested_splices
from sae_lm_eval.splicing.special_tokens import ordinary, special_ids, spliced_positions
from sae_lm_eval.talk.chosen import Sampling
from sae_lm_eval.talk.conversation import Conversation, Model

RESID = "blocks.1.hook_resid_post"
FIRST = 4


def tokenizer(**special) -> transformers.PreTrainedTokenizerFast:
    """One token a word, w0 to w97, and <pad>, <s>, </s> at the end of the vocabulary."""
    vocabulary = {**{f"w{i}": i for i in range(VOCABULARY - 3)}, "<pad>": 98, "<s>": 99, "</s>": 100}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def adapter(sae=None, **kwargs) -> SaeHFLM:
    given = {"pretrained": random_model("llama"), "tokenizer": word_tokenizer(), "batch_size": 3, **kwargs}
    return SaeHFLM(sae=random_sae(WIDTH, RESID) if sae is None else sae, **given)


def untrained(first: int = FIRST, seed: int = 0) -> Dictionary:
    """A dictionary whose release says that it was not trained on the first positions."""
    return replace(load_dictionary(random_sae(WIDTH, RESID, seed=seed)), name="it", first_position=first)


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lm_eval"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="lm_eval")
    return lambda: [r.getMessage() for r in caplog.records]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.frozensets(st.integers(0, 9)), st.integers(0, 14))
def test_the_rule_token_by_token(ids, special, first):
    expected = [token not in special and place >= first for place, token in enumerate(ids)]
    row, positions = torch.tensor(ids), torch.arange(len(ids))
    assert spliced_positions(row, positions, special, first).tolist() == expected
    assert Query(ids, ids[-1:]).spliced(special, first).tolist() == expected
    batch = spliced_positions(row[None].expand(2, -1), positions[None].expand(2, -1), special, first)
    assert batch.tolist() == [expected, expected]


def test_annotated_shapes_are_checked(request):
    if not request.config.getoption("--shapes"):
        pytest.skip("--no-shapes")
    with pytest.raises(TypeCheckError):
        spliced_positions(torch.zeros(1, 3, dtype=torch.long), torch.arange(3), frozenset(), 0)


class TestSpecialTokens:
    def test_the_tokenizer_is_trusted_before_a_configuration(self, said):
        # The model's configuration says 0, 1 and 2, which are ordinary words here.
        lm = adapter(tokenizer=tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<pad>"))
        assert lm.spliced.tokens.special_ids == lm.spliced.variant.special_ids == {98, 99, 100}
        assert not [message for message in said() if "ordinary text" in message]
        ids = torch.tensor([[5, 1, 6, 2]])
        everywhere = adapter(splice_tokens="all")._model_call(ids)
        assert torch.equal(lm._model_call(ids), everywhere)

    def test_markers_of_chats_are_spliced(self):
        model = random_model("llama")
        model.generation_config.eos_token_id = [2, 50]
        assert adapter(pretrained=model).spliced.tokens.special_ids == {0, 1, 2}

    def test_without_any_of_its_own_the_configuration_counts(self):
        assert special_ids(tokenizer(), random_model("llama")) == {0, 1, 2}
        assert ordinary(tokenizer(), {0, 1, 99, 500}) == {0: "w0", 1: "w1"}

    def test_an_ordinary_word_that_is_declared_padding_is_named_once(self, said):
        lm = adapter(tokenizer=tokenizer(bos_token="<s>", eos_token="</s>", pad_token="w7"))
        lm.as_variant(requested_splices(random_sae(WIDTH, RESID, seed=1)))
        (message,) = [message for message in said() if "ordinary text" in message]
        assert message.startswith("Positions of the tokens 'w7' (7) keep their activation")
        assert "splice_tokens=all" in message

    def test_nothing_is_named_where_everything_is_spliced(self, said):
        adapter(tokenizer=tokenizer(bos_token="<s>", pad_token="w7"), splice_tokens="all")
        assert not [message for message in said() if "ordinary text" in message]

    def test_padding_that_lm_eval_lends_is_not_the_tokenizers_own(self):
        own = tokenizer(bos_token="<s>", eos_token="</s>", unk_token="w0")
        assert adapter(tokenizer=own).spliced.tokens.special_ids == {99, 100}
        assert own.pad_token is None
        assert adapter(tokenizer=own).spliced.tokens.special_ids == {99, 100}


class TestRelease:
    def test_the_transcoders_of_gemma_scope_2_for_chats_and_no_others(self):
        from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

        dictionaries = [
            (release.release, rule.first)
            for release in get_pretrained_saes_directory().values()
            for id_ in release.saes_map
            if (rule := rule_of(release.release, id_)) is not None
        ]
        assert len(dictionaries) == 1859
        assert {first for _, first in dictionaries} == {4}
        assert all("-it-transcoders" in release for release, _ in dictionaries)

    @pytest.mark.parametrize(
        ("source", "id_", "first"),
        [
            ("google/gemma-scope-2-1b-it", "transcoder_all/layer_3_width_16k_l0_small", 4),
            ("gemma-scope-2-27b-it-transcoders", "transcoder/layer_16_width_16k_l0_big", 4),
            ("google/gemma-scope-2-1b-it", "resid_post/layer_13_width_16k_l0_big", None),
            ("google/gemma-scope-2-1b-pt", "transcoder_all/layer_3_width_16k_l0_small", None),
            ("gemma-scope-2-4b-pt-transcoders", "transcoder/layer_17_width_16k_l0_big", None),
        ],
    )
    def test_by_name(self, source, id_, first):
        rule = rule_of(source, id_)
        assert (None if rule is None else rule.first) == first

    @pytest.mark.parametrize(
        ("model", "version", "first"),
        [
            ("google/gemma-3-4b-it", None, 4),
            ("google/gemma-3-4b-pt", None, None),
            ("google/gemma-3-4b-it", "6.0", None),
        ],
    )
    def test_an_object_is_known_by_its_metadata(self, model, version, first):
        said = {"model_name": model, "sae_lens_training_version": version}
        sae = random_sae(WIDTH, "blocks.1.hook_mlp_in", "jumprelu_transcoder", hook_out="blocks.1.hook_mlp_out", **said)
        assert from_sae(sae, name="it").first_position == first

    def test_what_saelens_left_out_of_training(self):
        sae = random_sae(WIDTH, RESID, seqpos_slice=[3, None], context_size=128, exclude_special_tokens=[1, 40])
        lm = adapter(sae)
        (splice,) = lm.spliced.variant.splices
        assert splice.first_position == 3
        assert lm.spliced.variant.special_ids == {0, 1, 2, 40}
        everything = adapter(random_sae(WIDTH, RESID, exclude_special_tokens=True))
        assert everything.spliced.variant.special_ids == set(everything.tokenizer.all_special_ids)
        assert from_sae(random_sae(WIDTH, RESID, seqpos_slice=[None], context_size=128), name="").first_position is None

    def test_variants_share_a_control_only_where_it_is_the_same(self):
        it = "gemma-scope-2-1b-it-transcoders-all#layer_3_width_16k_l0_small"
        pt = "gemma-scope-2-1b-pt-transcoders-all#layer_3_width_16k_l0_small"
        controls = [variant for variant in variant_requests([it, pt], ["zero"]) if variant.control_of]
        assert [variant.control_of for variant in controls] == [(variant.control_of[0],) for variant in controls]
        assert len(controls) == 2


def spliced_by_hand(ids: torch.Tensor, first: int) -> torch.Tensor:
    """Logits of a row with the dictionary behind the second block, but at special tokens and the first positions."""
    model, sae = random_model("llama"), random_sae(WIDTH, RESID)
    kept = torch.isin(ids, torch.tensor([0, 1, 2])) | (torch.arange(ids.shape[1]) < first)
    with (
        torch.no_grad(),
        model.model.layers[1].register_forward_hook(lambda _m, _a, out: torch.where(kept[..., None], out, sae(out))),
    ):
        return model(ids, use_cache=False).logits


def ids_of(text: str) -> list[int]:
    return [int(word[1:]) for word in text.split()]


class TestFirstPositions:
    @pytest.mark.parametrize(
        ("splice_tokens", "first"), [("non_special", 4), ("non_special:2", 2), ("non_special:0", 0)]
    )
    def test_they_keep_their_activation(self, splice_tokens, first):
        lm = adapter(untrained(), splice_tokens=splice_tokens)
        ids = torch.tensor([[1, *ids_of(words(11, seed=3))]])
        assert torch.allclose(lm._model_call(ids), spliced_by_hand(ids, first), atol=1e-5)
        assert not torch.allclose(lm._model_call(ids), spliced_by_hand(ids, max(first, 1) + 1), atol=1e-2)
        assert lm.spliced.provenance()["splices"][0]["first_position"] == first
        assert lm.spliced.provenance()["splice_tokens"] == splice_tokens

    def test_all_splices_them(self):
        ids, everywhere = torch.tensor([[1, 5, 6, 7, 8]]), adapter(splice_tokens="all")
        assert torch.equal(adapter(untrained(), splice_tokens="all")._model_call(ids), everywhere._model_call(ids))

    def test_they_are_told_of_once(self, said):
        lm = adapter(untrained())
        lm.as_variant(requested_splices(untrained()))
        messages = [messages for messages in said() if "was not trained on" in messages]
        assert messages == [
            "it was not trained on the first 4 positions of a text: they keep their activation; splice_tokens=all "
            "splices them too."
        ]

    def test_of_several_dictionaries_each_keeps_its_own(self):
        other = load_dictionary(random_sae(WIDTH, "blocks.0.hook_resid_post", seed=1))
        lm = adapter([other, untrained()])
        assert [splice.first_position for splice in lm.spliced.variant.splices] == [0, FIRST]
        model, ids = random_model("llama"), torch.tensor([[1, 5, 6, 7, 8, 9]])
        outs = {}
        with torch.no_grad():
            for name, first, layer, dictionary in (("a", 1, 0, other), ("b", FIRST, 1, untrained())):
                kept = (torch.arange(6) < first)[:, None]
                outs[name] = model.model.layers[layer].register_forward_hook(
                    lambda _m, _a, out, kept=kept, d=dictionary: torch.where(kept, out, d.reconstruct(out))
                )
            expected = model(ids, use_cache=False).logits
        assert torch.allclose(lm._model_call(ids), expected, atol=1e-5)

    def test_in_forked_passes_that_share_prefixes_and_rows(self):
        lm, texts = adapter(untrained()), []
        for header in (2, 3, 9):
            start = ids_of(words(header, seed=header))
            texts += [start + ids_of(words(n, seed=10 * header + n)) for n in (1, 2, 3, 7)]
        scorer, by_number = lm.spliced.scorer([lm.spliced.variant]), {}
        scorer.score(ScoreRequest([Query([1, *ids[:-1]], ids) for ids in texts]), by_number.update)
        assert str(scorer.layout) == "sharing blocks and prefixes and rows"
        for number, ids in enumerate(texts):
            logprob = spliced_by_hand(torch.tensor([[1, *ids]]), FIRST).log_softmax(-1)[0, :-1]
            expected = logprob.gather(-1, torch.tensor(ids)[:, None])[:, 0].numpy()
            assert by_number[number].logprob[1] == pytest.approx(expected, abs=1e-4)

    def test_while_texts_are_generated_behind_padding_and_from_a_cache(self):
        lm = adapter(untrained())
        prompts = [words(n, seed=n) for n in (1, 3, 9)]  # padded on the left to the longest
        instances = [
            Instance("generate_until", {}, (p, {"until": ["</s>"], "max_gen_toks": 8}), i, ("t", i, 1))
            for i, p in enumerate(prompts)
        ]
        for prompt, written in zip(prompts, lm.generate_until(instances, disable_tqdm=True), strict=True):
            ids = ids_of(prompt)
            while len(ids) < len(prompt.split()) + 8 and ids[-1] != lm.tokenizer.eos_token_id:
                ids.append(int(spliced_by_hand(torch.tensor([ids]), FIRST)[0, -1].argmax()))
            assert written == lm.tok_decode(ids[len(prompt.split()) :])

    def test_in_talk(self):
        model = Model({"pretrained": random_model("llama"), "tokenizer": word_tokenizer(), "sae": untrained()})
        answer = Conversation(model, Sampling(max_new_tokens=8)).answer("w5 w6").answers[1]
        ids = list(answer.prompt)
        for token in answer.ids:
            assert token == int(spliced_by_hand(torch.tensor([ids]), FIRST)[0, -1].argmax())
            ids.append(token)
        assert model.provenance["variants"]["it"][0]["first_position"] == FIRST

    @pytest.mark.parametrize("positions", ["all", "non_special"])
    def test_fidelity_counts_where_the_dictionary_is_spliced_in(self, positions):
        texts = [words(n, seed=n) for n in (2, 20, 33)]
        source = TextSource("test", (words(30, seed=70),), positions)
        lm = adapter(untrained())
        requests = [Instance("sae_fidelity", {}, (t, None, source), 0, ("f", i, 1)) for i, t in enumerate(texts)]  # pyright: ignore[reportArgumentType]
        records = lm.sae_fidelity(requests, disable_tqdm=True)
        counted = [max(0, len(text.split()) - FIRST) for text in texts]
        assert [record["dictionaries"][RESID]["positions"] for record in records] == counted
        for record, text in zip(records, texts, strict=True):
            ids = torch.tensor([[1, *ids_of(text)]])
            logprob = spliced_by_hand(ids, FIRST).log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
            start = 0 if positions == "all" else FIRST
            assert record["tokens"] == len(logprob[start:])
            assert record["nll_spliced"] == pytest.approx(-float(logprob[start:].sum()), abs=1e-3)
        assert lm.fidelity.by_task["f"]["first_positions_counted"] == {RESID: FIRST}

    def test_ablations_apart_and_together_are_the_same(self, monkeypatch):
        texts = [words(n, seed=n) for n in (2, 20, 33)]
        source = TextSource("test", (words(30, seed=70),))
        requests = [Instance("sae_fidelity", {}, (t, None, source), 0, ("f", i, 1)) for i, t in enumerate(texts)]  # pyright: ignore[reportArgumentType]
        tried = []
        from sae_lm_eval.fidelity import measure

        leave = measure.leave_no_text
        monkeypatch.setattr(measure, "leave_no_text", lambda *a: tried.append(leave(*a)) or tried[-1])
        apart = adapter(untrained()).sae_fidelity(requests, disable_tqdm=True)
        monkeypatch.setattr(measure, "leave_no_text", lambda *_: False)
        together = adapter(untrained()).sae_fidelity(requests, disable_tqdm=True)
        assert tried == [True]
        for name in ("nll_zero", "nll_mean"):
            assert [r[name] for r in apart] == pytest.approx([r[name] for r in together], abs=1e-3)

    def test_the_mean_is_of_positions_that_are_spliced(self, tmp_path):
        path, text = tmp_path / "mean.txt", words(20, seed=4)
        path.write_text(text)
        (splice,) = adapter(untrained(), splice="mean", mean_text=str(path)).spliced.variant.splices
        model = random_model("llama")
        with torch.no_grad():
            hidden = model(torch.tensor([[1, *ids_of(text)]]), output_hidden_states=True).hidden_states[2][0]
        assert splice.mean is not None
        assert np.allclose(splice.mean, hidden[FIRST:].mean(0), atol=1e-5)

    def test_mistakes_are_told(self):
        with pytest.raises(UserError, match="non_special: takes the number of first positions to keep"):
            adapter(splice_tokens="non_special:some")
        with pytest.raises(
            UserError, match=r"splice_tokens 'all:3' is unknown\. Did you mean 'all'\? Choose from non_special, all\."
        ):
            adapter(splice_tokens="all:3")
