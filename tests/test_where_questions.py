"""A question token by token: against patches by hand, and as a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_where_latents import K4, found_by
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_lm_eval import UserError, world
from sae_lm_eval.dictionaries.loading import load_dictionaries
from sae_lm_eval.report.question_page import question_page
from sae_lm_eval.report.where_records import read_where_record
from sae_lm_eval.runs import where_questions
from sae_lm_eval.runs.inquiry import Inquiry


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    return folder, found_by(folder, questions=("sae_world_homes:3", "worst"))


def test_the_named_and_the_worst_both_ways_are_shown(asked):
    _, found = asked
    shown = [(one["task"], one["doc_id"]) for one in found.record()["questions"]]
    assert shown[0] == ("sae_world_homes", 3)
    lost = dict(
        zip([(one.task, one.doc_id) for one in found.asked], found.losses["margin"].of["reconstruction"], strict=True)
    )
    ordered = sorted(lost, key=lambda key: -lost[key])
    others = [key for key in [*ordered[:3], *[key for key in ordered[:-4:-1] if lost[key] < 0]] if key != shown[0]]
    assert shown[1:] == others


@torch.no_grad()
def margin_by_hand(model, dictionary, prompts: list[list[int]], right: int, kept: int | None) -> float:
    """Of choices of one token behind the prompts' ids, with a plain hook that keeps the activation at `kept`."""

    def hook(_module, _args, output):
        y = output[0] if isinstance(output, tuple) else output
        new = dictionary.reconstruct(y)
        new[:, 0] = y[:, 0]  # BOS
        if kept is not None:
            new[:, kept] = y[:, kept]
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = model.model.layers[2].register_forward_hook(hook)
    logits = model(input_ids=torch.tensor([prompts[0][:-1]])).logits[0, -1].log_softmax(-1)
    handle.remove()
    values = [float(logits[ids[-1]]) for ids in prompts]
    return values[right] - max(value for at, value in enumerate(values) if at != right)


def test_a_token_is_worth_what_its_error_put_back_by_hand_changes(asked):
    _, found = asked
    question = found.record()["questions"][0]
    assert question["method"] == "exact"
    (document,) = [one for one in found.asked if (one.task, one.doc_id) == ("sae_world_homes", 3)]
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
    whole = margin_by_hand(model, dictionary, ids, right, None)
    assert question["margin_variant"] == pytest.approx(whole, abs=1e-4)
    for at, piece in enumerate(prompt):
        if at == 0:
            assert piece["value"] is None
        else:
            assert piece["value"] == pytest.approx(margin_by_hand(model, dictionary, ids, right, at) - whole, abs=2e-4)


def test_of_a_long_prompt_values_are_the_gradients_and_are_called_so(asked, tmp_path, monkeypatch):
    _, found = asked
    monkeypatch.setattr(where_questions, "MOST_TOKENS", 2)
    other = found_by(tmp_path, questions=("sae_world_homes:3",))
    exact, first_order = (of.record()["questions"][0] for of in (found, other))
    assert (exact["method"], first_order["method"]) == ("exact", "gradient")
    assert [one["text"] for one in exact["tokens"]] == [one["text"] for one in first_order["tokens"]]
    assert [one["value"] is None for one in exact["tokens"]] == [one["value"] is None for one in first_order["tokens"]]
    page = question_page({**other.record(), "variant": "k4"})
    assert "right to first order" in page
    assert "right to first order" not in question_page(found.record())


def test_the_page_lies_beside_the_record_and_escapes_what_it_shows(asked):
    folder, found = asked
    page = (folder / "where" / f"{found.name}.html").read_text()
    assert "sae_world_homes, document 3" in page
    assert page.count("<article>") == len(found.record()["questions"])
    record = json.loads(json.dumps(found.record()))
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
        found_by(tmp_path, questions=(named,), limit=4)


def test_a_question_that_is_none_is_refused_before_anything_is_loaded():
    with pytest.raises(UserError, match="--question first is no question"):
        Inquiry(questions=("first",))
    with pytest.raises(UserError, match="--latents 1000: it takes a number from 1 to 100"):
        Inquiry(latents=1000)


def test_the_report_has_the_page_and_forgets_it(asked, tmp_path: Path):
    from sae_lm_eval.report.where_tables import question_pages

    _, found = asked
    (page,) = question_pages([found.record()])
    assert page.file.startswith("questions-")
    assert not question_pages([{**found.record(), "questions": []}])


def test_a_question_without_its_margins_is_no_record(asked, tmp_path: Path):
    _, found = asked
    record = json.loads(json.dumps(found.record())) | {"model_args": {"pretrained": "world"}}
    (tmp_path / "right.json").write_text(json.dumps(record))
    assert len(read_where_record(tmp_path / "right.json").questions) == len(record["questions"])
    record["questions"][0]["margin_variant"] = None
    (tmp_path / "wrong.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="a question without a reason needs both margins"):
        read_where_record(tmp_path / "wrong.json")
