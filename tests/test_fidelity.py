"""The sae_fidelity tasks: what must hold of them, and SAELens' own evaluation of the same model, SAE and tokens."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import lm_eval
import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from models import CONTEXT, WIDTH, random_model, random_sae, word_tokenizer, words
from oracle import hooked_transformer
from sae_lens.evals import ExplainedVarianceCalculator, get_recons_loss
from sae_lens.training.activation_scaler import ActivationScaler

from sae_lm_eval import SaeHFLM, UserError
from sae_lm_eval.fidelity.metrics import metric_values
from sae_lm_eval.fidelity.source import TextSource
from sae_lm_eval.harness.fidelity_task import documents_of_file
from sae_lm_eval.harness.joined import joined
from sae_lm_eval.splicing.arguments import requested_splices

TASKS = Path(__file__).parents[1] / "tasks" / "sae_fidelity"
RESID = "blocks.1.hook_resid_post"
# One that fills several windows, some of the same beginning, one of a single token.
TEXTS = [words(n, seed=n) for n in (3 * CONTEXT + 7, 20, 33, CONTEXT, 1)]
TEXTS += [f"{TEXTS[1]} {words(9, seed=90)}", f"w5 </s> {words(7, seed=91)}"]
HELD_OUT = tuple(words(30, seed=s) for s in (70, 71))
SOURCE = TextSource("test", HELD_OUT)


def adapter(*saes, model: str = "llama", batch_size: int = 3, **kwargs) -> SaeHFLM:
    saes = list(saes) or [random_sae(WIDTH, RESID)]
    return SaeHFLM(
        pretrained=random_model(model), tokenizer=word_tokenizer(), sae=saes, batch_size=batch_size, **kwargs
    )


def ask(lm: SaeHFLM, texts=TEXTS, *, source: TextSource = SOURCE, categories=None) -> list[dict]:
    categories = categories or [None] * len(texts)
    requests = [
        Instance("sae_fidelity", {}, (t, c, source), 0, ("fidelity", i, 1))  # pyright: ignore[reportArgumentType]
        for i, (t, c) in enumerate(zip(texts, categories, strict=True))
    ]
    return lm.sae_fidelity(requests, disable_tqdm=True)


def rolling(lm: HFLM, texts=TEXTS) -> np.ndarray:
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    return -np.array(lm.loglikelihood_rolling(requests, disable_tqdm=True))


@torch.no_grad()
def spoken(model: str, count: int, *, seed: int) -> str:
    """A text that the random model finds likely, so that there is a loss to recover."""
    lm, generator, ids = random_model(model), torch.Generator().manual_seed(seed), [1]
    for _ in range(count):
        likely = (2 * lm(input_ids=torch.tensor([ids])).logits[0, -1, 3:]).softmax(-1)
        ids.append(3 + int(torch.multinomial(likely, 1, generator=generator)))
    return " ".join(f"w{i}" for i in ids[1:])


def column(records: list[dict], name: str) -> np.ndarray:
    return np.array([record[name] for record in records])


def assert_close(a, b, within=1e-6):
    """Records of sums, per token."""
    for record, expected in zip(a, b, strict=True):
        for name in record:
            if name == "dictionaries":
                assert_close(record[name].values(), expected[name].values(), within)
            elif isinstance(record[name], float):
                size = expected.get("tokens") or expected.get("positions") or 1
                assert record[name] == pytest.approx(expected[name], rel=within, abs=within * size), name
            else:
                assert record[name] == expected[name]


@pytest.mark.parametrize("model", ["gpt2", "llama", "gemma3"])
def test_cross_entropies_are_those_of_lm_evals_rolling_loglikelihood(model):
    records = ask(adapter(model=model))
    tokens = column(records, "tokens")
    assert tokens.tolist() == [len(text.split()) for text in TEXTS]
    untouched = HFLM(pretrained=random_model(model), tokenizer=word_tokenizer(), batch_size=3)
    for name, lm in {
        "nll_baseline": untouched,
        "nll_spliced": adapter(model=model, splice="reconstruction"),
        "nll_zero": adapter(model=model, splice="zero"),
    }.items():
        assert (np.abs(column(records, name) - rolling(lm)) / tokens).max() < 1e-5, name
    assert np.array_equal(column(records, "nll_baseline"), column(records, "nats_baseline"))


def test_mean_ablation_puts_the_mean_of_the_other_documents_there(tmp_path):
    (tmp_path / "mean.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in HELD_OUT))
    records = ask(adapter())
    lm = adapter(splice="mean", mean_text=str(tmp_path / "mean.jsonl"))
    assert (np.abs(column(records, "nll_mean") - rolling(lm)) / column(records, "tokens")).max() < 1e-5


@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_zeros_and_means_have_no_dictionary_to_measure(mode, tmp_path):
    (tmp_path / "mean.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in HELD_OUT))
    lm = adapter(splice=mode, **({"mean_text": str(tmp_path / "mean.jsonl")} if mode == "mean" else {}))
    assert "dictionaries" not in ask(lm)[0]
    (record,) = lm.fidelity.by_task.values()
    assert record["undefined"]["l0"] == f"the mode is {mode}, so no dictionary is in the model"
    assert "l0" in metric_values(ask(adapter()))


def test_splice_none_moves_nothing_to_the_bit():
    records = ask(adapter(splice="none"))
    assert np.array_equal(column(records, "nll_spliced"), column(records, "nll_baseline"))
    assert not column(records, "kl").any()
    assert not column(records, "kl_reverse").any()
    assert np.array_equal(column(records, "agreement"), column(records, "tokens"))
    assert_close(
        [r["dictionaries"] for r in records], [r["dictionaries"] for r in ask(adapter(splice="with_error"))], 1e-4
    )


def test_with_error_moves_next_to_nothing():
    values = metric_values(ask(adapter(splice="with_error")))
    assert abs(values["ce_delta"]) < 1e-5  # pyright: ignore[reportArgumentType]
    assert abs(values["kl"]) < 1e-5  # pyright: ignore[reportArgumentType]
    assert values["top1_agreement"] == 1


@pytest.mark.parametrize("architecture", ["standard", "temporal"])
def test_the_batch_changes_nothing(architecture):
    sae = random_sae(WIDTH, RESID, architecture)
    together = ask(adapter(sae, batch_size=8))
    alone = [ask(adapter(sae, batch_size=1), [text])[0] for text in TEXTS]
    for record in (*together, *alone):
        for dictionary in record["dictionaries"].values():  # these depend on what else is in the text
            for within in ("text", "category"):
                for name in ("squared_deviation", "fired_first", "fired_only"):
                    del dictionary[f"{name}_{within}"]
    for record in (*together, *alone):
        del record["document"]
    assert_close(together, alone, 2e-6)


def test_positions_of_special_tokens_can_be_left_out():
    everything, some = ask(adapter()), ask(adapter(), source=replace(SOURCE, positions="non_special"))
    # The input of the first position is the prefix token; the last text has an </s> inside besides.
    assert (column(everything, "tokens") - column(some, "tokens")).tolist() == [1, 1, 1, 1, 1, 1, 2]
    assert np.array_equal(column(everything, "nats_spliced"), column(some, "nats_spliced"))
    counted = [record["dictionaries"][RESID]["positions"] for record in everything]
    assert counted == column(some, "tokens").tolist()
    spliced_everywhere = ask(adapter(splice_tokens="all"))
    counted = [record["dictionaries"][RESID]["positions"] for record in spliced_everywhere]
    assert counted == column(everything, "tokens").tolist()


@torch.no_grad()
def test_the_dictionaries_statistics_by_hand():
    """Of what a first dictionary left, at every position that is read once and holds no special token."""
    hooks = ("blocks.0.hook_resid_post", RESID)
    first, second = random_sae(WIDTH, hooks[0], seed=1), random_sae(WIDTH, hooks[1], seed=2)
    model, texts = random_model("llama"), [TEXTS[1], TEXTS[2]]
    records = ask(adapter(first, second), texts)
    seen, elements = [], []

    def replaced(_m, _a, output):
        new = first(output)
        return torch.where(ids[..., None] == 1, output, new)

    for text in texts:
        ids = torch.tensor([[1, *(int(word[1:]) for word in text.split()[:-1])]])
        with model.model.layers[0].register_forward_hook(replaced):
            x = model(input_ids=ids, output_hidden_states=True).hidden_states[2][0, 1:]
        seen.append(x)
        elements.append(second.encode(x) != 0)
    x = torch.cat(seen).double()
    reconstruction = second(torch.cat(seen)).double()
    values = metric_values(records)
    fvu = float((x - reconstruction).square().sum() / (x - x.mean(0)).square().sum())
    expected = {
        "l0": float(torch.cat(elements).sum(-1).double().mean()),
        "fvu": fvu,
        "explained_variance": 1 - fvu,
        "cosine": float(torch.cosine_similarity(x, reconstruction, dim=-1).mean()),
        "norm_ratio": float((reconstruction.norm(dim=-1) / x.norm(dim=-1)).mean()),
        "fraction_fired": float(torch.cat(elements).any(0).double().mean()),
    }
    for name, value in expected.items():
        assert values[f"{name}/{hooks[1]}"] == pytest.approx(value, rel=1e-5), name
    only = [float((a.any(0) & ~b.any(0)).double().mean()) for a, b in (elements, elements[::-1])]
    assert [record["dictionaries"][hooks[1]]["fired_only_text"] for record in records] == pytest.approx(only)


def test_a_category_is_as_if_its_documents_were_the_text():
    kinds = ["a", "b", "a", "b", "a", "b", "a"]
    lm = adapter()
    ask(lm, categories=kinds)
    by_category = lm.get_model_info()["sae_lm_eval"]["fidelity"]["fidelity"]["by_category"]
    assert sorted(by_category) == ["a", "b"]
    alone = metric_values(ask(adapter(), [text for text, kind in zip(TEXTS, kinds, strict=True) if kind == "b"]))
    assert by_category["b"]["documents"] == 3
    defined = {name: value for name, value in alone.items() if value is not None}
    assert {name for name, value in by_category["b"].items() if value is None} == set(alone) - set(defined)
    for name, value in defined.items():
        assert by_category["b"][name] == pytest.approx(value, rel=1e-5, abs=1e-7), name


def test_without_other_documents_there_is_no_mean():
    lm = adapter()
    values = metric_values(ask(lm, [spoken("llama", 20, seed=0)], source=TextSource("alone")))
    assert values["ce_mean"] is None
    assert values["loss_recovered_zero"] is not None
    said = lm.fidelity.by_task["fidelity"]
    assert said["mean"] is None
    assert "no documents outside" in said["undefined"]["ce_mean"]


def test_every_variant_of_a_model_answers_for_itself():
    baseline = SaeHFLM(pretrained=random_model("llama"), tokenizer=word_tokenizer(), sae=[], splice="none")
    first, second = (baseline.as_variant(requested_splices(random_sae(WIDTH, RESID, seed=seed))) for seed in (0, 5))
    baseline, first, second = joined(baseline, [first, second])
    assert_close(ask(first), ask(adapter()))
    assert_close(ask(second), ask(adapter(random_sae(WIDTH, RESID, seed=5))))
    assert_close(
        [{"nll_baseline": r["nll_baseline"], "tokens": r["tokens"]} for r in ask(baseline)],
        [{"nll_baseline": r["nll_baseline"], "tokens": r["tokens"]} for r in ask(first)],
    )


class TestAgainstSaeLens:
    """`sae_lens.evals` on the same weights in TransformerLens, with the same positions masked."""

    @pytest.mark.parametrize("splice_tokens", ["all", "non_special"])
    @torch.no_grad()
    def test_the_metrics_agree(self, splice_tokens):
        sae, rows, length = random_sae(WIDTH, RESID), 4, 40
        texts = [spoken("gpt2", length, seed=s) for s in range(rows)]
        ignored = [0, 1, 2] if splice_tokens == "non_special" else None
        positions = "non_special" if ignored else "all"
        lm = adapter(sae, model="gpt2", splice_tokens=splice_tokens)
        values = metric_values(ask(lm, texts, source=replace(SOURCE, positions=positions)))

        ids = torch.tensor([[1, *(int(word[1:]) for word in text.split())] for text in texts])
        hooked = hooked_transformer(random_model("gpt2"), processed=False)
        scaler = ActivationScaler()

        def recons(tokens):
            losses = get_recons_loss(
                sae, hooked, scaler, tokens, compute_kl=True, compute_ce_loss=True, ignore_tokens=ignored
            )
            kept = torch.ones_like(tokens, dtype=torch.bool)
            if ignored:
                kept = ~torch.isin(tokens, torch.tensor(ignored))
            return {name: float(v[kept[:, : v.shape[1]]].mean()) for name, v in losses.items()}

        # SAELens takes the KL at the last token too, which rolling loglikelihood never reads.
        ce, kl = recons(ids), recons(ids[:, :-1])
        assert values["ce_baseline"] == pytest.approx(ce["ce_loss_without_sae"], abs=1e-4)
        assert values["ce_spliced"] == pytest.approx(ce["ce_loss_with_sae"], abs=1e-4)
        assert values["kl"] == pytest.approx(kl["kl_div_with_sae"], abs=1e-4)
        if ignored is None:  # its zero ablation masks nothing
            assert values["ce_zero"] == pytest.approx(ce["ce_loss_with_ablation"], abs=1e-4)
            score = (ce["ce_loss_with_ablation"] - ce["ce_loss_with_sae"]) / (
                ce["ce_loss_with_ablation"] - ce["ce_loss_without_sae"]
            )
            assert values["loss_recovered_zero"] == pytest.approx(score, abs=1e-4)

        _, cache = hooked.run_with_cache(ids[:, :-1], prepend_bos=False, names_filter=[RESID])
        x = cache[RESID].flatten(0, 1)
        x = x[~torch.isin(ids[:, :-1].flatten(), torch.tensor(ignored))] if ignored else x
        calculator = ExplainedVarianceCalculator()
        calculator.add_batch(sae.decode(sae.encode(x)), x)
        assert values["explained_variance"] == pytest.approx(calculator.compute(), abs=1e-4)
        assert values["l0"] == pytest.approx(float((sae.encode(x) != 0).sum(-1).float().mean()), abs=1e-4)


class TestTask:
    @staticmethod
    def file(tmp_path, count=12):
        lines = [{"body": spoken("llama", 5 + i, seed=i), "kind": "odd" if i % 2 else "even"} for i in range(count)]
        path = tmp_path / "text.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    @staticmethod
    def evaluate(lm, options, **kwargs):
        # lm_eval's own tasks take ten seconds to list.
        tasks = TaskManager(include_path=str(TASKS), include_defaults=False, metadata={"sae_fidelity_text": options})
        return lm_eval.simple_evaluate(model=lm, tasks=["sae_fidelity_text"], task_manager=tasks, **kwargs)

    def test_results_are_in_lm_evals_own_schema(self, tmp_path):
        options = {"file": str(self.file(tmp_path)), "column": "body", "category": "kind"}
        written = self.evaluate(adapter(), options, limit=8)
        assert written is not None
        results = written["results"]["sae_fidelity_text"]
        for name in ("ce_baseline", "loss_recovered_mean", "kl", "l0", "fraction_fired"):
            assert isinstance(results[f"{name},none"], float)
            assert results[f"{name}_stderr,none"] >= 0
        assert written["n-samples"]["sae_fidelity_text"] == {"original": 11, "effective": 8}
        said = written["config"]["sae_lm_eval"]["fidelity"]["sae_fidelity_text"]
        assert sorted(said["by_category"]) == ["even", "odd"]
        assert said["mean"]["tokens"] == 5 + 11
        assert (said["split"], said["mean"]["split"]) == ("test", "test")
        sample = written["samples"]["sae_fidelity_text"][0]
        number, nll, tokens = sample["ce_baseline"]
        assert number == 0
        assert tokens == 5
        assert math.isfinite(nll)
        assert sample["resps"][0][0]["nll_baseline"] == nll
        json.dumps(written["samples"], default=str)
        total = sum(s["ce_baseline"][1] for s in written["samples"]["sae_fidelity_text"])
        assert results["ce_baseline,none"] == pytest.approx(total / sum(range(5, 13)))

    def test_no_resamples_no_errors(self, tmp_path):
        options = {"file": str(self.file(tmp_path)), "column": "body"}
        written = self.evaluate(adapter(), options, bootstrap_iters=0)
        assert written is not None
        assert written["results"]["sae_fidelity_text"]["kl_stderr,none"] == "N/A"

    def test_mistakes_are_told(self, tmp_path):
        path = str(self.file(tmp_path))
        for options, sentence in (
            ({}, "sae_fidelity_text needs a text of yours"),
            ({"file": path}, "has no column 'text'. It has body, kind."),
            (
                {"file": path, "column": "body", "positions": "some"},
                "positions of sae_fidelity_text: 'some' is unknown",
            ),
            ("text.jsonl", "an object of options is wanted"),
        ):
            with pytest.raises(UserError, match=sentence.replace("(", r"\(")):
                self.evaluate(adapter(), options)

    def test_other_models_say_what_they_need(self, tmp_path):
        options = {"file": str(self.file(tmp_path)), "column": "body"}
        untouched = HFLM(pretrained=random_model("llama"), tokenizer=word_tokenizer())
        with pytest.raises(UserError, match="run them with --model sae_hf and sae="):
            self.evaluate(untouched, options)


def test_documents_of_a_file_may_have_no_gaps(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "w3", "kind": "a"}\n{"text": "w4", "kind": " "}\n')
    with pytest.raises(UserError, match="has rows where 'text' or 'kind' is empty"):
        documents_of_file(str(path), category="kind")


def test_documents_of_a_file_are_all_of_it_in_order(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"w{i} é", "kind": str(i % 3)}) + "\n" for i in range(2500)))
    documents = documents_of_file(str(path), category="kind")["test"]
    assert documents.to_dict() == {"text": [f"w{i} é" for i in range(2500)], "kind": [str(i % 3) for i in range(2500)]}
    other = tmp_path / "other.jsonl"
    other.write_text(path.read_text().replace("w2499", "w2498"))
    assert documents_of_file(str(other), category="kind")["test"]._fingerprint != documents._fingerprint


def test_a_text_in_one_piece_of_hundreds_of_megabytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sae_lm_eval.harness.fidelity_task.MOST_LETTERS", 10**6)
    path = tmp_path / "text.txt"
    path.write_text("word " * 400_000)
    with pytest.raises(
        UserError, match=r"has a document of 2 million characters.* cut it into documents of at most 1 m"
    ):
        documents_of_file(str(path))
