"""A question token by token: against patches by hand, and as a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_where_latents import K4, explained
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from sae_lm_eval import UserError, world
from sae_lm_eval.cli.main import app
from sae_lm_eval.dictionaries.loading import load_dictionaries
from sae_lm_eval.report.question_page import question_page
from sae_lm_eval.report.where_records import read_where_record
from sae_lm_eval.runs import where, where_questions
from sae_lm_eval.runs.inquiry import Inquiry

STEP = 0.02  # of the error that is put back


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    return folder, explained(folder, questions=("sae_world_homes:3", "worst"))


def test_the_named_and_the_worst_both_ways_are_shown(homes):
    _, explanation = homes
    shown = [(question["task"], question["doc_id"]) for question in explanation.record()["questions"]]
    assert shown[0] == ("sae_world_homes", 3)
    lost = dict(
        zip(
            [(question.task, question.doc_id) for question in explanation.prompts],
            explanation.losses["margin"].by_key["reconstruction"],
            strict=True,
        )
    )
    ordered = sorted(lost, key=lambda key: -lost[key])
    others = [key for key in [*ordered[:3], *[key for key in ordered[:-4:-1] if lost[key] < 0]] if key != shown[0]]
    assert shown[1:] == others


@torch.no_grad()
def margin_by_hand(
    model, dictionary, prompts: list[list[int]], right: int, kept: int | None, part: float = 1.0
) -> float:
    """Of choices of one token behind the prompts' ids, a plain hook puts `part` of the error at `kept` back."""

    def hook(_module, _args, output):
        y = output[0] if isinstance(output, tuple) else output
        new = dictionary.reconstruct(y)
        new[:, 0] = y[:, 0]  # BOS
        if kept is not None:
            new[:, kept] += part * (y[:, kept] - new[:, kept])
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = model.model.layers[2].register_forward_hook(hook)
    logits = model(input_ids=torch.tensor([prompts[0][:-1]])).logits[0, -1].log_softmax(-1)
    handle.remove()
    values = [float(logits[ids[-1]]) for ids in prompts]
    return values[right] - max(value for at, value in enumerate(values) if at != right)


def read_by_hand(explanation, question):
    """Model, dictionary, the ids of each choice behind the prompt of document 3, the right choice, and the prompt."""
    (document,) = [entry for entry in explanation.prompts if (entry.task, entry.doc_id) == ("sae_world_homes", 3)]
    (dictionary,) = load_dictionaries(K4, dtype=torch.float32, norm_factor=None)
    model = AutoModelForCausalLM.from_pretrained(str(world.model_path())).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(world.model_path()))
    prompt = [piece for piece in question["tokens"] if piece["part"] == "prompt"]
    text = "".join(piece["text"] for piece in prompt[1:])
    ids = [
        [tokenizer.bos_token_id, *tokenizer.encode(f"{text} {choice}", add_special_tokens=False)]
        for choice in document.choices
    ]
    right = [choice in question["tokens"][len(prompt)]["text"] for choice in document.choices].index(True)
    assert len(ids[0]) == len(prompt) + 1
    return model, dictionary, ids, right, prompt


def test_a_token_is_worth_what_its_error_put_back_by_hand_changes(homes):
    _, explanation = homes
    question = explanation.record()["questions"][0]
    assert question["method"] == "exact"
    model, dictionary, ids, right, prompt = read_by_hand(explanation, question)
    whole = margin_by_hand(model, dictionary, ids, right, None)
    assert question["margin_variant"] == pytest.approx(whole, abs=1e-4)
    for at, piece in enumerate(prompt):
        if at == 0:
            assert piece["value"] is None
        else:
            assert piece["value"] == pytest.approx(margin_by_hand(model, dictionary, ids, right, at) - whole, abs=2e-4)


def test_of_a_long_prompt_values_are_the_gradients_and_are_called_so(homes, tmp_path, monkeypatch):
    _, explanation = homes
    monkeypatch.setattr(where_questions, "MOST_TOKENS", 2)
    other = explained(tmp_path, questions=("sae_world_homes:3",))
    exact, first_order = (run.record()["questions"][0] for run in (explanation, other))
    assert (exact["method"], first_order["method"]) == ("exact", "gradient")
    assert [token["text"] for token in exact["tokens"]] == [token["text"] for token in first_order["tokens"]]
    assert [token["value"] is None for token in exact["tokens"]] == [
        token["value"] is None for token in first_order["tokens"]
    ]
    model, dictionary, ids, right, prompt = read_by_hand(other, first_order)
    for at, piece in enumerate(prompt[1:], start=1):
        above, below = (margin_by_hand(model, dictionary, ids, right, at, part) for part in (STEP, -STEP))
        assert piece["value"] == pytest.approx((above - below) / (2 * STEP), rel=0.02, abs=2e-3)
    apart = [
        abs(a["value"] - b["value"]) for a, b in zip(exact["tokens"], first_order["tokens"], strict=True) if a["value"]
    ]
    assert max(apart) > 0.01
    page = question_page({**other.record(), "variant": "k4"})
    assert "right to first order" in page
    assert "right to first order" not in question_page(explanation.record())


def test_the_page_lies_beside_the_record_and_escapes_what_it_shows(homes):
    folder, explanation = homes
    page = (folder / "where" / f"{explanation.name}.html").read_text()
    assert "sae_world_homes, document 3" in page
    assert page.count("<article>") == len(explanation.record()["questions"])
    record = json.loads(json.dumps(explanation.record()))
    record["questions"] = record["questions"][:1]
    record["questions"][0]["tokens"][0] = {"text": "<script>\u202e", "part": "prompt", "value": -1.5}
    page = question_page(record)
    assert "&lt;script&gt;" in page
    assert "&lt;U+202E&gt;" in page
    assert 'class="t falls"' in page


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("3", "names no task of several: write it as in --question sae_world_villages:3"),
        ("sae_world_hom:3", "there is no task 'sae_world_hom' among sae_world_villages, sae_world_homes"),
        ("sae_world_homes:99", "document 99 is not among those that are asked"),
    ],
)
def test_a_question_that_is_not_there_is_refused(named, message, tmp_path):
    with pytest.raises(UserError, match=message):
        explained(tmp_path, questions=(named,), limit=4)


def test_a_question_that_is_none_is_refused_before_anything_is_loaded():
    with pytest.raises(UserError, match="--question first is no question"):
        Inquiry(questions=("first",))
    with pytest.raises(UserError, match="--latents 1000: it takes a number from 1 to 100"):
        Inquiry(latents=1000)


def test_the_report_has_the_page_and_forgets_it(tmp_path: Path):
    given = ["--model_args", "pretrained=world", "--tasks", "sae_world_homes", "--sae", K4, "--limit", "8"]
    result = CliRunner().invoke(app, ["run", *given, "--device", "cpu", "-o", str(tmp_path)])
    assert result.exit_code == 0, result.output
    explanation = explained(tmp_path, "sae_world_homes", limit=8, questions=("3",))

    def report() -> tuple[list[str], str]:
        result = CliRunner().invoke(app, ["report", str(tmp_path), "--output_path", str(tmp_path / "made")])
        assert result.exit_code == 0, result.output
        pages = sorted(path.name for path in (tmp_path / "made").glob("questions-*"))
        return pages, (tmp_path / "made" / "report.html").read_text()

    (page,), text = report()
    assert f'href="{page}"' in text
    assert "sae_world_homes, document 3" in (tmp_path / "made" / page).read_text()
    file = tmp_path / "where" / f"{explanation.name}.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "questions": []}))
    pages, text = report()
    assert pages == []
    assert page not in text


def test_what_a_record_leads_to_is_there_before_it(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(where, "write_json", lambda file, _: seen.extend(path.name for path in file.parent.iterdir()))
    explanation = explained(tmp_path, "sae_world_homes", limit=4, questions=("1",))
    assert {f"{explanation.name}.html", f"{explanation.name}.documents.csv"} <= {*seen}
    explained(tmp_path, "sae_world_homes", limit=4)
    assert not (tmp_path / "where" / f"{explanation.name}.html").exists()


def test_the_last_token_of_an_answer_is_only_predicted(homes):
    _, explanation = homes
    record = {**explanation.record(), "questions": explanation.record()["questions"][:1]}
    page = question_page(record)
    assert page.count("only predicted: the model never reads it") == 2
    assert page.count("<span>nothing is spliced in here</span>") == 1  # BOS


def test_a_question_without_its_margins_is_no_record(homes, tmp_path: Path):
    _, explanation = homes
    record = json.loads(json.dumps(explanation.record())) | {"model_args": {"pretrained": "world"}}
    (tmp_path / "right.json").write_text(json.dumps(record))
    assert len(read_where_record(tmp_path / "right.json").questions) == len(record["questions"])
    record["questions"][0]["margin_variant"] = None
    (tmp_path / "wrong.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="a question without a reason needs both margins"):
        read_where_record(tmp_path / "wrong.json")
