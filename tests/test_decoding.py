"""Texts written together are those that each model writes by itself, one token after the other and without a cache."""

from __future__ import annotations

import contextlib
import random
import weakref

import pytest
import torch
import transformers
from models import ARCHITECTURES, CONTEXT, VOCABULARY, WIDTH, random_model, random_sae

from sae_lm_eval.dictionaries.loading import load_dictionary
from sae_lm_eval.runtime.journal import Journal
from sae_lm_eval.scoring import decoding, decoding_trial, prefill, row_cache
from sae_lm_eval.scoring.decoding import Decoder
from sae_lm_eval.scoring.drafts import Ending
from sae_lm_eval.scoring.memory import in_pieces
from sae_lm_eval.scoring.row_cache import KeysValues
from sae_lm_eval.scoring.shared_texts import SharedTexts, UndefinedLogits
from sae_lm_eval.scoring.token_sampler import TokenSampler
from sae_lm_eval.splicing.attach import attached
from sae_lm_eval.splicing.variants import Choices, build_variant, place_dictionaries

SPECIAL = frozenset({0, 1, 2})
EOS = frozenset({4, 10, 20, 30, 33, 40, 50, 60, 61, 62})


def variant(model, *hooks, mode="reconstruction", architecture="standard", seed=0):
    dictionaries = [
        load_dictionary(random_sae(WIDTH, hook, architecture, seed=seed + i)) for i, hook in enumerate(hooks)
    ]
    built = build_variant(model, dictionaries, Choices(mode), SPECIAL)
    place_dictionaries(model, built)
    return built


def variants_of_every_kind(model):
    return [
        variant(model, "blocks.1.hook_resid_pre"),
        variant(model, "blocks.2.hook_resid_post", architecture="topk"),
        variant(model, "blocks.0.hook_mlp_out", "blocks.2.hook_resid_pre", seed=3),
        variant(model, "blocks.1.hook_attn_out", mode="random_error", seed=5),
        variant(model, "hook_embed", seed=9),
    ]


@pytest.fixture(autouse=True)
def short_prefixes(monkeypatch):
    monkeypatch.setattr(prefill, "CAPACITY", 30)
    monkeypatch.setattr(row_cache, "ROOM", 5)


@pytest.fixture
def prompts() -> list[list[int]]:
    """Behind two headers, behind none, a header itself, one token alone, and one that is asked twice."""
    numbers = random.Random(0)

    def some(count):
        return [numbers.randrange(3, VOCABULARY) for _ in range(count)]

    headers = [[1, *some(30)] for _ in range(2)]
    behind = [header + some(numbers.randrange(9)) for header in headers for _ in range(5)]
    return [*behind, headers[0], [5], [7, 8], behind[0]]


@torch.no_grad()
def alone(model, which, prompt, length):
    ids = []
    with contextlib.nullcontext() if which is None else attached(model, which):
        while not ids or not Ending(length, EOS).reached(ids):
            ids.append(int(model(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0, -1].argmax()))
    return ids


def written(decoder, prompts, length=10, **kwargs):
    texts = {}
    decoder.generate(prompts, Ending(length, EOS), lambda i, model, ids: texts.update({(i, model): ids}), **kwargs)
    return texts


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_texts_are_those_of_each_model_by_itself(architecture, prompts):
    model = random_model(architecture)
    models = [None, *variants_of_every_kind(model)]
    decoder = Decoder(model, models, rows=20, limit=CONTEXT)
    decoding_trial.check_decoding(decoder)
    texts = written(decoder, prompts)
    assert len(texts) == len(prompts) * len(models)
    assert len({len(ids) for ids in texts.values()}) > 2
    for (number, which), ids in texts.items():
        assert ids == alone(model, models[which], prompts[number], 10)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_a_variant_alone(rows, prompts):
    model = random_model("llama")
    each = variant(model, "blocks.1.hook_resid_pre")
    texts = written(Decoder(model, [each], rows=rows, limit=CONTEXT), prompts)
    assert texts == {(i, 0): alone(model, each, prompt, 10) for i, prompt in enumerate(prompts)}


def test_what_is_known_is_not_written(prompts):
    model = random_model("llama")
    decoder = Decoder(model, [None, variant(model, "blocks.1.hook_resid_pre")], rows=8, limit=CONTEXT)
    texts = written(decoder, prompts)
    finished = {key for key in texts if sum(key) % 3}
    assert written(decoder, prompts, finished=finished) == {
        key: ids for key, ids in texts.items() if key not in finished
    }


class TestMemory:
    def test_batches_are_halved_where_it_runs_out(self, prompts, monkeypatch, caplog):
        model = random_model("llama")
        decoder = Decoder(model, [None, variant(model, "blocks.1.hook_resid_pre")], rows=16, limit=CONTEXT)
        texts = written(decoder, prompts)
        forward, sizes = type(decoder.head.trunk).forward, []

        def small(self, input_ids, **kwargs):
            if len(input_ids) > 3:
                raise RuntimeError("CUDA out of memory.")
            sizes.append(len(input_ids))
            return forward(self, input_ids=input_ids, **kwargs)

        monkeypatch.setattr(type(decoder.head.trunk), "forward", small)
        decoder = Decoder(model, decoder.models, rows=16, limit=CONTEXT)
        assert written(decoder, prompts) == texts
        assert max(sizes) == 3 or decoder.rows <= 3

    @pytest.mark.parametrize("most", [1, 2, 5])
    def test_texts_are_the_same_where_a_batch_cannot_be_arranged(self, prompts, monkeypatch, most):
        model = random_model("llama")
        models = [None, variant(model, "blocks.1.hook_resid_pre"), variant(model, "blocks.2.hook_resid_pre")]
        texts = written(Decoder(model, models, rows=16, limit=CONTEXT), prompts)
        arranged, calls = row_cache._arranged, [0]

        def small(pieces):
            calls[0] += 1
            if len(pieces) > most and calls[0] % 3 == 0:  # in the last of three layers
                raise RuntimeError("CUDA out of memory.")
            return arranged(pieces)

        monkeypatch.setattr(row_cache, "_arranged", small)
        decoder = Decoder(model, models, rows=16, limit=CONTEXT)
        assert written(decoder, prompts) == texts
        assert decoder.rows < 16

    def test_rows_of_one_model_behind_one_beginning_stand_together(self, prompts, monkeypatch):
        """Also where some texts are known, so that prompts are run for different models."""
        model = random_model("llama")
        decoder = Decoder(model, [None, variant(model, "blocks.1.hook_resid_pre")], rows=40, limit=CONTEXT)
        arrange, seen = row_cache.RowCache.arrange, []

        def noted(cache, rows):
            arrange(cache, rows)
            shared = [s.prefix for s in cache.segments[-1] if s.prefix is not None] if cache.lengths else []
            seen.append((len(shared), len(set(map(id, shared)))))

        monkeypatch.setattr(row_cache.RowCache, "arrange", noted)
        monkeypatch.setattr(prefill, "CAPACITY", 8)
        behind = prompts[:11]
        finished = {(number, 1) for number in range(0, 11, 2)}
        decoder.generate(behind, Ending(4), lambda *_: None, finished=finished)
        assert max(seen)[0] > 2
        assert all(segments == prefixes for segments, prefixes in seen)

    def test_states_are_held_once(self, prompts):
        """Of a batch that has been arranged nothing is left where it comes from."""

        class Result:
            pass

        pieces = in_pieces([1, 2], lambda _items: 1, lambda _items: Result(), lambda _items, _most: None)
        result = weakref.ref(next(pieces))
        assert result() is None
        states = [KeysValues(torch.ones(2, 3, 4), torch.ones(2, 3, 4)) for _ in range(2)]
        row_cache.RowCache().arrange([states])
        assert states == [None, None]

    def test_a_row_that_does_not_fit_is_told(self, prompts, monkeypatch):
        model = random_model("llama")
        decoder = Decoder(model, [None], rows=4, limit=CONTEXT)

        def none(*_args, **_kwargs):
            raise RuntimeError("CUDA out of memory.")

        monkeypatch.setattr(type(decoder.head.trunk), "forward", none)
        with pytest.raises(RuntimeError, match="out of memory"):
            written(decoder, prompts)

    def test_a_batch_is_as_large_as_what_is_free(self, prompts, monkeypatch):
        model = random_model("llama")
        decoder = Decoder(model, [None], rows=100, limit=CONTEXT)
        a_row = max(map(len, prompts)) + 10
        heads, width, layers, kinds, size = 2, WIDTH // 4, 3, 2, 4
        monkeypatch.setattr(
            decoding, "free_memory", lambda _device: 2 * 5 * a_row * heads * width * layers * kinds * size
        )
        written(decoder, prompts)
        assert decoder.rows == 5


class TestDrawing:
    def test_draws_depend_on_the_request_and_the_step_alone(self, prompts):
        model = random_model("llama")
        models = [None, variant(model, "blocks.1.hook_resid_pre")]
        keys = [b"%d" % i for i in range(len(prompts))]
        warped = TokenSampler(lambda logits: logits / 0.7, seed=3)
        once, again, other = (
            written(Decoder(model, models, rows=rows, limit=CONTEXT), prompts, sampling=sampling, keys=keys)
            for rows, sampling in ((4, warped), (50, warped), (4, TokenSampler(warped.warped, seed=4)))
        )
        assert once == again
        assert once != other
        assert once[0, 0] != once[len(prompts) - 1, 0]  # the same prompt, asked twice

    def test_draws_are_from_the_softmax(self):
        logits = torch.tensor([[1.0, 0.0, -1.0, 2.0]])
        drawn = [TokenSampler(lambda x: x).choose(logits, [b"%d" % i], [0])[0] for i in range(4000)]
        counts = torch.bincount(torch.tensor(drawn), minlength=4) / len(drawn)
        torch.testing.assert_close(counts, logits[0].softmax(-1), atol=0.03, rtol=0)


class TestWhatIsRefused:
    def test_nan(self, prompts):
        model = random_model("llama")
        broken = variant(model, "blocks.1.hook_resid_pre")
        with torch.no_grad():
            broken.splices[0].dictionary.module.b_dec.fill_(torch.nan)
        texts = written(Decoder(model, [None, broken], rows=8, limit=CONTEXT), prompts)
        assert all(texts[i, 1] is None for i in range(len(prompts)))
        assert all(texts[i, 0] == alone(model, None, prompt, 10) for i, prompt in enumerate(prompts))
        shared = SharedTexts(Decoder(model, [None, broken], rows=8, limit=CONTEXT), None, ["a", "b"])
        kept = {}
        shared.write(prompts, Ending(10, EOS), TokenSampler(), ["greedy"] * len(prompts), 0, kept.__setitem__)
        assert len(kept) == len(prompts)
        with pytest.raises(UndefinedLogits):
            shared.write(prompts, Ending(10, EOS), TokenSampler(), ["greedy"] * len(prompts), 1, kept.__setitem__)

    @pytest.mark.parametrize("prompt", [[], [5] * CONTEXT])
    def test_a_prompt_without_room(self, prompt):
        decoder = Decoder(random_model("llama"), [None], rows=8, limit=CONTEXT)
        with pytest.raises(ValueError, match="no room"):
            written(decoder, [prompt])

    def test_a_model_without_keys_and_values(self):
        torch.manual_seed(0)
        config = transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=3, state_size=4)
        model = transformers.MambaForCausalLM(config).eval()
        with pytest.raises(ValueError, match="Mamba"):
            decoding_trial.check_decoding(Decoder(model, [None], rows=8, limit=CONTEXT))


def test_texts_are_kept_for_every_model(prompts, monkeypatch):
    model = random_model("llama")
    models = [None, variant(model, "blocks.1.hook_resid_pre")]
    journal = Journal()
    request = (prompts, Ending(10, EOS), TokenSampler(), ["greedy"] * len(prompts))
    texts, recalled = ({}, {}), ([], [])
    for which in (0, 1):
        shared = SharedTexts(Decoder(model, models, rows=8, limit=CONTEXT), journal, ["a", "b"])
        shared.write(*request, which, texts[which].__setitem__, recalled[which].append)
        monkeypatch.setattr(Decoder, "generate", None)
    assert recalled == ([], [*range(len(prompts))])
    for which in (0, 1):
        assert texts[which] == {i: alone(model, models[which], prompt, 10) for i, prompt in enumerate(prompts)}


class TestSharedPrefixes:
    """Rows behind one header attend to one copy of it."""

    @pytest.fixture
    def storages(self, monkeypatch) -> list[int]:
        """Tokens of the longest row, each time when rows are arranged."""
        arrange, lengths = row_cache.RowCache.arrange, []

        def noted(cache, rows):
            arrange(cache, rows)
            lengths.append(max(cache.lengths, default=0))

        monkeypatch.setattr(row_cache.RowCache, "arrange", noted)
        return lengths

    @staticmethod
    def texts_and_truth(model, prompts, **kwargs):
        models = [None, *variants_of_every_kind(model)]
        decoder = Decoder(model, models, rows=50, limit=CONTEXT)
        decoding_trial.check_decoding(decoder)
        kwargs.get("storages", []).clear()
        truth = {
            (i, which): alone(model, each, prompt, 10)
            for i, prompt in enumerate(prompts)
            for which, each in enumerate(models)
        }
        return written(decoder, prompts), truth

    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    @pytest.mark.parametrize("architecture", ["gpt2", "qwen3", "llama"])
    def test_no_row_has_a_copy(self, architecture, implementation, prompts, storages):
        model = random_model(architecture)
        model.set_attn_implementation(implementation)
        behind = prompts[:11]  # each begins with a header of 31 tokens
        texts, truth = self.texts_and_truth(model, behind, storages=storages)
        assert texts == truth
        assert max(storages) < 31
        assert model.config._attn_implementation == implementation

    @pytest.mark.parametrize(("window", "has_copies"), [(CONTEXT, False), (40, True)])
    def test_a_window_that_leaves_tokens_out(self, window, has_copies, prompts, storages):
        model = random_model("gemma2")  # whose scores are capped as well
        for module in model.modules():
            if getattr(module, "sliding_window", None) is not None:
                module.sliding_window = window
        model.config.sliding_window = window
        texts, truth = self.texts_and_truth(model, prompts[:11], storages=storages)
        assert texts == truth
        assert (max(storages) > 31) == has_copies

    def test_attention_of_another_kind_gets_copies(self, prompts, storages):
        model = random_model("llama")

        def with_sinks(module, *args, **kwargs):
            return type(module).forward(module, *args, **kwargs, s_aux=torch.zeros(1))

        for block in model.model.layers:
            block.self_attn.forward = with_sinks.__get__(block.self_attn)
        texts, truth = self.texts_and_truth(model, prompts[:11], storages=storages)
        assert texts == truth
        assert max(storages) > 31

    def test_a_model_that_attends_by_itself_gets_copies(self, prompts, storages):
        model = random_model("llama")
        from transformers.models.llama import modeling_llama

        interface, eager = modeling_llama.ALL_ATTENTION_FUNCTIONS, modeling_llama.eager_attention_forward

        class Fixed:
            def get_interface(self, *_):
                return eager

        modeling_llama.ALL_ATTENTION_FUNCTIONS = Fixed()
        try:
            texts, truth = self.texts_and_truth(model, prompts[:11], storages=storages)
        finally:
            modeling_llama.ALL_ATTENTION_FUNCTIONS = interface
        assert texts == truth
        assert max(storages) > 31
