"""Which positions' errors cost what a variant lost: the classes, the shares, and the command on the embedded world."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from terminals import terminal
from typer.testing import CliRunner

from sae_lm_eval import UserError
from sae_lm_eval.attribution.classes import Labels, Reading, division
from sae_lm_eval.attribution.patches import classes_of, spread
from sae_lm_eval.attribution.segments import PromptDocument, segments, tails
from sae_lm_eval.attribution.token_kinds import KINDS, Words, token_kinds
from sae_lm_eval.cli.main import app
from sae_lm_eval.comparison.paired_statistics import ALIKE
from sae_lm_eval.comparison.restored import ACCURACY, KL, MARGIN, PairedLosses, shares, why_no_share
from sae_lm_eval.harness.few_shot_headers import own_text
from sae_lm_eval.report.where_records import records_beside
from sae_lm_eval.report.where_tables import class_tables, norm_edges, question_pages, where_picture, where_sentences
from sae_lm_eval.runs.asked_tasks import _choices
from sae_lm_eval.runs.inquiry import Inquiry
from sae_lm_eval.runs.settings import lm_eval_config
from sae_lm_eval.runs.sweep import sweep_of
from sae_lm_eval.runs.where import explain_drops
from sae_lm_eval.runs.where_variant import chosen_documents
from sae_lm_eval.splicing.splice import Variant

K4 = "world#blocks.2.hook_resid_post.k4"
MMLU = "The following are questions about art.\n\n{}Which is red?\nA. a rose\nB. the sky\nC. snow\nD. grass\nAnswer:"
OWN = "Which is red?\nA. a rose\nB. the sky\nC. snow\nD. grass\nAnswer:"
LETTERS = ("A", "B", "C", "D")


def texts(context: str, continuation: str, document: PromptDocument) -> list[tuple[str, str]]:
    spans = segments(context, continuation, document)
    assert [start for start, *_ in spans] == [0, *(end for _, end, _ in spans)][: len(spans)]
    assert not spans or spans[-1][1] == len(context + continuation)
    return [(name, (context + continuation)[start:end]) for start, end, name in spans]


class TestSegments:
    def test_of_a_question_with_lettered_options(self):
        document = PromptDocument("mmlu", 0, OWN, LETTERS, tail=len("\nAnswer:"))
        parts = texts(MMLU.format("Which is blue?\nA. mud\nB. sky\nAnswer: B\n\n"), " A", document)
        assert parts == [
            ("few-shot header", MMLU.format("Which is blue?\nA. mud\nB. sky\nAnswer: B\n\n").removesuffix(OWN)),
            ("question", "Which is red?"),
            ("options", "\nA. a rose\nB. the sky\nC. snow\nD. grass"),
            ("answer prefix", "\nAnswer:"),
            ("answer: same start", " "),
            ("answer: difference", "A"),
        ]

    def test_of_a_question_whose_choices_are_not_in_it(self):
        document = PromptDocument("arc", 0, "Inquiry: What melts?\nAnswer:", ("ice", "iron ore"), tail=len("\nAnswer:"))
        assert texts("Inquiry: What melts?\nAnswer:", " iron ore", document) == [
            ("question", "Inquiry: What melts?"),
            ("answer prefix", "\nAnswer:"),
            ("answer: same start", " "),
            ("answer: difference", "iron ore"),
        ]

    def test_of_two_sentences_that_differ_in_a_word(self):
        choices = ("The cats near me sleep.", "The cats near me sleeps.")
        assert texts("", choices[0], PromptDocument("blimp", 0, "", choices)) == [
            ("answer: same start", "The cats near me "),
            ("answer: difference", "sleep"),
            ("answer: same end", "."),
        ]

    def test_a_prompt_without_the_document_is_not_aligned(self):
        assert texts("something else", " A", PromptDocument("t", 0, OWN, LETTERS))[0] == (
            "not aligned",
            "something else",
        )

    def test_a_prompt_that_is_another_for_each_choice_is_not_aligned(self):
        document = PromptDocument("winogrande", 0, None, ("was late.", "was late."))
        assert texts("Ann met Bo because Ann", " was late.", document) == [
            ("not aligned", "Ann met Bo because Ann"),
            ("answer: difference", " was late."),
        ]

    def test_what_a_chat_template_puts_behind_is_the_answer_prefix(self):
        parts = texts("<user>Where?<assistant>", "here", PromptDocument("t", 0, "Where?", ("here", "there")))
        assert parts[:3] == [("few-shot header", "<user>"), ("question", "Where?"), ("answer prefix", "<assistant>")]

    @pytest.mark.parametrize(
        ("owns", "tail"),
        [
            (["Q: a?\nA:", "Q: bb?\nA:"], len("?\nA:")),
            (["lives in", "comes from"], 0),
            (["Ann lives in", "Bo dives in"], len(" in")),
            (["only one"] * 3, 0),
            ([""], 0),
        ],
    )
    def test_the_answer_prefix_is_what_all_documents_end_with(self, owns, tail):
        assert tails(owns) == tail


def reading(text: str, *, letters: int | None = None, **fields) -> Reading:
    """Tokens are words and single marks, behind a token without text."""
    import re

    spans = np.array([(0, 0), *(match.span() for match in re.finditer(r"\w+|\s?[^\w\s]|\n", text))])
    letters = len(text) if letters is None else letters
    document = PromptDocument(**{"task": "t", "doc_id": 0, "own": text[:letters], "choices": (), **fields})
    return Reading(document, text, letters, spans, spans[:, 1] <= spans[:, 0], int((spans[:, 0] < letters).sum()))


class TestKinds:
    def test_of_tokens(self):
        text = "The river Aller, 42 times.\nunhappy the Aller the river is xylem"
        spans = [(0, 0), (0, 3), (4, 9), (10, 15), (15, 16), (17, 19), (20, 25), (25, 26), (26, 27), (27, 29), (29, 34)]
        spans += [(60, 65)]
        special = np.array([True] + [False] * 11)
        words = Words(["The river Aller, 42 times.\nunhappy the Aller the river is", "times of the river xylem"])
        kinds = [KINDS[kind] for kind in token_kinds(text, np.array(spans), special, words)]
        assert kinds == [
            *("special", "word", "word", "name", "punctuation", "digit", "word", "punctuation", "newline"),
            *("part of a word", "part of a word", "rare word"),
        ]

    def test_a_word_is_rare_in_one_document_however_it_is_written(self):
        words = Words(["The cat saw the dog.", "A dog ran."])
        assert [KINDS[words.kind(word)] for word in ("the", "The", "dog", "unseen")] == [
            *("rare word", "rare word", "word", "rare word")
        ]

    def test_a_bracket_and_the_word_behind_it_are_of_that_word(self):
        spans = np.array([(0, 4), (4, 9), (9, 10)])
        kinds = token_kinds("(the mouse)", spans, np.zeros(3, dtype=bool), Words(["the mouse", "mouse the"]))
        assert [KINDS[kind] for kind in kinds] == ["word", "part of a word", "part of a word"]

    def test_blanks_alone_are_no_part_of_the_word_behind(self):
        spans = np.array([(0, 1), (1, 4), (4, 6), (6, 10)])
        kinds = token_kinds(" cat  mouse", spans, np.zeros(4, dtype=bool), Words(["cat mouse", "mouse cat"]))
        assert [KINDS[kind] for kind in kinds] == ["punctuation", "word", "punctuation", "word"]


class TestNorms:
    def test_positions_without_an_error_are_a_part(self):
        edges = {"a": [1e-38, 1e-38, 0.5]}
        classes = classes_of(Labels([]), Variant(()), edges)
        norms = [part for part in classes if part.division == "norm"]
        assert [part.name for part in norms] == ["quantiles 1 to 2 of 4", "quantile 3 of 4", "quantile 4 of 4"]
        assert [part.inside.norms["a"] for part in norms] == [(0.0, 1e-38), (1e-38, 0.5), (0.5, float("inf"))]

    def test_a_part_that_is_empty_at_one_site_alone_stays(self):
        edges = {"a": [0.2, 0.2], "b": [0.1, 0.3]}
        norms = [
            place_class.name
            for place_class in classes_of(Labels([]), Variant(()), edges)
            if place_class.division == "norm"
        ]
        assert norms == [f"quantile {part} of 3" for part in (1, 2, 3)]

    def test_an_edge_above_0_is_written_as_that(self):
        assert norm_edges({"norm_edges": {"a": [2e-38, 2e-38, 0.5]}}) == "Edges of the norm: above 0, 0.500 at a."


class TestClasses:
    def test_each_token_has_one_class_of_each_division(self):
        words = Words([])
        labels = Labels(
            [division(text, words) for text in ("segment", "kind", "first:2", "distance", "regex:n=[0-9]+")]
        )
        sample = reading("There are 12 foxes. Where? here", letters=27)
        numbers = labels.index(sample)
        labels.seen.update(numbers.tolist())
        for number, each in enumerate(labels.divisions):
            parts = [labels.of_class(number, index) for index in range(len(each.classes))]
            assert frozenset().union(*parts) == labels.seen
            assert sum(map(len, parts)) == len(labels.seen)
            assert labels.counts(numbers, number).sum() == len(sample.spans)

    def test_distance_counts_back_from_the_answer(self):
        sample = reading("a b c d e f answer here", letters=11)
        distance = division("distance", Words([]))
        names = [distance.classes[index] for index in distance.index(sample)]
        assert names == ["4 to 15 before"] * 3 + ["1 to 3 before"] * 3 + ["0 before"] + ["in the answer"] * 2

    def test_a_field_names_texts_or_places(self):
        for value in ("12 foxes", ["12 foxes"], [6, 14], [[6, 8], [9, 14]]):
            sample = reading("I saw 12 foxes", fields={"evidence": value})
            assert division("field:evidence", Words([])).index(sample).tolist() == [1, 1, 1, 0, 0]
        assert division("field:evidence", Words([])).index(reading("I saw")).tolist() == [1, 1, 1]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("segments", "Did you mean 'segment'"),
            ("first:none", "no whole number of at least 1"),
            ("norm:0", "no whole number of at least 1"),
            ("regex:[0-9]", "no pattern with a name"),
            ("regex:n=[0-9", "no regular expression"),
            ("field:", "names no field"),
            ("direction:3", "direction takes nothing behind it"),
            ("segment:question", "segment takes nothing behind it"),
            ("regex:site=[0-9]", "names 'site' twice"),
        ],
    )
    def test_what_divides_nothing_is_refused(self, text, message):
        with pytest.raises(UserError, match=message.replace("[", r"\[")):
            Inquiry((text,))

    def test_places_in_a_text_that_is_not_in_the_prompt_are_nowhere(self):
        sample = reading("I saw 12 foxes", own="You saw", fields={"evidence": [6, 14]})
        assert division("field:evidence", Words([])).index(sample).tolist() == [1, 1, 1, 1, 1]

    def test_a_field_of_another_kind_is_refused(self):
        with pytest.raises(UserError, match="neither a text nor a pair of places"):
            division("field:evidence", Words([])).index(reading("I saw", fields={"evidence": [3]}))


@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 1000])
def test_what_is_fitted_on_comes_from_all_tasks(length):
    chosen = spread(range(length), 256)
    assert len(chosen) <= 256
    assert not length or length - 1 - chosen[-1] < -(-length // 256)


class TestShares:
    def test_all_comes_back_where_a_patch_is_the_baseline(self):
        rng = np.random.default_rng(0)
        lost = rng.normal(1, 1, 200)
        losses = PairedLosses(MARGIN, rng.normal(3, 1, 200), {"whole": lost, "all": np.zeros(200), "half": lost / 2})
        (back, left), (half, _) = (shares(losses, "whole", [key], [key], 0.95) for key in ("all", "half"))
        assert (back.value, back.low, back.high) == pytest.approx((1, 1, 1))
        assert left.value == 0
        assert half.value == pytest.approx(0.5)

    def test_intervals_hold_the_share_as_often_as_they_say(self):
        rng, held, trials = np.random.default_rng(1), 0, 600
        for _ in range(trials):
            lost = rng.random(150) < 0.3
            back = lost & (rng.random(150) < 0.4)
            losses = PairedLosses(
                ACCURACY, np.ones(150), {"whole": lost.astype(float), "patch": (lost & ~back).astype(float)}
            )
            estimate, _ = shares(losses, "whole", ["patch"], [], 0.95)
            held += estimate.low <= 0.4 <= estimate.high
        assert 0.93 <= held / trials <= 0.99

    def test_of_a_drop_that_never_varies_the_interval_is_students(self):
        back = np.random.default_rng(3).normal(0.4, 0.1, 6)
        losses = PairedLosses(KL, np.zeros(6), {"whole": np.ones(6), "patch": 1 - back})
        estimate, _ = shares(losses, "whole", ["patch"], [], 0.95)
        student = stats.ttest_1samp(back, 0).confidence_interval(0.95)
        assert (estimate.low, estimate.high) == pytest.approx((student.low, student.high))

    def test_kl_is_a_ratio_of_sums_as_a_run_has_it(self):
        rng = np.random.default_rng(4)
        tokens = rng.integers(1, 30, 50)
        lost = {"whole": rng.gamma(2, 1, 50) * tokens**0.5}
        losses = PairedLosses(KL, np.zeros(50), lost, tokens)
        estimate, ratio = losses.drop("whole", 0.95), lost["whole"].sum() / tokens.sum()
        error = np.sqrt(np.var(lost["whole"] - ratio * tokens, ddof=1) / 50) / tokens.mean()
        assert estimate.value == pytest.approx(ratio)
        assert estimate.high - ratio == pytest.approx(stats.t.ppf(0.975, 49) * error)
        assert losses.restricted(tokens > 3).drop("whole", 0.95).value == pytest.approx(
            lost["whole"][tokens > 3].sum() / tokens[tokens > 3].sum()
        )
        assert losses.by_document("whole") == pytest.approx(lost["whole"] / tokens)

    def test_no_share_is_given_where_the_drop_may_be_zero(self):
        rng = np.random.default_rng(2)
        noise = PairedLosses(KL, np.zeros(100), {"whole": rng.normal(0, 1, 100)})
        assert why_no_share(noise, "whole", 0.95) == "the drop does not exclude 0"
        alike = PairedLosses(KL, np.zeros(9), {"whole": np.full(9, 0.3)})
        assert why_no_share(alike, "whole", 0.95) == ALIKE
        few = PairedLosses(ACCURACY, np.ones(3), {"whole": np.ones(3)})
        assert why_no_share(few, "whole", 0.95) == "fewer than 5 documents"
        none = PairedLosses(MARGIN, np.full(9, np.nan), {"whole": np.full(9, np.nan)}).restricted(
            np.ones(9, dtype=bool)
        )
        assert why_no_share(none, "whole", 0.95) == "no margins: the right choice is not known"


def explained(folder: Path, *by: str, tasks: str = "sae_world_villages", limit: int = 24, **other):
    sweep = sweep_of(
        {"model_args": {"pretrained": "world"}, "variants": [K4], "tasks": tasks, "limit": limit, "device": "cpu"}
    )
    return explain_drops(sweep, lm_eval_config(sweep), folder, Inquiry(by or ("segment", "kind"), **other))[0]


@pytest.fixture(scope="module")
def villages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("where")
    return folder, explained(folder, "segment", "kind", "norm:2")


def shares_of(explanation, measure: str, division: str, kind: str) -> dict[str, float]:
    rows = [
        row
        for row in explanation.rows
        if (row["name"], row["measure"], row["division"]) == ("overall", measure, division)
    ]
    return {row["class"]: row[kind] for row in rows}


class TestTheWorld:
    def test_what_comes_back_and_what_is_lost_are_one_thing_of_two_classes(self, villages):
        _, explanation = villages
        for measure in (MARGIN, KL):
            back, alone = (shares_of(explanation, measure, "norm", kind) for kind in ("restored", "alone"))
            assert back["quantile 1 of 2"] == pytest.approx(1 - alone["quantile 2 of 2"])
            assert back["quantile 2 of 2"] == pytest.approx(1 - alone["quantile 1 of 2"])

    def test_the_whole_drop_is_what_lm_eval_gives(self, villages):
        import lm_eval

        from sae_lm_eval import SaeHFLM

        _, explanation = villages
        scores = []
        for splice in ("none", "reconstruction"):
            lm = SaeHFLM(pretrained="world", sae=K4, splice=splice, device="cpu")
            results = lm_eval.simple_evaluate(model=lm, tasks=["sae_world_villages"], limit=24, bootstrap_iters=0)
            scores.append(results["results"]["sae_world_villages"]["acc,none"])
            divergence = lm.divergence.by_task()
        drop = {row["measure"]: row["drop"] for row in explanation.rows if row["name"] == "overall"}
        assert drop[ACCURACY] == pytest.approx(100 * (scores[0] - scores[1]))
        assert drop[KL] == pytest.approx(divergence["sae_world_villages"]["kl"], rel=1e-4)

    def test_the_record_has_every_number_and_none_for_what_is_undefined(self, villages):
        folder, explanation = villages
        record = json.loads((folder / "where" / f"{explanation.name}.json").read_text())
        assert record["documents"] == 24
        assert record["aligned"] == 1
        assert (record["tasks"], record["n_shot"]) == (["sae_world_villages"], {"sae_world_villages": 0})
        assert record["model"]["weights"]
        assert {row["measure"] for row in record["rows"]} == {"accuracy", "margin", "kl"}
        assert record["provenance"]["splices"][0]["hook_out"] == "blocks.2.hook_resid_post"
        assert (folder / "where" / f"{explanation.name}.documents.csv").read_text().count("\n") > 24 * 10

    def test_the_same_again_is_answered_from_the_journal(self, tmp_path, monkeypatch):
        explanation = explained(tmp_path, "kind", limit=6)
        monkeypatch.setattr("sae_lm_eval.scoring.shared_answers.Scorer.score", None)
        again = explained(tmp_path, "kind", limit=6)
        assert shares_of(again, KL, "kind", "restored") == shares_of(explanation, KL, "kind", "restored")
        with pytest.raises(TypeError):
            explained(tmp_path, "first:1", limit=6)  # which was not asked

    def test_held_out_documents_are_the_others(self, tmp_path):
        explanation = explained(tmp_path, "norm:2", limit=12, held_out=True)
        assert len(explanation.prompts) == 6
        assert {document.doc_id % 2 for document in explanation.prompts} == {0, 1}, "drawn, and not every other one"
        again = explained(tmp_path, "norm:2", limit=12, held_out=True)
        assert [document.doc_id for document in again.prompts] == [document.doc_id for document in explanation.prompts]

    def test_several_dictionaries_are_divided_by_site(self, tmp_path):
        both = "+".join(f"world#blocks.{layer}.hook_resid_post.k4" for layer in (1, 2))
        sweep = sweep_of(
            {
                "model_args": {"pretrained": "world"},
                "variants": [both],
                "tasks": "sae_world_homes",
                "limit": 12,
                "device": "cpu",
            }
        )
        (explanation,) = explain_drops(sweep, lm_eval_config(sweep), tmp_path, Inquiry(("first:1",)))
        assert list(shares_of(explanation, KL, "site", "restored")) == [
            "blocks.1.hook_resid_post",
            "blocks.2.hook_resid_post",
            "all classes together",
        ]


class TestReport:
    def test_a_table_of_each_division_with_its_shares(self, villages):
        _, explanation = villages
        record = explanation.record()
        tables = {table.name: table for table in class_tables(record)}
        slug = where_picture(record).name
        assert list(tables) == [f"{slug}-{name}" for name in ("segment", "kind", "norm")]  # no two variants have one
        lines = {row[0].text: row for row in tables[f"{slug}-norm"].rows}
        heads = [column.heading for column in tables[f"{slug}-norm"].columns]
        shown = lines["quantile 2 of 2"][heads.index("comes back: KL")]
        assert shown.value == pytest.approx(shares_of(explanation, KL, "norm", "restored")["quantile 2 of 2"])
        assert " to " in shown.detail
        assert "Edges of the norm" in tables[f"{slug}-norm"].caption
        assert "All documents" in tables[f"{slug}-kind"].caption

    def test_the_summary_figure_has_a_row_for_each_class(self, villages):
        _, explanation = villages
        picture = where_picture(explanation.record())
        assert picture is not None
        (axis,) = picture.figure.axes
        names = [label.get_text() for label in axis.get_yticklabels()]
        assert names == [name for _, name, _ in explanation.classes]
        assert [label.get_text() for label in axis.get_xticklabels()] == ["sae_world_villages"]

    def test_several_tasks_are_called_by_their_number(self, villages):
        _, explanation = villages
        record = {**explanation.record(), "tasks": ["one", "two", "three"]}
        axis = where_picture(record).figure.axes[0]
        assert [label.get_text() for label in axis.get_xticklabels()] == ["3 tasks together"]
        assert "on 3 tasks together" in class_tables(record)[0].caption
        assert "24 questions of 3 tasks" in where_sentences(record)[0]

    def test_the_figure_is_of_kl_where_no_margin_has_a_share(self, villages):
        _, explanation = villages
        rows = [row for row in explanation.record()["rows"] if row["measure"] != MARGIN]
        picture = where_picture({**explanation.record(), "rows": rows})
        assert picture is not None
        assert picture.caption.startswith("Share (%) of the KL from the baseline that comes back ")

    def test_the_sentences_say_what_has_no_share(self, villages):
        _, explanation = villages
        record = explanation.record()
        for row in record["rows"]:
            if row["measure"] == ACCURACY:
                row["reason"] = "the drop does not exclude 0"
        said = where_sentences({**record, "aligned": 0.5})
        assert said[0].endswith("No share is given: the drop does not exclude 0.")
        assert said[1].startswith(f"{explanation.name}: drop in margin ")
        assert "50.0% of the requests" in said[-1]

    def test_a_record_that_is_none_is_refused(self, tmp_path):
        (tmp_path / "where").mkdir()
        (tmp_path / "where" / "x.json").write_text("{}")
        with pytest.raises(UserError, match="is not a record of `sae-lm-eval where`: 'variant' is missing"):
            records_beside(compared(tmp_path, {}))

    @pytest.mark.parametrize(
        ("own", "why"),
        [
            ({}, None),
            ({"model_args": {"pretrained": "world", "revision": "main"}}, None),
            ({"model_args": {"pretrained": "gpt2"}}, "another model (pretrained gpt2, and here world)"),
            ({"model_args": {}}, "an earlier version, which did not write down the model"),
            ({"n_shot": {}}, "an earlier version, which did not write down the shots"),
            ({"model": {"weights": "b", "tokenizer": "t"}}, "a model with other weights"),
            ({"model": {"weights": "a", "tokenizer": "u"}}, "a model with another tokenizer"),
            ({"model": {}}, None),
            ({"tasks": ["sae_world_homes", "arc_easy"]}, "other tasks (arc_easy)"),
            ({"n_shot": {"sae_world_homes": 5}}, "another number of shots (sae_world_homes has 5, and here 0)"),
            ({"chat_template": True}, "prompts with a chat template"),
            ({"system_instruction": "Be brief."}, "another system instruction"),
            ({"provenance": {"splices": [], "scale": 1.0}}, "a variant that is not compared here"),
        ],
    )
    def test_a_record_of_something_else_is_left_out_and_told(self, villages, tmp_path, own, why):
        _, explanation = villages
        of_run = {"model_args": {"pretrained": "world"}, "model": {"weights": "a", "tokenizer": "t"}}
        of_run |= {"tasks": ["sae_world_homes"], "n_shot": {"sae_world_homes": 0}}
        record = {**explanation.record(), **of_run}
        identity = {"model": of_run["model"], "packages": {}, "variants": {}}
        (tmp_path / ".identity.json").write_text(json.dumps(identity))
        (tmp_path / "where").mkdir()
        (tmp_path / "where" / "k4.json").write_text(json.dumps({**record, **own}))
        records, left_out = records_beside(compared(tmp_path, record["provenance"]))
        assert [entry["variant"] for entry in records] == ([] if why else ["short"])
        assert left_out == ([f"where/k4.json is left out: it is of {why}."] if why else [])


def test_what_read_the_clean_run_is_another_variant(villages, tmp_path):
    _, explanation = villages
    record = {
        **explanation.record(),
        "model_args": {"pretrained": "world"},
        "tasks": [],
        "n_shot": {"sae_world_homes": 0},
    }
    clean = {**record["provenance"], "splice_input": "clean"}
    (tmp_path / "where").mkdir()
    (tmp_path / "where" / "k4.json").write_text(json.dumps({**record, "provenance": clean}))
    records, left_out = records_beside(compared(tmp_path, record["provenance"]))
    assert not records
    assert left_out == ["where/k4.json is left out: it is of a variant that is not compared here."]


def test_other_weights_of_a_dictionary_are_another_variant(villages, tmp_path):
    _, explanation = villages
    record = {
        **explanation.record(),
        "model_args": {"pretrained": "world"},
        "tasks": [],
        "n_shot": {"sae_world_homes": 0},
    }
    (tmp_path / "where").mkdir()
    (tmp_path / "where" / "k4.json").write_text(json.dumps(record))
    for checksum, count in (("another", 0), (None, 1), (record["provenance"]["splices"][0]["weights_checksum"], 1)):
        splices = [{**record["provenance"]["splices"][0], "weights_checksum": checksum}]
        records, _ = records_beside(compared(tmp_path, {**record["provenance"], "splices": splices}))
        assert len(records) == count


def test_of_records_of_one_variant_the_newest_is_kept(villages, tmp_path):
    _, explanation = villages
    record = {
        **explanation.record(),
        "model_args": {"pretrained": "world"},
        "tasks": [],
        "n_shot": {"sae_world_homes": 0},
    }
    (tmp_path / "where").mkdir()
    for name, level, written in (("a", 0.9, 300), ("b", 0.95, 200), ("c", 0.99, 100)):
        file = tmp_path / "where" / f"{name}.json"
        file.write_text(json.dumps({**record, "level": level}))
        os.utime(file, (written, written))
    records, left_out = records_beside(compared(tmp_path, record["provenance"]))
    assert [entry["level"] for entry in records] == [0.9]
    assert left_out == [
        f"where/{name}.json is left out: it is of short, as is where/a.json, which is newer." for name in "bc"
    ]


@pytest.mark.parametrize("names", [("a.b", "a-b"), ("日本", "中国"), ("K4", "k4"), ("a.b", "a-b", "a-b-2")])
def test_no_two_variants_have_one_file(names, villages, tmp_path):
    _, explanation = villages
    record = {
        **explanation.record(),
        "model_args": {"pretrained": "world"},
        "tasks": [],
        "n_shot": {"sae_world_homes": 0},
    }
    question = {"task": "sae_world_homes", "doc_id": 3, "reason": "None is told."}
    (tmp_path / "where").mkdir()
    variants = []
    for number, name in enumerate(names):
        provenance = {**record["provenance"], "scale": 1.0 - number / 8}
        variants.append(SimpleNamespace(name=name, provenance=provenance))
        content = json.dumps({**record, "provenance": provenance, "questions": [question]})
        (tmp_path / "where" / f"{number}.json").write_text(content)
    comparison = SimpleNamespace(baseline=compared(tmp_path, {}).baseline, variants=variants)
    records, left_out = records_beside(comparison)
    assert not left_out
    pages = question_pages(records)
    assert [page.title for page in pages] == list(names)
    files = [page.file for page in pages]
    figures = [where_picture(entry).name for entry in records]
    tables = [table.name for entry in records for table in class_tables(entry)]
    for group in (files, figures, tables):
        assert len({name.lower() for name in group}) == len(group)
        assert all(name.isascii() for name in group)


def compared(folder, provenance):
    """A comparison of one variant, as far as the records beside it are chosen by it."""
    settings = {"model_args": {"pretrained": "world"}, "tasks": ["sae_world_homes"], "n_shot": {}, "raw": {}}
    baseline = SimpleNamespace(folder=folder, **settings)
    return SimpleNamespace(baseline=baseline, variants=[SimpleNamespace(name="short", provenance=provenance)])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--by", "segmnt"], "Did you mean 'segment'"),
        (["--by", "kind", "--by", "kind"], "names 'kind' twice"),
        (["--by", "norm:2", "--by", "norm:4"], "names 'norm' twice"),
        (["--by", "site"], "divides nothing: "),
        (["--by", "field:evidnce"], "no document has this field; they have "),
        (["--sae", f"{K4},splice=zero"], "no dictionary's error to put back"),
        (["--tasks", "sae_world_text"], "leave out sae_world_text"),
        (["--limt", "2"], "where has no flag '--limt'. Did you mean '--limit'?"),
        (["--config", "x.yaml"], "where takes lm_eval's settings from a sweep file: sae-lm-eval where FILE"),
        (["--num_fewshot", "many"], "sae-lm-eval where --help lists the flags"),
        (["--question", "first"], "--question first is no question"),
        (["--latents", "-1"], "it takes a number from 1 to 100"),
        (
            ["--latents", "2", "--sae", f"{K4},ablate=3,latent_positions=first:4", "--plan"],
            "latent_positions=first:4 of",
        ),
        (["--latents", "2", "--sae", f"{K4},ablate=3,latent_heads=1", "--plan"], "leave out latent_heads=1 of"),
        (
            ["--sae", f"{K4},ablate=3,latent_positions=last", "--plan"],
            "leave out latent_positions=last and after_header",
        ),
    ],
)
def test_bad_input_is_told_in_a_sentence(flags, message, tmp_path):
    given = ["where", "--model_args", "pretrained=world", "--limit", "2", "--device", "cpu", "-o", str(tmp_path)]
    given += [] if "--tasks" in flags else ["--tasks", "sae_world_homes"]
    given += [] if "--sae" in flags else ["--sae", K4]
    result = CliRunner().invoke(app, [*given, *flags])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


def test_the_plan_states_what_it_costs(tmp_path):
    given = ["where", "--model_args", "pretrained=world", "--tasks", "sae_world_homes", "--sae", K4, "--plan"]
    result = CliRunner().invoke(app, [*given, "--by", "first:2", "--by", "component"])
    assert result.exit_code == 0, result.output
    # Three of each of two and three classes, and the variant, behind block 2 of 4; the baseline runs twice.
    assert ": at most 6.0 forward passes over the tasks." in result.output
    assert "The variant and up to 15 patched ones cost 0.25 of a pass each." in result.output
    assert "Before that, it reads up to 4,096 requests to fit directions." in result.output
    assert "Before that" not in CliRunner().invoke(app, [*given, "--by", "first:2"]).output


def test_its_folder_is_not_written_through_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "where").symlink_to(tmp_path / "elsewhere")
    flags = ["--sae", "world#blocks.2.hook_resid_post.k4", "--tasks", "sae_world_homes", "-o", str(tmp_path / "out")]
    said = CliRunner().invoke(app, ["where", "--model_args", "pretrained=world", *flags])
    assert "where' is a symbolic link, which is not written through" in str(said.exception)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_its_tables_fit_a_terminal_and_have_their_caption(tmp_path):
    given = ["where", "--model_args", "pretrained=world", "--tasks", "sae_world_homes", "--sae", K4, "--device", "cpu"]
    given += ["--limit", "12", "-o", str(tmp_path), "--by", "norm:2"]
    result = CliRunner().invoke(app, given, env=terminal(80))
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "quantile 1 of 2" in result.output
    assert "Share of the drop on sae_world_homes that comes back" in said
    assert "Edges of the norm: " in said
    assert all(len(line) <= 80 for line in result.output.splitlines() if not line.startswith("Written"))


def test_of_a_task_whose_prompts_differ_by_choice_the_scored_text_is_the_choice():
    task = SimpleNamespace(
        OUTPUT_TYPE="multiple_choice",
        multiple_input=2,
        doc_to_text=lambda _doc: 1,
        doc_to_choice=lambda _doc: ["Ann met Bo because Ann", "Ann met Bo because Bo"],
        doc_to_target=lambda _doc: "was late.",
    )
    assert (own_text(task, {}), _choices(task, {})) == (None, ("was late.", "was late."))
    document = PromptDocument("t", 0, None, ("was late.",), {"sentence": "Ann met Bo", "answer": 1})
    assert document.written == "Ann met Bo was late."


def test_what_is_fitted_and_what_is_scored_are_both_there():
    documents = [PromptDocument(task, number, "", ()) for task in "abc" for number in range(41)]
    chosen = chosen_documents(Inquiry(held_out=True), documents)
    assert {int(chosen[start : start + 41].sum()) for start in (0, 41, 82)} <= {20, 21}
    assert not (chosen[:41] == chosen[41:82]).all(), "each task has its own draw"
    alone = chosen_documents(Inquiry(held_out=True), documents[41:82])
    assert (alone == chosen[41:82]).all(), "whatever other tasks there are"
    with pytest.raises(UserError, match="give more than one"):
        chosen_documents(Inquiry(held_out=True), documents[:1])
