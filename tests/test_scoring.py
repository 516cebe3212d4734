"""Forked, prefix-shared and packed scores are those that the model and each variant give by themselves."""

from __future__ import annotations

import contextlib
import logging

import bfloat16
import numpy as np
import pytest
import torch
import transformers
from models import ARCHITECTURES, COMMON, CONTEXT, LAYERS, VOCABULARY, WIDTH, random_model, random_sae

from sae_lm_eval.dictionaries.loading import load_dictionary
from sae_lm_eval.scoring import batches, executor, last_block
from sae_lm_eval.scoring import scorer as scoring
from sae_lm_eval.scoring.divergences import MEASURES, Predicted
from sae_lm_eval.scoring.last_block import FewQueries, paths_of_last_block
from sae_lm_eval.scoring.request import Query, ScoreRequest
from sae_lm_eval.scoring.scorer import LAYOUTS, Layout, Scorer
from sae_lm_eval.splicing.attach import attached
from sae_lm_eval.splicing.variants import Choices, build_variant

SPECIAL = frozenset({0, 1, 2})


def variant(model, *hooks, mode="reconstruction", architecture="standard", seed=0):
    dictionaries = [
        load_dictionary(random_sae(WIDTH, hook, architecture, seed=seed + i)) for i, hook in enumerate(hooks)
    ]
    return build_variant(model, dictionaries, Choices(mode), SPECIAL)


def queries(*, header=30, stem=6, seed=0):
    """Few-shot headers with questions that have several answers; questions without; one that is part of another."""
    rng = np.random.default_rng(seed)

    def some(count):
        return rng.integers(3, VOCABULARY, count).tolist()

    out = []
    for _ in range(2):
        head = [1, *some(header)]
        for question in range(5):
            prompt = head + some(stem + question % 3)
            for _ in range(3):
                answer = some(1 + question % 3)
                out.append(Query((prompt + answer)[:-1], answer))
            out.append(Query(prompt[:-1], prompt[-3:]))
    whole = some(20)
    out.append(Query(whole[:-1], whole[1:]))
    out.append(Query(head[:12], head[5:13]))
    return out


@torch.no_grad()
def separately(model, variants, query):
    ids = torch.tensor([list(query.ids)])
    rows = []
    for each in (None, *variants):
        with attached(model, each) if each else contextlib.nullcontext():
            rows.append(model(input_ids=ids).logits[0, -len(query.targets) :].float().log_softmax(-1))
    return torch.stack(rows)


def assert_equal(scorer, questions, *, within=2e-5):
    by_number = {}
    scorer.score(ScoreRequest(questions), by_number.update)
    assert sorted(by_number) == list(range(len(questions)))
    model, variants = scorer.model, scorer.variants
    for number, query in enumerate(questions):
        scores = by_number[number]
        expected = separately(model, variants, query)
        targets = torch.tensor(query.targets)
        logprob = expected.gather(-1, targets.expand(len(expected), -1)[..., None])[..., 0].numpy()
        np.testing.assert_allclose(scores.logprob, logprob, atol=within)
        np.testing.assert_array_equal(scores.greedy, expected.argmax(-1) == targets)
        kl = (expected[0].exp() * (expected[0] - expected)).sum(-1)
        np.testing.assert_allclose(scores.measures["kl"], kl[1:].numpy(), atol=within)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_that_is_shared_changes_no_score(name, attention, monkeypatch):
    monkeypatch.setattr(scoring, "CAPACITY", 40)
    model = random_model(name)
    with contextlib.suppress(ValueError):  # an architecture that has no other than eager
        model.set_attn_implementation(attention)
    last = f"blocks.{LAYERS - 1}.hook_resid_post"
    variants = [
        variant(model, "blocks.1.hook_resid_pre"),
        variant(model, last),
        variant(model, "blocks.0.hook_mlp_out", "blocks.2.hook_resid_pre", seed=3),
        variant(model, "blocks.1.hook_resid_post", mode="zero"),
        variant(model, "hook_embed", seed=4),
        variant(model, "blocks.1.hook_attn_out", mode="random_error", seed=5),
    ]
    scorer = Scorer(model, variants, rows=2, limit=64)
    questions = queries()
    assert scorer.layout == Layout()
    assert_equal(scorer, questions)


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3"])
def test_a_text_longer_than_a_window_beside_short_ones_with_a_common_beginning(name, monkeypatch):
    monkeypatch.setattr(scoring, "CAPACITY", 40)
    model = random_model(name)
    scorer = Scorer(model, [variant(model, "blocks.1.hook_resid_pre")], rows=2, limit=64)
    text, short = np.random.default_rng(0).integers(3, VOCABULARY, (2, 20)).tolist()
    assert scorer.limit < 20
    assert_equal(scorer, [Query(text, text[:10]), Query(short[:3], short[4:5]), Query([*short[:2], 9], short[5:6])])


def test_as_many_full_contexts_as_they_have_tokens(monkeypatch):
    monkeypatch.setattr(scoring, "CAPACITY", CONTEXT)
    model = random_model("gpt2")
    scorer = Scorer(model, [variant(model, "blocks.1.hook_resid_pre")], rows=CONTEXT, limit=CONTEXT)
    texts = np.random.default_rng(0).integers(3, VOCABULARY, (CONTEXT, CONTEXT)).tolist()
    assert_equal(scorer, [Query(text, text[:1]) for text in texts])


def scores_of(scorer, questions, **options):
    by_number = {}
    scorer.score(ScoreRequest(questions, **options), by_number.update)
    return [by_number[number] for number in range(len(questions))]


def assert_same(some, others, *, within=2e-5):
    for scores, reference in zip(some, others, strict=True):
        np.testing.assert_allclose(scores.logprob, reference.logprob, atol=within)
        np.testing.assert_array_equal(scores.greedy, reference.greedy)
        for name in scores.measures:
            np.testing.assert_allclose(scores.measures[name], reference.measures[name], atol=within)


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture
def llama():
    return random_model("llama")


@pytest.fixture
def scorer(llama, monkeypatch):
    monkeypatch.setattr(scoring, "CAPACITY", 40)
    return Scorer(llama, [variant(llama, "blocks.1.hook_resid_post")], rows=2, limit=64)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_each_layout_gives_the_same(name, layout, monkeypatch):
    monkeypatch.setattr(scoring, "CAPACITY", 40)
    model = random_model(name)
    scorer = Scorer(model, [variant(model, "blocks.1.hook_resid_pre")], rows=2, limit=64)
    scorer.layout = layout
    assert_equal(scorer, queries())


def test_neither_batch_nor_row_size_changes_a_score(scorer, monkeypatch):
    questions = queries()
    expected = scores_of(scorer, questions)
    for rows, capacity in ((1, 40), (7, 40), (1, 3), (2, 1000)):
        scorer.rows = rows
        monkeypatch.setattr(scoring, "CAPACITY", capacity)
        assert_same(scores_of(scorer, questions), expected)


def test_neither_does_the_size_of_the_pieces_of_logits(scorer, monkeypatch):
    expected = scores_of(scorer, queries(), measures=tuple(MEASURES))
    monkeypatch.setattr(executor, "LOGITS_ON_CPU", 2 * VOCABULARY)
    assert_same(scores_of(scorer, queries(), measures=tuple(MEASURES)), expected, within=1e-5)


def test_measures(scorer):
    for query, scores in zip(queries(), scores_of(scorer, queries(), measures=tuple(MEASURES)), strict=True):
        baseline, spliced = separately(scorer.model, scorer.variants, query).double()
        distributions = (
            torch.distributions.Categorical(logits=baseline),
            torch.distributions.Categorical(logits=spliced),
        )
        kl = torch.distributions.kl_divergence(*distributions), torch.distributions.kl_divergence(*distributions[::-1])
        np.testing.assert_allclose(scores.measures["kl"][0], kl[0], atol=2e-5)
        np.testing.assert_allclose(scores.measures["kl_reverse"][0], kl[1], atol=2e-5)
        np.testing.assert_array_equal(scores.measures["agreement"][0], baseline.argmax(-1) == spliced.argmax(-1))


def test_a_variant_that_edits_nothing_has_the_baselines_bits(llama):
    nothing = variant(llama, "blocks.0.hook_resid_pre", mode="none")
    for scores in scores_of(Scorer(llama, [nothing], rows=2, limit=64), queries(), measures=tuple(MEASURES)):
        np.testing.assert_array_equal(scores.logprob[0], scores.logprob[1])
        assert not scores.measures["kl"].any()
        assert scores.measures["agreement"].all()


def test_shared_blocks_give_the_same_bits(llama):
    """What lies below the fork is the baseline's own; above, each variant's rows are computed as if alone."""
    at = variant(llama, f"blocks.{LAYERS - 1}.hook_resid_post")
    questions = queries()
    late, early = (Scorer(llama, [at], rows=2, limit=64) for _ in range(2))
    early.layout = Layout(blocks=False)
    for scores, reference in zip(scores_of(late, questions), scores_of(early, questions), strict=True):
        np.testing.assert_allclose(scores.logprob, reference.logprob, atol=2e-6)


def test_bfloat16_is_scored_in_float32(llama):
    model = llama.to(torch.bfloat16)
    scorer = Scorer(model, [variant(model, "blocks.1.hook_resid_post")], rows=2, limit=64)
    assert scorer.layout == Layout()
    for query, scores in zip(queries(), scores_of(scorer, queries()), strict=True):
        expected = separately(model, scorer.variants, query)
        logprob = expected.gather(-1, torch.tensor(query.targets).expand(2, -1)[..., None])[..., 0]
        median, *_ = bfloat16.stated(torch.float32)["llama", "ReLU"]
        assert np.median(np.abs(scores.logprob - logprob.numpy())) < 0.1 * median


class TestLastBlock:
    def test_its_mlp_runs_where_something_is_asked(self, scorer):
        seen = []
        mlp = scorer.model.model.layers[-1].mlp
        handle = mlp.gate_proj.register_forward_hook(lambda _m, args, _out: seen.append(args[0].shape[-2]))
        scorer.layout  # noqa: B018  (found by trying, which is not what is counted)
        seen.clear()
        questions = queries()
        scorer.score(ScoreRequest(questions), lambda _scores: None)
        handle.remove()
        assert 0 < sum(seen) <= sum(len(query.targets) for query in questions)

    def test_its_queries_look_where_something_is_asked(self, scorer, monkeypatch):
        scorer.model.set_attn_implementation("sdpa")
        scorer.layout  # noqa: B018  (found by trying, which is not what is counted)
        counts, lengths = [], []
        call = FewQueries.__torch_function__

        def counted(self, func, types, args=(), kwargs=None):
            if func is torch.nn.functional.scaled_dot_product_attention and self.at is not None:
                counts.append(self.at.shape[1])
                lengths.append(args[0].shape[2])
            return call(self, func, types, args, kwargs)

        monkeypatch.setattr(FewQueries, "__torch_function__", counted)
        scorer.score(ScoreRequest([Query(query.ids, query.targets[-1:]) for query in queries()]), lambda _scores: None)
        assert counts
        assert sum(counts) < sum(lengths) / 2

    @pytest.mark.parametrize(
        ("hook", "attention", "mlp"),
        [
            ("hook_resid_post", True, True),
            ("hook_attn_out", False, True),
            ("hook_mlp_out", False, False),
            ("mlp.hook_in", False, False),
        ],
    )
    def test_what_runs_everywhere_where_a_dictionary_sits_in_it(self, llama, hook, attention, mlp):
        last = LAYERS - 1
        path = f"model.layers.{last}"
        projections, rest = (f"{path}.self_attn.q_proj", f"{path}.self_attn.o_proj"), (f"{path}.mlp",)
        before = paths_of_last_block(llama, [variant(llama, f"blocks.{last - 1}.{hook}")])
        assert before == (path, (*projections, *rest))
        paths = paths_of_last_block(llama, [variant(llama, f"blocks.{last}.{hook}")])
        assert paths == (path if attention else None, (*(projections if attention else ()), *(rest if mlp else ())))

    def test_a_fused_projection_runs_everywhere(self):
        model = random_model("gpt2")
        assert paths_of_last_block(model, [])[1] == ("transformer.h.2.attn.c_proj", "transformer.h.2.mlp")


class TestFewQueries:
    @pytest.mark.parametrize("heads_of_mask", [1, 4])
    def test_what_is_asked_gets_what_attention_gives_it(self, heads_of_mask):
        torch.manual_seed(0)
        query, key, value = (torch.randn(6, 4, n, 8) for n in (5, 7, 7))
        mask = torch.randn(6, heads_of_mask, 5, 7)
        few = FewQueries()
        few.at = torch.tensor([[1, 3], [4, 4], [0, 0]])  # of three rows, and their copies
        attend = torch.nn.functional.scaled_dot_product_attention
        with few:
            attended = attend(query, key, value, attn_mask=mask)
        expected = attend(query, key, value, attn_mask=mask)
        for row, at in enumerate([[1, 3], [4], [0]] * 2):
            torch.testing.assert_close(attended[row, :, at], expected[row, :, at])
            others = [place for place in range(5) if place not in at]
            assert not attended[row, :, others].any()
        assert torch.equal(attend(query, key, value, attn_mask=mask), expected)

    def test_attention_without_a_mask_is_left_alone(self):
        query, key, value = torch.randn(3, 2, 4, 5, 8)
        few = FewQueries()
        few.at = torch.tensor([[1], [1]])
        attend = torch.nn.functional.scaled_dot_product_attention
        with few:
            attended = attend(query, key, value, is_causal=True)
        assert torch.equal(attended, attend(query, key, value, is_causal=True))


@contextlib.contextmanager
def rounding(model, size, small=0):
    """Inside the scope, what block 0 gives is off by `size` of itself, as the shape of the batch has it.

    In batches of fewer than `small` rows it is not.
    """

    def off(_module, _args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        generator = torch.Generator().manual_seed(hidden.shape[0] * 1000 + hidden.shape[1])
        noise = size * (len(hidden) >= small) * torch.randn(hidden.shape, generator=generator).to(hidden) * hidden
        return (hidden + noise, *output[1:]) if isinstance(output, tuple) else hidden + noise

    hook = model.model.layers[0].register_forward_hook(off)
    try:
        yield
    finally:
        hook.remove()


class TestWhatAnArchitectureDoesNotBear:
    def test_trees_where_positions_cannot_be_given(self, llama, monkeypatch, caplog):
        """A model that ignores position ids cannot have trees in its rows."""
        forward = type(llama.model).forward

        def deaf(self, *args, position_ids=None, **kwargs):
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(type(llama.model), "forward", deaf)
        monkeypatch.setattr(scoring.logger, "propagate", True)
        scorer = Scorer(llama, [variant(llama, "blocks.1.hook_resid_post")], rows=2, limit=64)
        with caplog.at_level(logging.WARNING):
            assert scorer.layout == Layout(rows=False, last_block=False)
        assert "LlamaForCausalLM is scored sharing blocks and prefixes, which is slower." in caplog.text
        assert_equal(scorer, queries())

    def test_attention_that_cannot_be_narrowed(self, llama, monkeypatch):
        def narrowed(*_args):
            raise NotImplementedError

        monkeypatch.setattr(last_block, "narrowed", narrowed)
        llama.set_attn_implementation("sdpa")
        scorer = Scorer(llama, [variant(llama, "blocks.0.hook_resid_post")], rows=2, limit=64)
        assert scorer.layout == Layout(last_block=False)

    def test_a_batch_of_one_row_is_tried_with_several(self, llama):
        rows = []

        def count(_trunk, _args, kwargs):
            if kwargs.get("attention_mask") is not None:  # the trees' own, which no plain pass is given
                rows.append(len(kwargs["input_ids"]))

        llama.model.register_forward_pre_hook(count, with_kwargs=True)
        scorer = Scorer(llama, [variant(llama, "blocks.0.hook_resid_post")], rows=1, limit=64)
        assert scorer.layout == Layout()
        assert max(rows) > 1
        assert scorer.rows == 1

    def test_alibi_is_scored_with_what_it_bears(self):
        torch.manual_seed(0)
        model = transformers.BloomForCausalLM(
            transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, n_layer=3, n_head=4)
        ).eval()
        scorer = Scorer(model, [variant(model, "blocks.1.hook_resid_post")], rows=2, limit=64)
        assert scorer.layout != Layout()
        assert_equal(scorer, queries())

    def test_a_flip_of_a_few_latents_is_no_reason(self, llama):
        """Random top-k dictionaries have many near ties, which rounding decides one way or the other."""
        scorer = Scorer(llama, [variant(llama, "blocks.1.hook_resid_post", architecture="topk")], rows=2, limit=64)
        assert scorer.layout == Layout()

    def test_a_mixture_of_experts_is_scored_too(self):
        torch.manual_seed(0)
        config = transformers.MixtralConfig(**COMMON, num_local_experts=4, sliding_window=None)
        model = transformers.MixtralForCausalLM(config).eval()
        scorer = Scorer(model, [variant(model, "blocks.1.hook_resid_post")], rows=2, limit=64)
        assert_equal(scorer, queries())

    def test_a_state_space_model_shares_no_prefixes(self):
        torch.manual_seed(0)
        config = transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=3, state_size=4)
        model = transformers.MambaForCausalLM(config).eval()
        dictionary = load_dictionary(random_sae(WIDTH, "backbone.layers.1.output"))
        spliced = build_variant(model, [dictionary], Choices(), SPECIAL)
        scorer = Scorer(model, [spliced], rows=2, limit=64)
        assert not scorer.layout.prefixes
        assert_equal(scorer, queries())

    @pytest.mark.parametrize("tolerance", [1e-3, float("inf")])
    def test_a_dictionary_that_attends_over_positions_shares_none(self, llama, tolerance, monkeypatch):
        """However little a trial would see of it."""
        monkeypatch.setitem(scoring.TOLERANCE, torch.float32, tolerance)
        variants = [
            variant(llama, "blocks.1.hook_resid_post"),
            variant(llama, "blocks.1.hook_resid_post", architecture="temporal"),
        ]
        scorer = Scorer(llama, variants, rows=2, limit=64)
        assert not scorer.layout.prefixes
        assert not scorer.layout.rows
        assert_equal(scorer, queries())

    @pytest.mark.parametrize("small", [0, 4])
    def test_rounding_that_depends_on_the_batch_is_no_reason(self, llama, small, monkeypatch):
        """As on a GPU, where another batch size is another order of sums, and a top-k dictionary amplifies it."""
        llama.to(torch.bfloat16)
        monkeypatch.setitem(scoring.TOLERANCE, torch.bfloat16, 0.0)
        with rounding(llama, torch.finfo(torch.bfloat16).eps, small):
            scorer = Scorer(llama, [variant(llama, "blocks.1.hook_resid_post")], rows=2, limit=64)
            assert scorer.layout == Layout()

    def test_what_exceeds_that_rounding_is(self, llama, monkeypatch):
        forward = type(llama.model).forward
        monkeypatch.setattr(
            type(llama.model),
            "forward",
            lambda self, *args, position_ids=None, **kwargs: forward(self, *args, **kwargs),
        )
        llama.to(torch.bfloat16)
        with rounding(llama, torch.finfo(torch.bfloat16).eps / 4):
            scorer = Scorer(llama, [variant(llama, "blocks.1.hook_resid_post")], rows=2, limit=64)
            assert scorer.layout == Layout(rows=False, last_block=False)


class TestMemory:
    def test_batches_are_halved_until_they_fit(self, scorer):
        expected = scores_of(scorer, queries())
        scorer.rows = 8
        refused = []

        def tight(_trunk, _args, kwargs):
            if len(kwargs["input_ids"]) > 1:
                refused.append(len(kwargs["input_ids"]))
                raise torch.OutOfMemoryError("CUDA out of memory.")

        scorer.model.model.register_forward_pre_hook(tight, with_kwargs=True)
        assert_same(scores_of(scorer, queries()), expected)
        assert refused
        assert scorer.rows < 8

    def test_logits_are_halved_until_they_fit(self, scorer):
        expected = scores_of(scorer, queries())
        positions = []

        def tight(_head, args):
            positions.append(args[0].shape[-2])
            if positions[-1] > 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        scorer.model.lm_head.register_forward_pre_hook(tight)
        assert_same(scores_of(scorer, queries()), expected)
        assert max(positions) > 3
        assert max(positions[-5:]) > 1

    def test_a_row_that_does_not_fit_is_told(self, scorer):
        scorer.layout  # noqa: B018

        def never(*_args, **_kwargs):
            raise torch.OutOfMemoryError("CUDA out of memory.")

        scorer.model.model.register_forward_pre_hook(never)
        before = hooks_of(scorer.model)
        with pytest.raises(torch.OutOfMemoryError):
            scorer.score(ScoreRequest(queries()), lambda _scores: None)
        assert hooks_of(scorer.model) == before


def test_no_hook_is_left(scorer):
    before = hooks_of(scorer.model)
    scorer.score(ScoreRequest(queries()), lambda _scores: None)
    assert hooks_of(scorer.model) == before == 0
    assert "forward" not in vars(scorer.model.model)


@pytest.mark.parametrize("enough", [1, 10, 1000])
def test_how_many_batches_share_a_run_of_the_head_changes_nothing(scorer, monkeypatch, enough):
    expected = scores_of(scorer, queries())
    monkeypatch.setattr(batches, "ENOUGH", enough)
    assert_same(scores_of(scorer, queries()), expected)


def test_the_head_is_run_for_several_batches_at_once(scorer):
    scorer.layout  # noqa: B018
    scorer.rows, calls = 1, []
    scorer.model.model.layers[0].register_forward_pre_hook(lambda *_: calls.append("batch"))
    scorer.model.lm_head.register_forward_pre_hook(lambda *_: calls.append("head"))
    scores_of(scorer, [Query(ids, [3]) for ids in np.random.default_rng(0).integers(3, VOCABULARY, (40, 60)).tolist()])
    heads = ["head"] * 2  # of the baseline and of the variant
    assert calls == [*["batch"] * 32, *heads, *["batch"] * 8, *heads]


def test_answered_batches_are_not_run_and_change_no_bit_of_the_others(scorer):
    questions = queries()
    whole = scores_of(scorer, questions)
    delivered = []
    scorer.score(ScoreRequest(questions), delivered.append)
    answered = {number for some in delivered[::2] for number in some}
    rest = {}
    scorer.score(ScoreRequest(questions, answered=answered), rest.update)
    assert set(rest) == set(range(len(questions))) - answered
    for number, scores in rest.items():
        np.testing.assert_array_equal(scores.logprob, whole[number].logprob)


@pytest.mark.parametrize(("targets", "count"), [([], 0), ([5] * 4, 4)])
def test_a_query_without_targets_or_with_too_many_is_refused(targets, count):
    with pytest.raises(ValueError, match=f"{count} targets cannot be asked of 3 positions"):
        ScoreRequest([Query([1, 2, 3], targets)])


def test_tokens_that_a_model_masks_add_nothing_to_a_divergence():
    some, other = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)).unbind()
    some[:, 2] = other[:, 2] = -torch.inf
    variant = Predicted(other.log_softmax(-1), Predicted(some.log_softmax(-1)))
    kept = [number for number in range(7) if number != 2]
    p, q = (torch.distributions.Categorical(logits=logits[:, kept]) for logits in (some, other))
    torch.testing.assert_close(MEASURES["kl"](variant), torch.distributions.kl_divergence(p, q))
    torch.testing.assert_close(MEASURES["kl_reverse"](variant), torch.distributions.kl_divergence(q, p))
    some[:, 3] = -torch.inf  # only the baseline excludes it
    variant = Predicted(other.log_softmax(-1), Predicted(some.log_softmax(-1)))
    assert MEASURES["kl"](variant).isfinite().all()
    assert MEASURES["kl_reverse"](variant).isposinf().all()
    some[1] = torch.nan
    assert MEASURES["kl"](Predicted(other.log_softmax(-1), Predicted(some.log_softmax(-1)))).isnan().tolist() == [
        False,
        True,
        False,
    ]
