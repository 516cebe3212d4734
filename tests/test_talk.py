"""What columns write in turns, and what each predicts at the tokens of one text."""

from __future__ import annotations

import io
import random
import signal
from contextlib import nullcontext
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from models import CONTEXT, WIDTH, random_ids, random_model, random_sae, word_tokenizer, words
from rich.console import Console
from scipy.special import rel_entr, softmax
from scipy.stats import chisquare

from sae_lm_eval import UserError
from sae_lm_eval.scoring.parting import parting
from sae_lm_eval.splicing.attach import attached
from sae_lm_eval.talk import token_kl as token_view
from sae_lm_eval.talk.chosen import Sampling
from sae_lm_eval.talk.conversation import Conversation, Model, exchange_record
from sae_lm_eval.talk.sampling import AnswerColumn, Continuation, Writers, next_logits
from sae_lm_eval.talk.side_by_side import Columns
from sae_lm_eval.talk.token_kl import kl_divergence
from sae_lm_eval.world import text

RESID = "blocks.1.hook_resid_post"
ARCHITECTURES = ("llama", "gpt2", "gpt_neo", "mistral", "gemma3", "gemma3_multimodal")
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"


def small(name: str = "llama", architecture: str = "standard", *saes: Any, **model_args: Any) -> Model:
    arguments = {"pretrained": random_model(name), "tokenizer": word_tokenizer(), **model_args}
    return Model({**arguments, "sae": random_sae(WIDTH, RESID, architecture)}, saes)


def world(*ks: str, **model_args: Any) -> Model:
    first, *others = (f"world#blocks.2.hook_resid_post.{k}" for k in ks)
    return Model({"pretrained": "world", "sae": first, **model_args}, others)


@pytest.fixture(scope="module")
def the_world() -> Model:
    return world("k4", "k32")


def hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def write(model: Model, prompt: list[int], sampling: Sampling, stop: frozenset[int] = frozenset()) -> list[list[int]]:
    texts = model.writers.write([prompt] * len(model.columns), sampling, stop_ids=stop)
    return [written.ids for written in texts]


class TestGeneration:
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_the_mode_none_writes_what_the_baseline_writes(self, temperature):
        model = world("k4", splice="none")
        for document in islice(text.documents(random.Random(3)), 4):
            prompt = model.tokens.encode(document.text)[:9]
            baseline, none = write(model, prompt, Sampling(temperature, 1, 30))
            assert none == baseline

    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_greedy_is_what_transformers_generates(self, name):
        model = small(name)
        prompt = random_ids(1, 12)[0].tolist()
        baseline, spliced = write(model, prompt, Sampling(max_new_tokens=20))
        ids = torch.tensor([prompt])
        options = {"do_sample": False, "max_new_tokens": 20, "eos_token_id": None, "pad_token_id": 0}
        assert model.model.generate(ids, **options)[0, len(prompt) :].tolist() == baseline
        with model.variants[0].attached():
            assert model.model.generate(ids, **options)[0, len(prompt) :].tolist() == spliced
        assert spliced != baseline

    @pytest.mark.parametrize(
        ("name", "architecture"), [*((n, "standard") for n in ARCHITECTURES), ("llama", "temporal")]
    )
    def test_steps_equal_reading_the_whole_text_anew(self, name, architecture):
        model = small(name, architecture)
        for column in model.columns:
            step = Continuation(column, random_ids(1, 12)[0].tolist())
            for token in random_ids(1, 10, seed=1)[0].tolist():
                whole = Continuation(column, step.prompt + step.ids)
                torch.testing.assert_close(next_logits(model.model, step), next_logits(model.model, whole))
                step.ids.append(token)
        assert model.variants[0].variant.sequential == (architecture == "temporal") == (step.cache is None)

    def test_equal_columns_never_part_and_the_seed_decides(self):
        model = small()
        columns = [AnswerColumn("a", model.variants[0].variant), AnswerColumn("b", model.variants[0].variant)]
        written = []
        for seed in (0, 0, 1):
            sampling = Sampling(1.5, seed, 20)
            writers = Writers(model.lm.loaded, columns)
            a, b = (text.ids for text in writers.write([[1, 5, 6]] * 2, sampling, stop_ids=frozenset()))
            assert a == b
            written.append(a)
        assert written[0] == written[1] != written[2]

    def test_first_tokens_are_drawn_from_the_softmax_at_the_temperature(self):
        model, prompt, temperature = small(), [1, 5, 6], 2.0
        with torch.no_grad():
            logits = model.model(torch.tensor([prompt])).logits[0, -1]
        drawn = [write(model, prompt, Sampling(temperature, seed, 1))[0][0] for seed in range(600)]
        likely = logits.topk(5).indices.tolist()
        expected = (logits / temperature).softmax(-1)[likely].double().tolist()
        counts = [*(drawn.count(token) for token in likely), sum(token not in likely for token in drawn)]
        assert chisquare(counts, 600 * np.array([*expected, 1 - sum(expected)])).pvalue > 0.01

    def test_columns_of_a_chat_write_behind_prompts_of_their_own(self):
        """Together as each by itself, in the order of the columns, of which one reads the whole text anew."""
        arguments = {"pretrained": random_model("llama"), "tokenizer": word_tokenizer()}
        saes = [
            random_sae(WIDTH, RESID),
            random_sae(WIDTH, "blocks.0.hook_resid_post", "temporal"),
            random_sae(WIDTH, RESID, "topk"),
        ]
        model = Model({**arguments, "sae": saes[0]}, saes[1:])
        prompts = [random_ids(1, 6 + n, seed=n)[0].tolist() for n in range(3)]
        prompts.append(prompts[1])
        order: list[str] = []

        def watch(texts: list[Continuation]) -> bool:
            order.append("".join(str(len(text.ids)) for text in texts))
            return True

        texts = model.writers.write(prompts, Sampling(max_new_tokens=8), stop_ids=frozenset(), watch=watch)
        options = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 0}
        for written, prompt, spliced in zip(texts, prompts, [None, *model.variants], strict=True):
            ids = torch.tensor([prompt])
            with nullcontext() if spliced is None else spliced.generating(ids):
                assert model.model.generate(ids, **options)[0, len(prompt) :].tolist() == written.ids
        assert order == [*(f"{n}{n}0{n}" for n in range(1, 9)), *(f"88{n}8" for n in range(1, 9))]

    def test_a_model_that_cannot_decode_several_at_once_writes_in_turns(self, monkeypatch, caplog):
        model, prompt = small(), random_ids(1, 12)[0].tolist()
        together = write(model, prompt, Sampling(0.7, 3, 12))
        model.set_splice("reconstruction")

        def refuse(_decoder: Any) -> None:
            raise ValueError("its layers keep a state")

        monkeypatch.setattr("sae_lm_eval.scoring.decoding_trial.check_decoding", refuse)
        assert write(model, prompt, Sampling(0.7, 3, 12)) == together
        assert "Texts are generated for each variant by itself: its layers keep a state." in caplog.text

    def test_each_column_ends_at_a_stop_token_or_for_want_of_room(self):
        model = small()
        prompt = random_ids(1, 12)[0].tolist()
        baseline, _ = write(model, prompt, Sampling(max_new_tokens=20))
        stop = frozenset([baseline[4]])
        stopped, _ = write(model, prompt, Sampling(max_new_tokens=20), stop)
        assert stopped == baseline[: baseline.index(baseline[4]) + 1]
        assert len(write(model, prompt, Sampling(max_new_tokens=1000))[0]) == CONTEXT - len(prompt)

    def test_a_prompt_without_room_is_told_of(self):
        with pytest.raises(
            UserError, match=f"The prompt is {CONTEXT} tokens long, and the model reads at most {CONTEXT}"
        ):
            write(small(), [5] * CONTEXT, Sampling())

    def test_an_interrupted_step_leaves_no_hook(self):
        model = small()
        before = hooks(model.model)

        def interrupt(*_: Any) -> None:
            if hooks(model.model) > before + 1:  # while the variant runs
                raise KeyboardInterrupt

        handle = model.model.lm_head.register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            write(model, [1, 5, 6], Sampling())
        handle.remove()
        assert hooks(model.model) == before

    def test_nan_is_told_of(self):
        model = small()
        model.model.lm_head.weight[:] = torch.nan
        with pytest.raises(UserError, match="The logits of 'baseline' are nan after 0 tokens"):
            write(model, [1, 5, 6], Sampling())


@pytest.mark.parametrize(
    ("ids", "others", "index"),
    [([1, 2, 3], [1, 2, 3], None), ([1, 2, 3], [1, 5, 3], 1), ([1, 2], [1, 2, 3], None), ([1], [2], 0), ([], [], None)],
)
def test_parting(ids, others, index):
    assert parting(ids, others) == index == parting(others, ids)


class TestTokenView:
    def test_the_kl_of_none_is_exactly_zero(self):
        model = world("k4", splice="none")
        ids = model.tokens.encode(next(text.documents(random.Random(0))).text)
        assert {place.kl for place in token_view.token_view(model.model, model.variant_columns, ids, 1)} == {(0.0,)}

    def test_it_is_what_a_plain_forward_pass_and_scipy_say(self, the_world):
        model = the_world
        ids = model.tokens.encode(next(text.documents(random.Random(0))).text)
        row = torch.tensor([ids])
        with torch.no_grad():
            p = model.model(row).logits[0].double().softmax(-1).numpy()
            qs = []
            for variant in (spliced.variant for spliced in model.variants):
                with attached(model.model, variant):
                    qs.append(model.model(row).logits[0].double().softmax(-1).numpy())
        places = token_view.token_view(model.model, model.variant_columns, ids, 1)
        assert [place.token for place in places] == ids[1:]
        for i, place in enumerate(places):
            assert place.kl == pytest.approx([rel_entr(p[i], q[i]).sum() for q in qs], abs=1e-5)
            assert place.baseline.probability == pytest.approx(p[i, ids[i + 1]], abs=1e-5)
            top, probabilities = zip(*place.variants[0].top, strict=True)
            assert probabilities == pytest.approx(np.sort(qs[0][i])[:-6:-1], abs=1e-5)
            assert probabilities == pytest.approx(qs[0][i][list(top)], abs=1e-5)
        assert max(place.kl[0] for place in places) > max(place.kl[1] for place in places) > 0

    def test_pieces_and_the_start_change_nothing(self, monkeypatch):
        model = small()
        ids = random_ids(1, 40)[0].tolist()
        whole = token_view.token_view(model.model, model.variant_columns, ids, 1)
        assert token_view.token_view(model.model, model.variant_columns, ids, 30) == whole[29:]
        monkeypatch.setattr(token_view, "PIECE", 7)
        in_pieces = token_view.token_view(model.model, model.variant_columns, ids, 1)
        assert [p.kl[0] for p in in_pieces] == pytest.approx([p.kl[0] for p in whole], rel=1e-5)
        assert token_view.token_view(model.model, model.variant_columns, ids, 40) == []

    def test_what_the_baseline_excludes_adds_nothing(self):
        p, q = torch.tensor([[0.0, -torch.inf, 0.0]]), torch.tensor([[1.0, -torch.inf, 0.0]])
        expected = rel_entr([0.5, 0.5], softmax([1.0, 0.0])).sum()
        assert kl_divergence(p, q) == pytest.approx([expected])

    def test_the_first_token_is_not_predicted(self):
        with pytest.raises(ValueError, match="the first token is not predicted"):
            token_view.token_view(random_model("llama"), [], [1, 2], 0)


class TestModel:
    def test_columns_are_the_baseline_and_each_variant(self, the_world):
        names = [column.name for column in the_world.columns]
        assert names == ["baseline", "world#blocks.2.hook_resid_post.k4", "world#blocks.2.hook_resid_post.k32"]

    def test_another_mode_makes_other_variants_and_an_unknown_one_none(self):
        model = world("k4")
        before = model.variants
        with pytest.raises(UserError, match=r"splice 'zer' is unknown\. Did you mean 'zero'\?"):
            model.set_splice("zer")
        with pytest.raises(UserError, match="splice=mean needs the text it averages"):
            model.set_splice("mean")
        assert model.variants == before
        assert model.variants[0].choices.splice == "reconstruction"
        model.set_splice("zero")
        assert [s.mode for s in model.variants[0].variant.splices] == ["zero"]
        assert model.columns[1].name.endswith(" (zero)")
        assert model.provenance["splice"] == "zero"

    @pytest.mark.parametrize(("ks", "adds"), [((), False), (("k4",), True)])
    def test_a_bos_token_is_added_where_one_dictionary_was_trained_behind_one(self, ks, adds, tmp_path):
        random_sae(128, "blocks.2.hook_resid_post").save_model(str(tmp_path))
        saes = [f"world#blocks.2.hook_resid_post.{k}" for k in ks]
        model = Model({"pretrained": "world", "sae": str(tmp_path)}, saes)
        assert (model.encode("the", [])[0] == model.tokens.tokenizer.bos_token_id) is adds

    def test_the_mean_is_of_the_text_that_was_named(self, tmp_path):
        (tmp_path / "text.txt").write_text(" ".join(d.text for d in islice(text.documents(random.Random(0)), 9)))
        model = world("k4", "k32", splice="mean", mean_text=str(tmp_path / "text.txt"), mean_tokens=200)
        first, second = (spliced.variant.splices[0].mean for spliced in model.variants)
        torch.testing.assert_close(first, second)
        model.set_splice("reconstruction")
        assert model.provenance["mean"] is None
        model.set_splice("mean")
        torch.testing.assert_close(model.variants[0].variant.splices[0].mean, first)

    def test_a_variant_that_wants_a_bos_token_gets_it_for_all(self):
        arguments = {"pretrained": random_model("llama"), "tokenizer": word_tokenizer()}
        wants = random_sae(WIDTH, RESID, prepend_bos=True)
        model = Model({**arguments, "sae": random_sae(WIDTH, "blocks.0.hook_resid_post")}, [wants])
        assert model.encode("w5", []) == [1, 5]

    @pytest.mark.parametrize(
        ("arguments", "saes", "sentence"),
        [
            (
                {"pretrained": "world"},
                [],
                "Name a dictionary: sae=SPEC in --model_args, or --sae SPEC for each variant.",
            ),
            ({"pretrained": "world"}, ["world#a", "world#a"], "world#a is given twice: each variant is a column"),
        ],
    )
    def test_mistakes(self, arguments, saes, sentence):
        with pytest.raises(UserError) as error:
            Model(arguments, saes)
        assert str(error.value).startswith(sentence)


class TestConversation:
    def chat(self) -> Model:
        tokenizer = word_tokenizer()
        tokenizer.chat_template = TEMPLATE
        return small(tokenizer=tokenizer)

    def test_a_plain_prompt_stands_alone(self, the_world):
        conversation = Conversation(the_world, Sampling(max_new_tokens=8))
        first, again = conversation.answer("The pet of"), conversation.answer("The pet of")
        assert first == again
        assert first.answers[0].prompt == tuple(the_world.tokens.encode("The pet of"))
        assert first.answers[0].text.startswith(" Lotte ")

    def test_chat_columns_go_on_from_their_own_answers(self):
        conversation = Conversation(self.chat(), Sampling(max_new_tokens=4), system="w9")
        first = conversation.answer("w5 w6")
        second = conversation.answer("w7")
        for before, after in zip(first.answers, second.answers, strict=True):
            decoded = conversation.model.decode(after.prompt).split()
            assert " ".join(decoded).endswith("w7")
            assert before.text.split() == decoded[-2 - len(before.text.split()) : -2]
        assert first.answers[0].text != first.answers[1].text

    def test_a_system_prompt_needs_a_template(self, the_world):
        with pytest.raises(UserError, match="A system prompt needs a chat template, and world is read as plain text"):
            Conversation(the_world, Sampling(), system="Be kind.")

    def test_an_empty_prompt_begins_with_the_prefix(self):
        assert small().encode("", []) == [1]

    def test_text_is_written_without_special_tokens(self, the_world):
        answer = Conversation(the_world, Sampling(max_new_tokens=60)).answer("The pet of Lotte").answers[0]
        assert answer.ended == "end of text"
        assert answer.ids[-1] == the_world.tokens.tokenizer.eos_token_id
        assert "</s>" not in answer.text

    def test_what_lies_beyond_the_trained_context_is_counted(self):
        arguments = {"pretrained": random_model("llama"), "tokenizer": word_tokenizer()}
        model = Model({**arguments, "sae": random_sae(WIDTH, RESID, context_size=16)})
        exchange = Conversation(model, Sampling(max_new_tokens=10)).answer(words(10, seed=0))
        longest = max(len(answer.prompt) + len(answer.ids) for answer in exchange.answers)
        assert exchange.beyond == longest - 16 > 0

    def test_a_record_says_what_it_depends_on(self, the_world):
        exchange = Conversation(the_world, Sampling(0.5, 3, 12)).answer("Otto Brink owns a")
        line = exchange_record(exchange)
        assert (line["temperature"], line["seed"], line["max_new_tokens"]) == (0.5, 3, 12)
        baseline, *others = line["answers"]
        assert [a["parted"] for a in others] == [parting(baseline["tokens"], a["tokens"]) for a in others]
        described = line["provenance"]["variants"]["world#blocks.2.hook_resid_post.k4"]
        assert described[0]["writes"] == "model.layers.2.output"
        assert line["provenance"]["packages"]["torch"] == torch.__version__

    def test_a_prompt_that_is_no_text(self, the_world):
        with pytest.raises(UserError, match="is not text in UTF-8: surrogates not allowed"):
            Conversation(the_world, Sampling()).answer("a\ud800")


def test_a_column_without_a_token_has_written_nothing_yet():
    tokenizer = word_tokenizer()
    tokenizer.chat_template = TEMPLATE
    arguments = {"pretrained": random_model("llama"), "tokenizer": tokenizer}
    model = Model({**arguments, "sae": random_sae(WIDTH, RESID, "temporal")})
    conversation = Conversation(model, Sampling(max_new_tokens=4))
    exchange = conversation.answer("w5", lambda texts: False)
    assert [len(answer.ids) for answer in exchange.answers] == [1, 0]
    console = Console(width=90, file=io.StringIO(), record=True)
    console.print(Columns(model.decode, exchange.answers).table(console))
    assert "nothing yet" in (text := console.export_text())
    assert "as the baseline" not in text
    assert [len(messages) for messages in conversation.messages] == [2, 0]


def test_ctrl_c_ends_the_answer_after_the_step(the_world, monkeypatch):
    from sae_lm_eval.talk import terminal

    conversation = Conversation(the_world, Sampling(max_new_tokens=40))
    before, handler = hooks(the_world.model), signal.getsignal(signal.SIGINT)
    answer = conversation.answer

    def interrupted_at_the_third_turn(prompt: str, watch: Any):
        def watch_and_interrupt(texts: list[Continuation]) -> bool:
            if len(texts[0].ids) == 3:
                signal.raise_signal(signal.SIGINT)
            return watch(texts)

        return answer(prompt, watch_and_interrupt)

    monkeypatch.setattr(conversation, "answer", interrupted_at_the_third_turn)
    exchange = terminal.show(conversation, "The pet of", Console(quiet=True))
    assert [len(answer.ids) for answer in exchange.answers] == [3, 3, 3]
    assert [answer.ended for answer in exchange.answers] == [None] * 3
    assert hooks(the_world.model) == before
    assert signal.getsignal(signal.SIGINT) is handler
    with terminal.interruptible() as interrupted:
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
