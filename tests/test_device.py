"""What holds on a CPU holds on another device: `pytest tests/test_device.py --device cuda`."""

from __future__ import annotations

import contextlib
import copy
import warnings

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from models import ARCHITECTURES, VOCABULARY, WIDTH, random_ids, random_model, random_sae, word_tokenizer, words

from sae_lm_eval.dictionaries.loading import load
from sae_lm_eval.harness.model import SaeHFLM, join
from sae_lm_eval.runtime import checksum
from sae_lm_eval.runtime.content import contents
from sae_lm_eval.scoring import scorer as scoring
from sae_lm_eval.scoring.executor import Query
from sae_lm_eval.scoring.scorer import Scorer
from sae_lm_eval.splicing.activations import mean_activations
from sae_lm_eval.splicing.arguments import wanted_of
from sae_lm_eval.splicing.attach import attached
from sae_lm_eval.splicing.variants import Choices, build_variant, place

SPECIAL = frozenset({0, 1, 2})
MODES = ("reconstruction", "with_error", "zero", "random_error")


@pytest.fixture
def model_on(device):
    def build(name: str, dtype: torch.dtype = torch.float32):
        return random_model(name).to(device, dtype)

    return build


def variant(model, *hooks, mode="reconstruction", architecture="standard", seed=0):
    dictionaries = [load(random_sae(WIDTH, hook, architecture, seed=seed + i)) for i, hook in enumerate(hooks)]
    built = build_variant(model, dictionaries, Choices(mode), SPECIAL)
    place(model, built)
    return built


@torch.no_grad()
def logits(model, ids, *variants):
    with contextlib.ExitStack() as scope:
        for each in variants:
            scope.enter_context(attached(model, each))
        return model(input_ids=ids.to(model.device), use_cache=False).logits.float().cpu()


def queries():
    """Two headers, behind each questions with several answers, and a text without a header."""
    rng = np.random.default_rng(0)

    def some(count):
        return rng.integers(3, VOCABULARY, count).tolist()

    out = []
    for _ in range(2):
        header = [1, *some(30)]
        for question in range(4):
            asked = header + some(6 + question % 3)
            for _ in range(3):
                answer = some(1 + question % 3)
                out.append(Query((asked + answer)[:-1], answer))
    text = some(20)
    return [*out, Query(text[:-1], text[1:])]


def scored(scorer, asked):
    found = {}
    scorer.score(asked, found.update)
    return [found[number] for number in range(len(asked))]


def separately(model, variants, query):
    """Log-probabilities (1 + variants, targets) of each model by itself."""
    out = []
    for which in ([], *([each] for each in variants)):
        of_query = logits(model, torch.tensor([list(query.ids)]), *which)[0, -len(query.targets) :].log_softmax(-1)
        out.append(of_query.gather(-1, torch.tensor(query.targets)[:, None])[:, 0])
    return torch.stack(out).numpy()


def variants_of_every_kind(model):
    return [
        variant(model, "blocks.1.hook_resid_pre"),
        variant(model, "blocks.2.hook_resid_post", architecture="topk"),
        variant(model, "blocks.0.hook_mlp_out", "blocks.2.hook_resid_pre", seed=3),
        variant(model, "blocks.1.hook_resid_post", mode="zero"),
        variant(model, "blocks.1.hook_attn_out", mode="random_error", seed=5),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ARCHITECTURES)
class TestEveryArchitecture:
    def test_no_edit_leaves_every_bit(self, name, dtype, model_on):
        model, ids = model_on(name, dtype), random_ids()
        none = variant(model, "blocks.1.hook_resid_post", mode="none")
        assert torch.equal(logits(model, ids, none), logits(model, ids))

    def test_the_error_put_back_changes_nothing(self, name, dtype, model_on):
        model, ids = model_on(name, dtype), random_ids()
        with_error = variant(model, "blocks.1.hook_resid_post", mode="with_error")
        plain, spliced = logits(model, ids), logits(model, ids, with_error)
        torch.testing.assert_close(spliced, plain, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.05)

    def test_logits_are_those_of_a_cpu(self, name, dtype, model_on):
        if dtype != torch.float32:
            pytest.skip("two devices round bfloat16 differently")
        model, ids, on_cpu = model_on(name), random_ids(), random_model(name)
        for mode in MODES:
            here, there = (logits(m, ids, variant(m, "blocks.1.hook_resid_pre", mode=mode)) for m in (model, on_cpu))
            torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)

    def test_shared_scores_are_those_of_each_model_by_itself(self, name, dtype, model_on, monkeypatch, record_property):
        monkeypatch.setattr(scoring, "CAPACITY", 40)
        model = model_on(name, dtype)
        variants, asked = variants_of_every_kind(model), queries()
        scorer = Scorer(model, variants, rows=2, limit=64)
        shared = [of_query.logprob for of_query in scored(scorer, asked)]
        apart = np.concatenate(
            [np.abs(a - separately(model, variants, query)) for a, query in zip(shared, asked, strict=True)], axis=1
        )
        record_property("largest difference, nats", float(apart.max()))
        record_property("layout", str(scorer.layout))
        if dtype == torch.float32:
            # Rounding decides now and then which of two latents a top-k dictionary keeps.
            assert np.delete(apart, 2, axis=0).max() < 1e-4
            assert np.quantile(apart[2], 0.9) < 1e-4
        else:
            assert np.quantile(apart, 0.9) < scoring.TOLERANCE[dtype]


def requests(count: int, kind: str) -> list[Instance]:
    texts = [(words(5 + i, seed=i), " " + words(2, seed=100 + i)) for i in range(count)]
    if kind == "generate_until":
        texts = [(context, {"until": ["w7 "], "max_gen_toks": 6, "do_sample": False}) for context, _ in texts]
    return [Instance(kind, {}, arguments, i, ("task", i, 1)) for i, arguments in enumerate(texts)]


def adapter(model, *saes, **choices):
    choices = {"tokenizer": word_tokenizer(), "batch_size": 4, "max_length": 64, **choices}
    return SaeHFLM(pretrained=model, sae=list(saes), device=str(model.device), **choices)


class TestAdapter:
    @pytest.mark.parametrize("kind", ["loglikelihood", "generate_until"])
    @pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
    def test_answers_are_those_of_a_cpu(self, name, kind, model_on):
        answers = []
        for model in (model_on(name), random_model(name)):
            lm = adapter(model, random_sae(WIDTH, "blocks.1.hook_resid_post"))
            answers.append(getattr(lm, kind)(requests(8, kind), disable_tqdm=True))
        if kind == "generate_until":
            assert answers[0] == answers[1]
        else:
            np.testing.assert_allclose(*answers, atol=1e-4)

    def test_several_variants_answer_as_each_by_itself(self, model_on):
        model = model_on("llama")
        saes = [random_sae(WIDTH, f"blocks.{layer}.hook_resid_post", seed=layer) for layer in range(3)]
        baseline = adapter(model, splice="none")
        variants = [baseline.as_variant(wanted_of(copy.deepcopy(sae))) for sae in saes]
        join(baseline, variants)
        asked = requests(6, "loglikelihood")
        for lm, sae in zip(variants, saes, strict=True):
            alone = adapter(model, copy.deepcopy(sae)).loglikelihood(asked, disable_tqdm=True)
            np.testing.assert_allclose(lm.loglikelihood(asked, disable_tqdm=True), alone, atol=1e-4)

    def test_means_are_those_of_a_cpu(self, model_on):
        windows = [random_ids(1, 20, seed=seed)[0].tolist() for seed in range(3)]
        means = []
        for model in (model_on("llama"), random_model("llama")):
            built = variant(model, "blocks.1.hook_resid_post", mode="mean")
            (mean,) = mean_activations(model, built, windows, SPECIAL)
            means.append(mean.cpu())
        torch.testing.assert_close(*means, rtol=1e-4, atol=1e-5)

    def test_a_dictionary_in_float32_keeps_its_arithmetic_in_a_bfloat16_model(self, model_on):
        model = model_on("llama", torch.bfloat16)
        sae = random_sae(WIDTH, "blocks.1.hook_resid_post")
        lm = adapter(model, sae)
        (splice,) = lm.variant.splices
        x = torch.randn(1, 4, WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()
        found = splice.reconstruct(x.to(model.device), x.to(model.device)).cpu()
        expected = copy.deepcopy(sae).cpu().double()
        expected.dtype = torch.float64
        torch.testing.assert_close(found.double(), expected(x.double()), rtol=1e-5, atol=1e-5)


class TestChecksums:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8])
    def test_they_are_those_of_a_cpu(self, dtype, device, monkeypatch):
        monkeypatch.setattr(checksum, "AT_ONCE", 4 * checksum.ROW)
        x = torch.randn(9, 2**14 + 3, generator=torch.Generator().manual_seed(0)).mul(40).to(dtype)
        there = {"": {"x": x.to(device), "rows": x.to(device)[2:5, 1:9], "transposed": x.to(device).T}}
        here = {"": {"x": x, "rows": x[2:5, 1:9], "transposed": x.T}}
        assert checksum.checksums(there) == checksum.checksums(here)

    def test_what_an_answer_depends_on_is_what_it_is_on_a_cpu(self, model_on):
        identities, weights = [], []
        for model in (model_on("gemma2"), random_model("gemma2")):
            lm = adapter(model, random_sae(WIDTH, "blocks.1.hook_resid_post", "topk"))
            identities.append(lm.identity())
            weights.append(contents({"": model})[""].weights)
            with torch.no_grad():
                model.model.layers[1].mlp.up_proj.weight[3, 4] += 1
            identities.append(lm.identity())
        assert weights[0] == weights[1]
        assert identities[:2] == identities[2:]
        assert identities[0] != identities[1]

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="torch counts the waits for a GPU alone")
    def test_one_wait_for_a_device(self, device, model_on):
        if device.type != "cuda":
            pytest.skip("of a GPU")
        module = model_on("llama")
        contents({"": module})  # the table of weights is brought there once for the process
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                contents({"": module, "again": copy.deepcopy(module)})
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert sum("synchroniz" in str(each.message) for each in caught) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory runs out for real on a GPU alone")
def test_batches_are_halved_where_memory_runs_out(device, model_on, caplog, monkeypatch):
    if device.type != "cuda":
        pytest.skip("of a GPU")
    model = model_on("llama")
    asked = [Query(random_ids(1, 60, seed=seed)[0].tolist(), [5]) for seed in range(4096)]
    variants = [variant(model, "blocks.0.hook_resid_post")]
    expected = scored(Scorer(model, variants, rows=4, limit=64), asked)
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    roomy = Scorer(model, variants, rows=1024, limit=64)
    roomy.layout  # noqa: B018  (tried before memory is short)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**26) / total)
    try:
        monkeypatch.setattr(scoring.logger, "propagate", True)
        found = scored(roomy, asked)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert roomy.rows < 1024
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logprob, other.logprob, atol=1e-4)
