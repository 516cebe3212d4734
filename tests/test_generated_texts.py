"""generate_until of a baseline and its variants together, against lm_eval's own way with each of them by itself."""

from __future__ import annotations

import functools
import logging
from dataclasses import replace

import pytest
import torch
import transformers
from lm_eval.models.huggingface import HFLM
from models import WIDTH, random_model, random_sae, word_tokenizer
from runs import answers, write_run
from test_adapter import RESID, Instance, words

from sae_lm_eval import SaeHFLM
from sae_lm_eval.harness import generation
from sae_lm_eval.harness.generation import TextSettings
from sae_lm_eval.harness.joined import joined
from sae_lm_eval.report.assemble import build, compare_tasks
from sae_lm_eval.report.parting_figure import parting_pictures
from sae_lm_eval.results.results import read_results
from sae_lm_eval.runtime.journal import Journal
from sae_lm_eval.scoring.decoding import Decoder
from sae_lm_eval.scoring.parting import share_together
from sae_lm_eval.splicing.arguments import requested_splices

GREEDY = {"until": ["w5"], "max_gen_toks": 8, "do_sample": False}


def requests(*kinds: dict) -> list[Instance]:
    """Questions behind one header, under each kind of settings."""
    header = words(12, seed=0)
    contexts = [f"{header} {words(n, seed=n)}" for n in (2, 5, 3, 9)] + ["w8", words(80, seed=7)]
    return [
        Instance(request_type="generate_until", doc={}, arguments=(context, kind), idx=0)
        for kind in kinds
        for context in contexts
    ]


@pytest.fixture
def family():
    def build(*saes, model=None, journal=None, **kwargs):
        model = random_model("llama") if model is None else model
        lm = SaeHFLM(pretrained=model, tokenizer=word_tokenizer(), sae=[], splice="none", batch_size=2, **kwargs)
        return joined(lm, [lm.as_variant(requested_splices(sae)) for sae in saes], journal)

    return build


def by_transformers(lm: SaeHFLM, instances: list[Instance]) -> list[str]:
    """Each prompt by itself, through lm_eval's own method and the model's `generate`."""
    with lm.evaluation():
        return [HFLM.generate_until(lm, [request], disable_tqdm=True)[0] for request in instances]


SAES = (random_sae(WIDTH, RESID), random_sae(WIDTH, "blocks.2.hook_resid_post", "topk", seed=4))


@pytest.mark.parametrize(
    "kind",
    [
        GREEDY,
        {"until": ["w5", "w9 w1"], "max_gen_toks": 20},
        {"until": [], "max_new_tokens": 5, "temperature": 0.0},
        {"max_gen_toks": 3, "until": "w7", "top_p": 0.3},
    ],
)
def test_texts_are_those_of_transformers(family, kind):
    for lm in family(*SAES):
        assert lm.generate_until(requests(kind)) == by_transformers(lm, requests(kind))


@pytest.mark.parametrize("think_end", [9, "w9"])
def test_what_was_thought_is_left_out(family, think_end):
    for lm in family(*SAES, think_end_token=think_end):
        kind = {"until": [], "max_gen_toks": 12}
        assert lm.generate_until(requests(kind)) == by_transformers(lm, requests(kind))


def test_an_empty_prompt_is_the_prefix_token(family):
    (lm,) = family()
    empty, prefix = (Instance("generate_until", {}, (text, GREEDY), 0) for text in ("", "<s>"))
    assert lm.generate_until([empty]) == lm.generate_until([prefix])


def test_the_first_asked_writes_for_all(family, monkeypatch):
    baseline, first, second = family(*SAES)
    baseline.generate_until(requests(GREEDY))
    expected = [by_transformers(lm, requests(GREEDY)) for lm in (first, second)]
    monkeypatch.setattr(Decoder, "generate", None)
    assert [lm.generate_until(requests(GREEDY)) for lm in (first, second)] == expected


def test_an_interrupted_run_continues(family, tmp_path, monkeypatch):
    expected = [lm.generate_until(requests(GREEDY)) for lm in family(*SAES)]
    generate, texts = Decoder.generate, []

    def interrupted(self, prompts, ending, done, **kwargs):
        def some(*text):
            done(*text)
            texts.append(text)
            if len(texts) == 5:
                raise KeyboardInterrupt

        generate(self, prompts, ending, some, **kwargs)

    monkeypatch.setattr(Decoder, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        family(*SAES, journal=Journal(tmp_path / "journal"))[0].generate_until(requests(GREEDY))
    written = []
    monkeypatch.setattr(
        Decoder,
        "generate",
        lambda self, prompts, ending, done, **kwargs: generate(
            self, prompts, ending, lambda *text: (written.append(text), done(*text)), **kwargs
        ),
    )
    again = family(*SAES, journal=Journal(tmp_path / "journal"))
    assert [lm.generate_until(requests(GREEDY)) for lm in again] == expected
    assert len(written) == 3 * len(expected[0]) - 5


class TestLeftToTransformers:
    @pytest.mark.parametrize(
        ("kind", "reason"),
        [
            ({**GREEDY, "num_beams": 2}, "num_beams=2"),
            ({**GREEDY, "repetition_penalty": 1.3}, "repetition_penalty=1.3"),
            ({**GREEDY, "no_repeat_ngram_size": 2}, "no_repeat_ngram_size=2"),
        ],
    )
    def test_what_looks_at_earlier_tokens(self, family, kind, reason, caplog, monkeypatch):
        monkeypatch.setattr(logging.getLogger("lm_eval"), "propagate", True)
        kinds = requests(GREEDY, kind)
        _, lm = family(SAES[0])
        texts = lm.generate_until(kinds)
        assert sum(f"for each variant by itself: {reason}" in record.getMessage() for record in caplog.records) == 1
        with lm.evaluation():
            left = HFLM.generate_until(lm, requests(kind), disable_tqdm=True)
        assert texts == [*by_transformers(lm, requests(GREEDY)), *left]

    def test_a_dictionary_that_attends_over_positions(self, family):
        temporal = random_sae(WIDTH, RESID, "temporal")
        baseline, first, second = family(temporal, SAES[0])
        for lm in (baseline, first, second):
            assert lm.generate_until(requests(GREEDY)) == by_transformers(lm, requests(GREEDY))

    def test_a_model_without_keys_and_values(self, family):
        torch.manual_seed(0)
        config = transformers.MambaConfig(vocab_size=101, hidden_size=WIDTH, num_hidden_layers=3, state_size=4)
        model = transformers.MambaForCausalLM(config).eval()
        for lm in family(random_sae(WIDTH, "backbone.layers.1.output"), model=model, max_length=64):
            assert lm.generate_until(requests(GREEDY)) == by_transformers(lm, requests(GREEDY))


class TestDrawing:
    kind = functools.partial(dict, GREEDY, do_sample=True, temperature=0.8)

    def test_the_seed_is_torchs(self, family):
        drawn = []
        for seed in (1, 1, 2):
            models = family(*SAES)
            torch.manual_seed(seed)
            drawn.append([lm.generate_until(requests(self.kind())) for lm in models])
        assert drawn[0] == drawn[1]
        assert drawn[0] != drawn[2]

    def test_a_request_that_is_repeated_is_another_draw(self, family):
        (lm,) = family()
        texts = lm.generate_until([*requests(self.kind()), *requests(self.kind())])
        assert texts[: len(texts) // 2] != texts[len(texts) // 2 :]


class TestBesideTheBaseline:
    """KL along the baseline's texts, and where the variants' part from them."""

    @staticmethod
    def instances() -> list[Instance]:
        return [
            Instance(
                request_type="generate_until",
                doc={},
                arguments=(f"{words(12, seed=0)} {words(n, seed=n)}", GREEDY),
                idx=0,
                metadata=("written", n, 1),
            )
            for n in (2, 5, 3, 9)
        ]

    @torch.no_grad()
    def test_against_plain_torch(self, family):
        baseline, *variants = family(*SAES)
        instances = self.instances()
        models = [baseline, *variants]
        texts = [lm.generate_until(instances) for lm in models]
        # The texts end with a stop sequence, which lm_eval cuts off: tokens are asked of the engine.
        shared = baseline.spliced.group.texts()
        label = f"written {TextSettings.from_arguments(baseline, GREEDY).label}"
        prompts = [baseline.tok_encode(request.args[0]) for request in instances]
        ids = [shared.kept(prompts, [label] * 4, place) for place in range(3)]
        assert all(len(model_ids) == 4 and None not in model_ids for model_ids in ids)
        assert baseline.get_model_info()["sae_lm_eval"]["parted_texts"] == {}
        for lm, of_variant in zip(variants, ids[1:], strict=True):
            kl, tokens, parted = 0.0, 0, 0
            for prompt, before, after in zip(prompts, ids[0], of_variant, strict=True):
                whole = torch.tensor([[*prompt, *before]])
                plain = lm.model(whole).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
                with lm.spliced.attached():
                    spliced = lm.model(whole).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
                kl += float((plain.exp() * (plain - spliced)).sum())
                tokens += len(before)
                parted += before[: len(after)] != after[: len(before)]
            record = lm.get_model_info()["sae_lm_eval"]
            divergence = record["kl_at_answers"]["written"]
            assert divergence["kl"] == pytest.approx(kl / tokens, rel=1e-4)
            assert (divergence["positions"], divergence["documents"]) == (tokens, 4)
            assert record["parted_texts"]["written"]["parted"] == parted
            assert record["parted_texts"]["written"]["texts"] == 4
        assert texts[0] != texts[1]

    def test_a_sample_of_many(self, family, monkeypatch):
        monkeypatch.setattr(generation, "FEWEST_COMPARED", 2)
        baseline, variant = family(SAES[0])
        for lm in (baseline, variant):
            lm.generate_until(self.instances())
        record = variant.get_model_info()["sae_lm_eval"]
        assert record["kl_at_answers"]["written"]["documents"] == 2
        assert record["parted_texts"]["written"]["texts"] == 4

    def test_nothing_where_no_baseline_writes(self):
        lm = SaeHFLM(pretrained=random_model("llama"), tokenizer=word_tokenizer(), sae=SAES[0])
        lm.generate_until(self.instances())
        record = lm.get_model_info()["sae_lm_eval"]
        assert record["kl_at_answers"] == record["parted_texts"] == {}


def test_the_share_that_is_together():
    # Behind 1 token 3 of 4 are together; one leaves without having parted at 2, of the 2 left one parts at 3, one at 4.
    assert share_together([1, 2, 3, 4], [True, False, True, True]) == {1: 0.75, 2: 0.75, 4: 0.0}
    assert share_together([3, 5], [False, False]) == {1: 1.0, 2: 1.0, 4: 1.0}
    assert share_together([2, 2], [True, True]) == {1: 1.0, 2: 0.0}
    assert share_together([], []) == {}


def test_the_report_says_how_soon_texts_part(tmp_path):
    together = {"1": 0.9, "2": 0.5, "4": 0.2}
    record = {"splices": [], "parted_texts": {"gsm8k": {"texts": 10, "parted": 8, "together": together}}}
    folders = [
        write_run(tmp_path / name, answers({"gsm8k": [1.0, 0.0]}), config={"sae_lm_eval": record})
        for name in ("a", "b")
    ]
    runs = [replace(read_results(folder), name=name) for folder, name in zip(folders, ("baseline", "k4"), strict=True)]
    report = build(compare_tasks(runs[0], runs[1:]))
    assert [note for note in report.notes if "part from" in note] == [
        "gsm8k: 8 of 10 texts that k4 writes part from the baseline's, at least half of them within the first 2 tokens."
    ]
    (picture,) = [picture for picture in report.pictures if picture.name == "parted-texts"]
    (axis,) = picture.figure.axes
    assert [axis.get_title(), *(line.get_label() for line in axis.lines)] == ["gsm8k", "k4"]
    assert axis.lines[0].get_xydata().tolist() == [[1, 0.9], [2, 0.5], [4, 0.2]]


def test_texts_that_never_part_make_no_figure(tmp_path):
    record = {"splices": [], "parted_texts": {"gsm8k": {"texts": 2, "parted": 0, "together": {"1": 1.0, "2": 1.0}}}}
    folder = write_run(tmp_path / "a", answers({"gsm8k": [1.0, 0.0]}), config={"sae_lm_eval": record})
    assert parting_pictures([read_results(folder)]) == []


def test_more_tasks_and_variants_than_a_figure_has_room_for(tmp_path):
    together = {"1": 0.9, "2": 0.5}
    record = {"parted_texts": {f"task{i}": {"texts": 9, "parted": 5, "together": together} for i in range(13)}}
    folder = write_run(tmp_path / "a", answers({"task1": [1.0, 0.0]}), config={"sae_lm_eval": record})
    (picture,) = parting_pictures([replace(read_results(folder), name=f"k{i}") for i in range(8)])
    assert "The first 12 of 13 tasks." in picture.caption
    assert "The first 6 variants; 2 are left out." in picture.caption
    assert sum(axis.axison for axis in picture.figure.axes) == 12
