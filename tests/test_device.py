"""What holds on a CPU holds on a device that only pretends, and with `--device cuda` on a real one."""

from __future__ import annotations

import contextlib
import copy
import warnings

import accelerate
import numpy as np
import pretend_device
import pytest
import torch
import transformers
from lm_eval.api.instance import Instance
from models import ARCHITECTURES, VOCABULARY, WIDTH, random_ids, random_model, random_sae, word_tokenizer, words

from sae_lm_eval.dictionaries.loading import load_dictionary
from sae_lm_eval.fidelity.source import TextSource
from sae_lm_eval.harness.joined import joined
from sae_lm_eval.harness.model import SaeHFLM
from sae_lm_eval.harness.requested_texts import TextWriter, WantedText
from sae_lm_eval.runtime import checksum
from sae_lm_eval.runtime.content import contents
from sae_lm_eval.scoring import scorer as scoring
from sae_lm_eval.scoring.request import Query, ScoreRequest
from sae_lm_eval.scoring.scorer import Layout, Scorer
from sae_lm_eval.splicing.activations import mean_activations
from sae_lm_eval.splicing.arguments import requested_splices
from sae_lm_eval.splicing.attach import attached
from sae_lm_eval.splicing.variants import Choices, build_variant, place_dictionaries

QUICK = ("gpt2", "gpt_neox", "llama", "gemma2", "gemma3")  # for the pretended device, which is slow
SPECIAL = frozenset({0, 1, 2})
MODES = ("reconstruction", "with_error", "zero", "random_error")


def pytest_generate_tests(metafunc):
    real = metafunc.config.getoption("--device") != pretend_device.NAME
    if "architecture" in metafunc.fixturenames:
        metafunc.parametrize("architecture", ARCHITECTURES if real else QUICK)
    if "dtype" in metafunc.fixturenames:
        dtypes = [torch.float32, torch.bfloat16] if real else [torch.float32]
        metafunc.parametrize("dtype", dtypes, ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.fixture
def model_on(device):
    def build(name: str, dtype: torch.dtype = torch.float32):
        return random_model(name).to(device, dtype)

    return build


def variant(model, *hooks, mode="reconstruction", architecture="standard", seed=0):
    dictionaries = [
        load_dictionary(random_sae(WIDTH, hook, architecture, seed=seed + i)) for i, hook in enumerate(hooks)
    ]
    built = build_variant(model, dictionaries, Choices(mode), SPECIAL)
    place_dictionaries(model, built)
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
            prompt = header + some(6 + question % 3)
            for _ in range(3):
                answer = some(1 + question % 3)
                out.append(Query((prompt + answer)[:-1], answer))
    text = some(20)
    return [*out, Query(text[:-1], text[1:])]


def scored(scorer, batch):
    answers = {}
    scorer.score(ScoreRequest(batch), answers.update)
    return [answers[number] for number in range(len(batch))]


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


class TestEveryArchitecture:
    def test_no_edit_leaves_every_bit(self, architecture, dtype, model_on):
        model, ids = model_on(architecture, dtype), random_ids()
        none = variant(model, "blocks.1.hook_resid_post", mode="none")
        assert torch.equal(logits(model, ids, none), logits(model, ids))

    def test_the_error_put_back_changes_nothing(self, architecture, dtype, model_on):
        model, ids = model_on(architecture, dtype), random_ids()
        with_error = variant(model, "blocks.1.hook_resid_post", mode="with_error")
        plain, spliced = logits(model, ids), logits(model, ids, with_error)
        torch.testing.assert_close(spliced, plain, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.05)

    def test_logits_are_those_of_a_cpu(self, architecture, model_on):
        model, ids, on_cpu = model_on(architecture), random_ids(), random_model(architecture)
        for mode in MODES:
            here, there = (logits(m, ids, variant(m, "blocks.1.hook_resid_pre", mode=mode)) for m in (model, on_cpu))
            torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)

    def test_shared_scores_are_those_of_each_model_by_itself(
        self, architecture, dtype, model_on, monkeypatch, record_property
    ):
        monkeypatch.setattr(scoring, "CAPACITY", 40)
        model = model_on(architecture, dtype)
        variants, batch = variants_of_every_kind(model), queries()
        scorer = Scorer(model, variants, rows=2, limit=64)
        shared = [of_query.logprob for of_query in scored(scorer, batch)]
        apart = np.concatenate(
            [np.abs(a - separately(model, variants, query)) for a, query in zip(shared, batch, strict=True)], axis=1
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

    @pytest.mark.parametrize("splice", ["reconstruction", "none"])
    def test_requested_texts_are_those_of_a_cpu(self, splice, model_on):
        texts = [WantedText(words(4 + i, seed=i), 6, stop=("w7 ",), likeliest=3) for i in range(6)]
        written = []
        for model in (model_on("llama"), random_model("llama")):
            lm = adapter(model, random_sae(WIDTH, "blocks.1.hook_resid_post"), splice=splice)
            written.append(TextWriter(lm.spliced).write(texts))
        for here, there in zip(*written, strict=True):
            assert (here.ids, here.ended) == (there.ids, there.ended)
            for some, other in zip(here.logprobs, there.logprobs, strict=True):
                assert some.logprob == pytest.approx(other.logprob, abs=1e-4)

    def test_several_variants_answer_as_each_by_itself(self, model_on):
        model = model_on("llama")
        saes = [random_sae(WIDTH, f"blocks.{layer}.hook_resid_post", seed=layer) for layer in range(3)]
        baseline = adapter(model, splice="none")
        variants = [baseline.as_variant(requested_splices(copy.deepcopy(sae))) for sae in saes]
        _, *variants = joined(baseline, variants)
        batch = requests(6, "loglikelihood")
        for lm, sae in zip(variants, saes, strict=True):
            alone = adapter(model, copy.deepcopy(sae)).loglikelihood(batch, disable_tqdm=True)
            np.testing.assert_allclose(lm.loglikelihood(batch, disable_tqdm=True), alone, atol=1e-4)

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
        (splice,) = lm.spliced.variant.splices
        x = torch.randn(1, 4, WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()
        output = splice.reconstruct(x.to(model.device), x.to(model.device)).cpu()
        expected = copy.deepcopy(sae).cpu().double()
        expected.dtype = torch.float64
        torch.testing.assert_close(output.double(), expected(x.double()), rtol=1e-5, atol=1e-5)


class TestChecksums:
    @pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8])
    def test_they_are_those_of_a_cpu(self, kind, device, monkeypatch):
        monkeypatch.setattr(checksum, "AT_ONCE", 4 * checksum.ROW)
        x = torch.randn(9, 2**14 + 3, generator=torch.Generator().manual_seed(0)).mul(40).to(kind)
        there = {"": {"x": x.to(device), "rows": x.to(device)[2:5, 1:9], "transposed": x.to(device).T}}
        here = {"": {"x": x, "rows": x[2:5, 1:9], "transposed": x.T}}
        assert checksum.checksums(there) == checksum.checksums(here)

    def test_what_an_answer_depends_on_is_what_it_is_on_a_cpu(self, model_on):
        identities, weights = [], []
        for model in (model_on("gemma2"), random_model("gemma2")):
            lm = adapter(model, random_sae(WIDTH, "blocks.1.hook_resid_post", "topk"))
            identities.append(lm.spliced.identity())
            weights.append(contents({"": model})[""].weights)
            with torch.no_grad():
                model.model.layers[1].mlp.up_proj.weight[3, 4] += 1
            identities.append(lm.spliced.identity())
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


def fidelity_records(model):
    """Of a variant with two dictionaries, with zero and mean ablation."""
    saes = [random_sae(WIDTH, f"blocks.{layer}.hook_resid_post", seed=layer) for layer in (0, 1)]
    source = TextSource("test", (words(30, seed=70), words(30, seed=71)))
    documents = [
        Instance("sae_fidelity", {}, (words(10 + i, seed=i), None, source), 0, ("fidelity", i, 1))  # pyright: ignore[reportArgumentType]
        for i in range(3)
    ]
    return adapter(model, *saes).sae_fidelity(documents, disable_tqdm=True)


def assert_close(record, other):
    """Records of sums, and records in them."""
    assert record.keys() == other.keys()
    for name, value in record.items():
        if isinstance(value, dict):
            assert_close(value, other[name])
        elif value is None or isinstance(value, str):
            assert value == other[name], name
        else:
            assert value == pytest.approx(other[name], rel=1e-4, abs=1e-3), name


def test_fidelity_is_that_of_a_cpu(model_on):
    for here, there in zip(fidelity_records(model_on("llama")), fidelity_records(random_model("llama")), strict=True):
        assert_close(here, there)


def test_a_dictionary_may_stay_on_the_cpu(model_on):
    model, ids = model_on("llama"), random_ids()
    hooks = "blocks.0.hook_resid_post", "blocks.2.hook_resid_pre"
    both = variant(model, *hooks)
    both.splices[0].dictionary.module.to("cpu")
    assert {splice.dictionary.device.type for splice in both.splices} == {"cpu", model.device.type}
    on_cpu = random_model("llama")
    torch.testing.assert_close(logits(model, ids, both), logits(on_cpu, ids, variant(on_cpu, *hooks)))
    shared = scored(Scorer(model, [both], rows=2, limit=64), queries())
    for answer, query in zip(shared, queries(), strict=True):
        np.testing.assert_allclose(answer.logprob, separately(model, [both], query), atol=1e-4)


def sharded(model, blocks, first, second):
    """The model with its first two blocks and its embedding on one device, the rest on another, as accelerate does."""
    for index, block in enumerate(blocks):
        move_and_follow(block, first if index < 2 else second)
    rest = [module for module in model.modules() if not [*module.children()] and module not in {*blocks.modules()}]
    for module in rest:
        follows = isinstance(module, (torch.nn.Embedding, torch.nn.Linear)) or not [*module.parameters()]
        move_and_follow(module, first if follows else second)
    return model


def move_and_follow(module, device):
    module.to(device)
    hook = accelerate.hooks.AlignDevicesHook(execution_device=device, place_submodules=False)
    accelerate.hooks.add_hook_to_module(module, hook)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_model_may_lie_on_two_devices(name, device):
    second = torch.device(device.type, 1) if device.type == pretend_device.NAME else torch.device("cpu")
    model, on_cpu, ids = random_model(name), random_model(name), random_ids()
    model = sharded(model, model.transformer.h if name == "gpt2" else model.model.layers, device, second)
    hooks = "blocks.0.hook_resid_post", "blocks.2.hook_resid_post"
    both, expected = variant(model, *hooks), variant(on_cpu, *hooks)
    assert [splice.dictionary.device for splice in both.splices] == [device, second]
    torch.testing.assert_close(logits(model, ids, both), logits(on_cpu, ids, expected), rtol=1e-4, atol=1e-4)
    scorer = Scorer(model, [both], rows=2, limit=64)
    assert scorer.layout == Layout()
    for here, there in zip(
        scored(scorer, queries()), scored(Scorer(on_cpu, [expected], rows=2, limit=64), queries()), strict=True
    ):
        np.testing.assert_allclose(here.logprob, there.logprob, atol=1e-4)


class TestWaiting:
    """A GPU works on while nothing is read of it; each wait for it costs what it takes to fill it again."""

    @pytest.fixture
    def waits(self, device):
        if device.type != pretend_device.NAME:
            pytest.skip("counted on the pretended device")
        return pretend_device.WAITS

    @pytest.fixture
    def scorer(self, waits, model_on, monkeypatch):
        monkeypatch.setattr(scoring, "CAPACITY", 40)
        model = model_on("llama")
        scorer = Scorer(model, variants_of_every_kind(model), rows=2, limit=64)
        scorer.layout  # noqa: B018  (tried before anything is counted)
        return scorer

    def test_once_for_all_that_an_answer_depends_on(self, waits, model_on):
        modules = {"": model_on("llama"), "other": model_on("gpt2")}
        expected = contents(modules)
        before = host_waits(waits)
        assert contents(modules) == expected
        assert host_waits(waits) - before == 1

    def test_not_inside_the_blocks(self, scorer, waits):
        inside, blocks = [], scorer.model.model.layers
        blocks[0].register_forward_pre_hook(lambda *_: inside.append(-host_waits(waits)))
        blocks[-1].register_forward_hook(lambda *_: inside.append(inside.pop() + host_waits(waits)))
        scored(scorer, queries())
        assert len(inside) > 3
        assert set(inside) == {0}

    def test_a_few_times_for_what_is_answered_at_once(self, scorer, waits):
        """Once for each table: log-probabilities, likeliest tokens, KL; and once a pass for transformers' own mask."""
        passes, heads = [], []
        scorer.model.model.layers[0].register_forward_pre_hook(lambda *_: passes.append(1))
        scorer.model.lm_head.register_forward_pre_hook(lambda *_: heads.append(1))
        before = host_waits(waits)
        scored(scorer, queries())
        assert len(passes) > 3
        answers = len(heads) // (1 + len(scorer.variants))  # the head runs for each model
        assert host_waits(waits) - before <= 3 * answers + len(passes)


def host_waits(waits):
    return sum(count for kind, count in waits.items() if kind not in ("copy to device", "index on the host"))


def test_a_forked_pass_launches_hardly_more_than_a_plain_one(monkeypatch):
    """Operators that compute, for as many rows; what a dictionary runs is not counted."""
    monkeypatch.setattr(scoring, "CAPACITY", 20)  # a row for each sequence
    config = random_model("llama").config
    config.num_hidden_layers = 12
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(3, VOCABULARY, (5, 20), generator=torch.Generator().manual_seed(0))
    zeros = [variant(model, f"blocks.{layer}.hook_resid_post", mode="zero") for layer in (3, 6, 9)]
    scorer = Scorer(model, zeros, rows=8, limit=64)
    scorer.layout  # noqa: B018  (tried before anything is counted)
    with torch.no_grad(), torch.profiler.profile() as plain:
        model(input_ids=ids.repeat(4, 1), use_cache=False)
    with torch.no_grad(), torch.profiler.profile() as forked:
        scored(scorer, [Query(row.tolist(), [5]) for row in ids])
    print(launches(forked), launches(plain))
    assert launches(forked) <= 1.15 * launches(plain)


VIEWS = ("view", "reshape", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze", "as_strided")


def launches(profile):
    """Operators that a GPU would launch: those that call no other one, less views and allocations."""
    kinds = (*VIEWS, "t", "detach", "alias", "empty", "unflatten", "flatten", "resolve", "result_type", "item", "lift")
    return sum(
        not event.name.split("::")[1].strip("_").startswith(kinds)
        for event in profile.events()
        if event.name.startswith("aten::") and not any(child.name.startswith("aten::") for child in event.cpu_children)
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory runs out for real on a GPU alone")
def test_batches_are_halved_where_memory_runs_out(device, model_on, caplog, monkeypatch):
    if device.type != "cuda":
        pytest.skip("of a GPU")
    model = model_on("llama")
    batch = [Query(random_ids(1, 60, seed=seed)[0].tolist(), [5]) for seed in range(4096)]
    variants = [variant(model, "blocks.0.hook_resid_post")]
    expected = scored(Scorer(model, variants, rows=4, limit=64), batch)
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    roomy = Scorer(model, variants, rows=1024, limit=64)
    roomy.layout  # noqa: B018  (tried before memory is short)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**26) / total)
    try:
        monkeypatch.setattr(scoring.logger, "propagate", True)
        answers = scored(roomy, batch)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert roomy.rows < 1024
    for answer, other in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer.logprob, other.logprob, atol=1e-4)
