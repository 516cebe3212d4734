"""What was remembered is used only where nothing has changed that an answer depends on; the user's objects stay."""

from __future__ import annotations

import copy
import importlib.metadata
import json

import numpy as np
import pytest
import tokenizers
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.loggers.utils import add_env_info
from models import WIDTH, random_model, random_sae, word_tokenizer, words

from sae_lm_eval.fidelity.source import TextSource
from sae_lm_eval.harness.joined import joined
from sae_lm_eval.harness.model import SaeHFLM
from sae_lm_eval.runtime.content import contents
from sae_lm_eval.runtime.journal import Journal
from sae_lm_eval.scoring import identity
from sae_lm_eval.scoring.scorer import Scorer
from sae_lm_eval.splicing.arguments import requested_splices

peft = pytest.importorskip("peft")
RESID = "blocks.1.hook_resid_post"
Z = "blocks.1.attn.hook_z"


def requests(kind: str = "loglikelihood") -> list[Instance]:
    contexts = [words(n, seed=n) for n in (4, 9, 12)]
    arguments: list[tuple] = [(c, f" {words(2, seed=50 + i)}") for i, c in enumerate(contexts)]
    if kind == "generate_until":
        arguments = [(c, {"until": ["w5"], "max_gen_toks": 4, "do_sample": False}) for c in contexts]
    return [Instance(kind, {}, a, i, ("task", i, 1)) for i, a in enumerate(arguments)]  # pyright: ignore


def adapter(model=None, sae=None, **kwargs) -> SaeHFLM:
    model = random_model("llama") if model is None else model
    sae = random_sae(WIDTH, RESID, "topk") if sae is None else sae
    return SaeHFLM(pretrained=model, tokenizer=kwargs.pop("tokenizer", word_tokenizer()), sae=sae, **kwargs)


def scores(lm, instances=None) -> list[float]:
    return [logprob for logprob, _ in lm.loglikelihood(requests() if instances is None else instances)]


class Split:
    def pre_tokenize(self, pretok) -> None:
        pretok.split(lambda _number, text: [part for part in text.split(" ", "removed") if str(part)])


def in_python(tokenizer):
    """With a part that cannot be copied or written down."""
    tokenizer.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.PreTokenizer.custom(Split())
    return tokenizer


def lora(model, *, seed: int):
    torch.manual_seed(seed)
    config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False, r=2)
    return peft.get_peft_model(model, config)


def train(module: torch.nn.Module) -> None:
    """As an optimiser of PEFT's kind does, which no counter of versions sees."""
    for weight in module.parameters():
        weight.data.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))


def steer(model) -> None:
    model.model.layers[0].register_forward_hook(lambda _module, _args, output: output * 1.3)


def permute(model) -> None:
    model.model.layers[2].mlp.up_proj.weight.data = model.model.layers[2].mlp.up_proj.weight.data.roll(1, 0)


def eager_scaling(model) -> None:
    for layer in model.model.layers:
        layer.self_attn.scaling *= 3


def stretch(model) -> None:
    model.model.rotary_emb.inv_freq.mul_(0.5)


def change_config(model) -> None:
    model.config.rms_norm_eps = 1.0
    for norm in model.modules():
        if hasattr(norm, "variance_epsilon"):
            norm.variance_epsilon = 1.0


MODEL_CHANGES = (train, steer, permute, eager_scaling, stretch, change_config)


def narrow(sae) -> None:
    sae.activation_fn.k, sae.cfg.k = 2, 2


SAE_CHANGES = (train, narrow)


class TestAskedAgain:
    @pytest.mark.parametrize("change", MODEL_CHANGES)
    def test_after_a_change_of_the_model(self, change):
        model, sae = random_model("llama"), random_sae(WIDTH, RESID, "topk")
        lm = adapter(model, sae)
        before = scores(lm)
        change(model)
        after = scores(lm)
        assert np.abs(np.subtract(after, before)).max() > 1e-3
        np.testing.assert_allclose(after, scores(adapter(model, sae)), atol=1e-5)

    @pytest.mark.parametrize("change", SAE_CHANGES)
    def test_after_a_change_of_the_dictionary(self, change):
        model, sae = random_model("llama"), random_sae(WIDTH, RESID, "topk")
        lm = adapter(model, sae)
        before = scores(lm)
        change(sae)
        after = scores(lm)
        assert np.abs(np.subtract(after, before)).max() > 1e-3
        np.testing.assert_allclose(after, scores(adapter(model, sae)), atol=1e-5)

    def test_nothing_is_run_again_while_nothing_changes(self, monkeypatch):
        lm = adapter()
        before = scores(lm)
        monkeypatch.setattr(Scorer, "score", lambda *_args, **_kwargs: pytest.fail("they are known"))
        assert scores(lm) == before

    @pytest.mark.parametrize("kind", ["generate_until", "_model_call", "loglikelihood_rolling", "sae_fidelity"])
    def test_in_every_way_of_asking(self, kind):
        model, sae = random_model("llama"), random_sae(WIDTH, RESID, "topk")

        def answers(lm):
            if kind == "_model_call":
                return lm._model_call(torch.tensor([[5, 6, 7]])).tolist()
            if kind == "generate_until":
                return lm.generate_until(requests(kind))
            arguments = (
                (words(12, seed=1),) if kind == "loglikelihood_rolling" else (words(12, seed=1), None, TextSource("t"))
            )
            outputs = getattr(lm, kind)([Instance(kind, {}, arguments, 0, ("t", 0, 1))])  # pyright: ignore
            return [round(outputs[0], 4)] if kind == "loglikelihood_rolling" else [round(outputs[0]["nll_spliced"], 4)]

        lm = adapter(model, sae)
        before = answers(lm)
        train(sae)
        after = answers(lm)
        assert before != after == answers(adapter(model, sae))

    def test_of_variants_that_are_answered_together(self):
        model, saes = random_model("llama"), [random_sae(WIDTH, RESID, seed=i) for i in range(2)]
        baseline = SaeHFLM(pretrained=model, tokenizer=word_tokenizer(), sae=[], splice="none")
        variants = [baseline.as_variant(requested_splices(sae)) for sae in saes]
        baseline, *variants = joined(baseline, variants)
        before = [scores(lm) for lm in (baseline, *variants)]
        train(saes[1])
        after = [scores(lm) for lm in (baseline, *variants)]
        assert after[:2] == before[:2]
        np.testing.assert_allclose(after[2], scores(adapter(model, saes[1])), atol=1e-5)
        assert np.abs(np.subtract(after[2], before[2])).max() > 1e-3
        train(model)
        again = [scores(lm) for lm in (baseline, *variants)]
        for old, new, sae in zip(after[1:], again[1:], saes, strict=True):
            assert old != new
            np.testing.assert_allclose(new, scores(adapter(model, sae)), atol=1e-5)

    def test_divergences_are_of_the_last_time(self):
        model, sae = random_model("llama"), random_sae(WIDTH, RESID, "topk")
        lm = adapter(model, sae)
        scores(lm)
        scores(lm)
        assert lm.divergence.by_task()["task"]["positions"] == 6
        train(sae)
        scores(lm, requests()[:2])
        other = adapter(model, sae)
        scores(other, requests()[:2])
        assert lm.divergence.by_task()["task"] == pytest.approx(other.divergence.by_task()["task"], rel=1e-4)

    def test_activation_maps_that_are_made_of_the_models_weights(self):
        sae = random_sae(WIDTH, Z, model_from_pretrained_kwargs={"fold_value_biases": True})
        model = random_model("gpt2")
        lm = adapter(model, sae)
        scores(lm)
        for name, weight in model.named_parameters():
            if name.endswith("c_attn.bias"):
                weight.data.add_(1.0)
        np.testing.assert_allclose(scores(lm), scores(adapter(model, sae)), atol=1e-5)

    def test_means_follow_the_text_and_the_model(self, tmp_path):
        text = tmp_path / "text.txt"
        text.write_text(words(40, seed=0))
        model, sae = random_model("llama"), random_sae(WIDTH, RESID)
        how = {"splice": "mean", "mean_text": str(text), "mean_tokens": 30}
        lm = adapter(model, sae, **how)
        before = scores(lm)
        text.write_text(words(40, seed=1))
        after = scores(lm)
        assert after != before
        np.testing.assert_allclose(after, scores(adapter(model, sae, **how)), atol=1e-5)
        train(model)
        np.testing.assert_allclose(scores(lm), scores(adapter(model, sae, **how)), atol=1e-5)
        text.unlink()
        assert scores(lm) == scores(lm)

    def test_the_tokenizer_that_was_handed_over(self):
        tokenizer, model, sae = word_tokenizer(), random_model("llama"), random_sae(WIDTH, RESID)
        lm = adapter(model, sae, tokenizer=tokenizer)
        before = scores(lm)
        tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.Replace("w1", "w2")
        after = scores(lm)
        assert after != before
        np.testing.assert_allclose(after, scores(adapter(model, sae, tokenizer=tokenizer)), atol=1e-5)

    def test_ids_are_remembered_within_a_call_alone(self):
        lm = adapter()
        assert lm.tok_encode("w4 w5") == [4, 5]
        lm.tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.Replace("w4", "w6")
        assert lm.tok_encode("w4 w5") == [6, 5]


class TestCacheFile:
    """`--use_cache`: members that hold something else, asked one after the other from one file."""

    @staticmethod
    def members(tmp_path):
        texts = [tmp_path / name for name in ("one.txt", "two.txt")]
        for seed, text in enumerate(texts):
            text.write_text(words(40, seed=seed))
        narrow_sae, other = random_sae(WIDTH, RESID, "topk"), random_sae(WIDTH, RESID, "topk")
        narrow(narrow_sae)
        train(other)
        changed = {change.__name__: random_model("llama") for change in MODEL_CHANGES}
        for change in MODEL_CHANGES:
            change(changed[change.__name__])
        sdpa = random_model("llama")
        sdpa.set_attn_implementation("sdpa")
        mean = {"splice": "mean", "mean_tokens": 30}
        return {
            "base": adapter(),
            "lora a": adapter(lora(random_model("llama"), seed=1)),
            "lora b": adapter(lora(random_model("llama"), seed=2)),
            "k": adapter(sae=narrow_sae),
            "other weights": adapter(sae=other),
            "mean of one": adapter(**mean, mean_text=str(texts[0])),
            "mean of two": adapter(**mean, mean_text=str(texts[1])),
            "in bfloat16": adapter(random_model("llama").bfloat16()),
            "sdpa": adapter(sdpa),
            "prefix": adapter(prefix_token_id=7),
            "a bos": adapter(add_bos_token=True, tokenizer=word_tokenizer(adds_bos=True)),
            **{name: adapter(model) for name, model in changed.items()},
        }

    def test_each_gets_its_own(self, tmp_path):
        file = str(tmp_path / "cache.db")
        expected = {name: scores(lm) for name, lm in self.members(tmp_path).items()}
        for _ in range(2):
            for name, lm in self.members(tmp_path).items():
                assert scores(CachingLM(lm, file)) == expected[name], name
        identities = [lm.spliced.identity() for lm in self.members(tmp_path).values()]
        assert len(set(identities)) == len(identities)

    def test_the_same_content_elsewhere_is_the_same(self, tmp_path):
        (tmp_path / "one.txt").write_text(words(40, seed=0))
        (tmp_path / "two.txt").write_text(words(40, seed=0))
        sae = random_sae(WIDTH, RESID)
        identities = set()
        for name in ("one", "two"):
            sae.save_model(tmp_path / name)
            random_model("llama").save_pretrained(tmp_path / f"model {name}")
            word_tokenizer().save_pretrained(tmp_path / f"model {name}")
            how = {"splice": "mean", "mean_tokens": 30, "mean_text": str(tmp_path / f"{name}.txt")}
            lm = SaeHFLM(pretrained=str(tmp_path / f"model {name}"), sae=str(tmp_path / name), device="cpu", **how)
            identities.add(lm.spliced.identity())
        assert len(identities) == 1

    def test_one_adapter_between_changes(self, tmp_path):
        model, sae = random_model("llama"), random_sae(WIDTH, RESID)
        cached = CachingLM(adapter(model, sae), str(tmp_path / "cache.db"))
        before = scores(cached)
        train(model)
        middle = scores(cached)
        train(sae)
        after = scores(cached)
        assert len({tuple(answers) for answers in (before, middle, after)}) == 3
        np.testing.assert_allclose(middle, scores(adapter(model, random_sae(WIDTH, RESID))), atol=1e-5)
        np.testing.assert_allclose(after, scores(adapter(model, sae)), atol=1e-5)

    def test_an_adapter_that_is_switched_off(self, tmp_path):
        model = lora(random_model("llama"), seed=1)
        cached = CachingLM(adapter(model), str(tmp_path / "cache.db"))
        on = scores(cached)
        with model.disable_adapter():
            off = scores(cached)
        np.testing.assert_allclose(off, scores(adapter()), atol=1e-5)
        assert on != off
        assert scores(cached) == on

    def test_a_journal(self, tmp_path):
        """The same, as a run keeps answers: texts, and documents of fidelity."""
        model, sae = random_model("llama"), random_sae(WIDTH, RESID)

        def texts_and_sums():
            baseline = SaeHFLM(pretrained=model, tokenizer=word_tokenizer(), sae=[], splice="none")
            variant = baseline.as_variant(requested_splices(sae))
            _, variant = joined(baseline, [variant], Journal(tmp_path / "journal"))
            fidelity = [Instance("sae_fidelity", {}, (words(9, seed=1), None, TextSource("t")), 0, ("t", 0, 1))]  # pyright: ignore
            return variant.generate_until(requests("generate_until")), variant.sae_fidelity(fidelity)[0]["nll_spliced"]

        before = texts_and_sums()
        train(sae)
        after = texts_and_sums()
        assert before[0] != after[0]
        assert before[1] != after[1]
        assert texts_and_sums() == after


class TestTheUsersObjects:
    def test_are_given_back_as_they_were(self):
        model, sae = random_model("llama").train().requires_grad_(True), random_sae(WIDTH, RESID).train()
        model.model.layers[0].eval()  # as a user may freeze a part
        tokenizer, saes = word_tokenizer(), [sae]
        tokenizer.pad_token, tokenizer.padding_side = None, "left"
        modes = [part.training for part in model.modules()]
        configs = copy.deepcopy((model.config.to_dict(), model.generation_config.to_dict(), vars(model.config)))
        before, of_tokenizer = contents({"model": model, "sae": sae}), identity.tokenizer_content(tokenizer)
        arguments = [copy.deepcopy(request.args) for request in requests("generate_until")]

        lm = adapter(model, saes, tokenizer=tokenizer)
        assert [part.training for part in model.modules()] == modes
        scores(lm)
        instances = requests("generate_until")
        lm.generate_until(instances)
        lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (words(9, seed=1),), 0, ("t", 0, 1))])  # pyright: ignore
        lm.sae_fidelity([Instance("sae_fidelity", {}, (words(9, seed=1), None, TextSource("t")), 0, ("t", 0, 1))])  # pyright: ignore
        lm.get_model_info()

        assert [part.training for part in model.modules()] == modes
        assert contents({"model": model, "sae": sae}) == before
        assert (model.config.to_dict(), model.generation_config.to_dict(), vars(model.config)) == configs
        assert all(weight.requires_grad for weight in model.parameters())
        assert sae.training
        assert identity.tokenizer_content(tokenizer) == of_tokenizer
        assert (tokenizer.pad_token, tokenizer.padding_side) == (None, "left")
        assert saes == [sae]
        assert [request.args for request in instances] == arguments

    def test_the_model_is_in_eval_mode_while_it_answers(self):
        model = random_model("gpt2").train()
        for part in model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.5
        lm, quiet = adapter(model), random_model("gpt2")
        assert scores(lm) == scores(adapter(quiet))
        assert model.training
        ids = torch.tensor([[5, 6, 7]])
        assert torch.equal(lm._model_call(ids), adapter(quiet)._model_call(ids))

    def test_the_modes_come_back_when_something_is_raised(self):
        model = random_model("llama").train()
        lm = adapter(model)
        model.model.norm.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            scores(lm)
        assert all(part.training for part in model.modules())


class TestVersions:
    def test_patches_leave_answers_where_they_are(self, monkeypatch):
        version = importlib.metadata.version
        lm = adapter()
        before = lm.spliced.identity()

        def pretend(**other):
            identity._versions.cache_clear()
            monkeypatch.setattr(importlib.metadata, "version", lambda name: other.get(name) or version(name))
            return lm.spliced.identity()

        try:
            assert pretend(torch=f"{version('torch').split('+')[0]}+cu130") == before
            assert pretend(transformers="4.1.0") != before
        finally:
            monkeypatch.undo()
            identity._versions.cache_clear()

    def test_packages_that_took_part_are_named(self):
        assert "peft" not in adapter().spliced.provenance()["packages"]
        assert "peft" in adapter(lora(random_model("llama"), seed=1)).spliced.provenance()["packages"]
        assert json.dumps(adapter().spliced.provenance())


class TestTokenizerContent:
    def test_what_decides_ids_counts_and_what_a_call_sets_does_not(self):
        tokenizer = word_tokenizer()
        before = identity.tokenizer_content(tokenizer)
        assert identity.tokenizer_content(copy.deepcopy(tokenizer)) == before
        tokenizer(["w4 w5", "w6"], padding=True, truncation=True, max_length=2)
        assert identity.tokenizer_content(tokenizer) == before
        seen = {before, identity.tokenizer_content(word_tokenizer(adds_bos=True))}
        tokenizer.add_tokens(["w4 w5"])
        seen.add(identity.tokenizer_content(tokenizer))
        tokenizer.eos_token = "w9"
        seen.add(identity.tokenizer_content(tokenizer))
        assert len(seen) == 4

    def test_a_part_in_python_is_never_the_same(self):
        tokenizer = in_python(word_tokenizer())
        assert identity.tokenizer_content(tokenizer) != identity.tokenizer_content(tokenizer)

    def test_a_tokenizer_with_a_part_in_python_serves_and_stays(self):
        tokenizer = in_python(word_tokenizer())
        tokenizer.pad_token = None
        model, sae = random_model("llama"), random_sae(WIDTH, RESID)
        lm = adapter(model, sae, tokenizer=tokenizer)
        np.testing.assert_allclose(scores(lm), scores(adapter(model, sae)), atol=1e-5)
        assert lm.tokenizer.pad_token is not None
        assert tokenizer.pad_token is None


def test_the_machine_is_looked_at_once(monkeypatch):
    """lm_eval asks for it after each evaluation by this name, at the time of asking."""
    from torch.utils import collect_env

    started = []
    monkeypatch.setattr(
        collect_env,
        "get_env_info",
        lambda: started.append(1) or collect_env.SystemEnv(*[None] * len(collect_env.SystemEnv._fields)),
    )
    monkeypatch.setattr(collect_env, "pretty_str", lambda _info: "a machine")
    collect_env.get_pretty_env_info.cache_clear()
    try:
        storages: list[dict] = [{}, {}]
        for storage in storages:
            add_env_info(storage)
        assert [storage["pretty_env_info"] for storage in storages] == ["a machine"] * 2
        assert len(started) == 1
    finally:
        collect_env.get_pretty_env_info.cache_clear()
