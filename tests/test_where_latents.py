"""What margins are attributed to: against plain torch on small models, against ablation, and in a linear map."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import WIDTH, random_ids, random_model, random_sae, word_tokenizer
from test_talk_page import byte_tokenizer
from torch import Tensor, nn

from sae_lm_eval.attribution import patches
from sae_lm_eval.attribution.gradients import Contrast, TextGradient, margin_gradients
from sae_lm_eval.attribution.latents import ActivatingToken, LatentAttributions, ablated, check_latents
from sae_lm_eval.attribution.near_misses import MissedSpan
from sae_lm_eval.attribution.segments import PromptDocument
from sae_lm_eval.dictionaries.pre_activations import near_misses
from sae_lm_eval.errors import UserError
from sae_lm_eval.report.latent_tables import latent_sentences, latent_table
from sae_lm_eval.runs import where_variant
from sae_lm_eval.runs.asked_tasks import AskedTask
from sae_lm_eval.runs.inquiry import Inquiry
from sae_lm_eval.runs.settings import lm_eval_config
from sae_lm_eval.runs.sweep import sweep_of
from sae_lm_eval.runs.where import explain_drops
from sae_lm_eval.runs.where_latents import _example
from sae_lm_eval.runs.where_variant import check_variant
from sae_lm_eval.scoring.loaded_model import LoadedModel, Settings
from sae_lm_eval.scoring.request import Query
from sae_lm_eval.scoring.spliced_model import SplicedModel
from sae_lm_eval.splicing.arguments import requested_splices
from sae_lm_eval.splicing.attach import attached

RESID, READ, MLP = "blocks.1.hook_resid_post", "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
LATENTS = 64
K4 = "world#blocks.2.hook_resid_post.k4"


def spliced(sae, model=None, **how) -> SplicedModel:
    loaded = LoadedModel(model or random_model("llama"), word_tokenizer(), Settings(40, rows=1, texts_at_once=1))
    return SplicedModel(loaded, requested_splices(sae, **how))


def contrasts(count: int = 3) -> list[Contrast]:
    """Questions with answers of two tokens and of several lengths; the last has both answers behind the same ids."""
    out = []
    for number in range(count - 1):
        ids = random_ids(1, 9 + 3 * number, seed=number)[0].tolist()
        right, wrong = random_ids(2, 9, seed=50 + number)[:, 2:4].tolist()
        out.append(Contrast(number, Query([*ids, right[0]], right), Query([*ids, wrong[0]], wrong)))
    ids = random_ids(1, 12, seed=9)[0].tolist()
    return [*out, Contrast(count - 1, Query(ids, [5]), Query(ids, [7]))]


def gradients(model: SplicedModel, questions: list[Contrast]) -> list[TextGradient]:
    texts: list[TextGradient] = []
    margin_gradients(model, questions, texts.append)
    return texts


def by_hand(model: nn.Module, sae, query: Query, latents: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The log-probability of the targets behind a plain hook that puts the reconstruction at block 1's output, with
    its latents and its error, both in the graph."""
    kept: dict[str, Tensor] = {}

    def hook(_module, _args, output):
        y = output[0] if isinstance(output, tuple) else output
        kept["latents"] = sae.encode(y).detach().requires_grad_()
        kept["shift"] = torch.zeros_like(y, requires_grad=True)
        new = sae.decode(kept["latents"]) + kept["shift"]
        kept["error"] = (y - sae.decode(kept["latents"])).detach()
        special = torch.tensor([query.ids]) <= 2
        new = torch.where(special[..., None], y, new)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = model.model.layers[1].register_forward_hook(hook)
    try:
        logprob = model(input_ids=torch.tensor([list(query.ids)])).logits[0, -len(query.targets) :].log_softmax(-1)
    finally:
        handle.remove()
    total = logprob.gather(-1, torch.tensor(query.targets)[:, None]).sum()
    slope, shift = torch.autograd.grad(total, [kept["latents"], kept["shift"]])
    return (kept["latents"] * slope)[0].detach(), (kept["error"] * shift)[0].sum(-1), kept["latents"][0].detach()


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk"])
def test_activation_times_gradient_is_that_of_plain_torch(kind):
    sae, model, questions = random_sae(WIDTH, RESID, kind), random_model("llama"), contrasts()
    spliced_model = spliced(sae, model)
    lost = {0: 0.5, 1: -0.25, 2: 2.0}
    attributions = LatentAttributions(spliced_model.variant, lost, {"overall": [0, 1, 2], "two": [0, 1]})
    margin_gradients(spliced_model, questions, attributions)
    for part, own in {"overall": (0, 1, 2), "two": (0, 1)}.items():
        latents, error, weight = torch.zeros(LATENTS), 0.0, sum(abs(lost[at]) for at in own)
        for at in own:
            for sign, query in ((1, questions[at].right), (-1, questions[at].wrong)):
                of_latents, of_error, _ = by_hand(model, sae, query)
                latents += sign * lost[at] / weight * of_latents.sum(0)
                error += sign * lost[at] / weight * float(of_error.sum())
        assert attributions.error_attribution(part) == pytest.approx(error, abs=1e-4)
        mine = torch.tensor([attributions.attribution(part, 0, latent) for latent in range(LATENTS)])
        torch.testing.assert_close(mine, latents, atol=1e-4, rtol=1e-3)
        top = attributions.top(part, 4)
        assert [candidate.latent for candidate in top] == latents.abs().topk(4).indices.tolist()


def test_where_and_how_often_latents_are_active_is_told_of_the_prompt_with_the_right_answer():
    sae, model, questions = random_sae(WIDTH, RESID), random_model("llama"), contrasts()
    spliced_model = spliced(sae, model)
    attributions = LatentAttributions(spliced_model.variant, dict.fromkeys(range(3), 1.0), {"overall": [0, 1, 2]})
    margin_gradients(spliced_model, questions, attributions)
    texts = []
    for question in questions:
        *_, active = by_hand(model, sae, question.right)
        texts.append(active * (torch.tensor(question.right.ids) > 2)[:, None])
    for latent in range(0, LATENTS, 7):
        largest = {number: float(text[:, latent].max()) for number, text in enumerate(texts)}
        expected = sorted((number for number in largest if largest[number]), key=lambda number: -largest[number])
        tokens = attributions.examples(0, latent)
        assert [token.document for token in tokens] == expected
        assert attributions.active[0][latent] == len(expected)
        for token in tokens:
            assert token.activation == pytest.approx(largest[token.document], rel=1e-4)
            assert token.position == int(texts[token.document][:, latent].argmax())


def test_behind_the_last_norm_the_margin_is_linear_and_nothing_is_left_over():
    """Of one token behind the same ids: margin = h (w_right - w_wrong), where h is what a dictionary puts there."""
    sae, model = random_sae(WIDTH, "model.norm.output"), random_model("llama")
    spliced_model, ids = spliced(sae, model, hook="model.norm.output"), random_ids(1, 12, seed=9)[0].tolist()
    question = Contrast(0, Query(ids, [5]), Query(ids, [7]))
    attributions = LatentAttributions(spliced_model.variant, {0: 1.0}, {"overall": [0]})
    margin_gradients(spliced_model, [question], attributions)

    def margin() -> float:
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        return float(logits[5] - logits[7])

    with torch.no_grad():
        baseline = margin()
        with spliced_model.attached():
            variant = margin()
        constant = float(sae.b_dec @ (model.lm_head.weight[5] - model.lm_head.weight[7]))
    assert attributions.error_attribution("overall") == pytest.approx(baseline - variant, abs=1e-4)
    latents = sum(attributions.attribution("overall", 0, latent) for latent in range(LATENTS))
    assert latents + constant == pytest.approx(variant, abs=1e-4)
    assert latents + constant + attributions.error_attribution("overall") == pytest.approx(baseline, abs=1e-4)
    top = attributions.top("overall", 1)[0]
    with torch.no_grad(), attached(spliced_model.model, ablated(spliced_model.variant, 0, top.latent)):
        assert variant - margin() == pytest.approx(top.attributed, abs=1e-4)


def test_errors_and_latents_are_a_first_order_expansion():
    """A small part of the error put back changes the margin by that part of what the error is worth."""
    sae, model, questions = random_sae(WIDTH, RESID), random_model("llama").double(), contrasts()
    spliced_model = spliced(sae.double(), model)
    texts = [gradient for gradient in gradients(spliced_model, questions) if gradient.document == 2]
    worth = sum(float(site.error_attribution.sum()) for text in texts for site in text.sites)
    query, step = questions[2].right, 2e-3

    def margin(part: float) -> float:
        def hook(_module, _args, output):
            y = output[0] if isinstance(output, tuple) else output
            new = sae(y) + part * (y - sae(y))
            new = torch.where((torch.tensor([query.ids]) <= 2)[..., None], y, new)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = model.model.layers[1].register_forward_hook(hook)
        with torch.no_grad():
            logprob = model(input_ids=torch.tensor([list(query.ids)])).logits[0, -1].log_softmax(-1)
        handle.remove()
        return float(logprob[5] - logprob[7])

    assert (margin(step) - margin(-step)) / (2 * step) == pytest.approx(worth, rel=2e-3)  # norms are in float32


def test_of_several_sites_the_gradient_goes_through_the_later_ones():
    first, second = random_sae(WIDTH, "blocks.0.hook_resid_post"), random_sae(WIDTH, RESID, seed=1)
    model, question = random_model("llama"), contrasts()[-1]
    spliced_model = spliced([first, second], model)
    (text,) = gradients(spliced_model, [question])
    (gradient,) = [
        site
        for splice, site in zip(spliced_model.variant.splices, text.sites, strict=True)
        if "blocks.0" in str(splice.site_out)
    ]
    position, step = 7, 1e-2

    def margin(shift: float) -> float:
        def hook(_module, _args, output):
            y = output[0] if isinstance(output, tuple) else output
            y = y.clone()
            y[0, position] += shift * gradient.error[position] / gradient.error[position].norm()
            return (y, *output[1:]) if isinstance(output, tuple) else y

        with torch.no_grad(), spliced_model.attached():
            handle = model.model.layers[0].register_forward_hook(hook)  # behind the splice's own
            logits = model(input_ids=torch.tensor([list(question.right.ids)])).logits[0, -1]
            handle.remove()
        return float(logits[5] - logits[7])

    expected = (margin(step) - margin(-step)) / (2 * step) * float(gradient.error[position].norm())
    assert float(gradient.error_attribution[position]) == pytest.approx(expected, rel=0.02, abs=1e-3)


def test_what_is_differentiated_is_as_it_was_afterwards():
    spliced_model = spliced(random_sae(WIDTH, RESID))
    before = [weight.requires_grad for weight in spliced_model.model.parameters()]
    gradients(spliced_model, contrasts())
    assert [weight.requires_grad for weight in spliced_model.model.parameters()] == before
    assert all(weight.grad is None for weight in spliced_model.model.parameters())


class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (Halved(), "has no latents to attribute anything to: it needs an encode and a decode"),
        (random_sae(WIDTH, RESID, "temporal"), "looks at several positions: nothing is attributed to its latents"),
    ],
)
def test_what_has_no_latents_is_told(own, message):
    how = {"hook": RESID} if isinstance(own, Halved) else {}
    with pytest.raises(UserError, match=message):
        check_latents(spliced(own, **how).variant)


# -- the span of latents below the threshold ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk", "skip_transcoder", "jumprelu_transcoder"])
@pytest.mark.parametrize("count", [1, 8])
def test_the_span_of_near_misses_is_a_least_squares_fit(kind, count):
    sae = random_sae(WIDTH, READ, kind, hook_out=MLP) if "transcoder" in kind else random_sae(WIDTH, RESID, kind)
    spliced_model = spliced(sae)
    (splice,) = spliced_model.variant.splices
    generator = torch.Generator().manual_seed(3)
    x, error = (torch.randn(2, 5, WIDTH, generator=generator) for _ in range(2))
    spanned = MissedSpan(splice, near_misses(splice.dictionary), count)(x, x, error)
    with torch.no_grad():
        before = (x - sae.b_dec if sae.cfg.apply_b_dec_to_input else x) @ sae.W_enc + sae.b_enc
        active = sae.encode(x) != 0
        above = before - getattr(sae, "threshold", 0)
    for row in range(2):
        for at in range(5):
            inactive = [latent for latent in range(LATENTS) if not active[row, at, latent]]
            nearest = sorted(inactive, key=lambda latent: -float(above[row, at, latent]))[:count]
            basis = sae.W_dec[nearest].detach().double().numpy().T
            fit, *_ = np.linalg.lstsq(basis, error[row, at].double().numpy(), rcond=None)
            np.testing.assert_allclose(spanned[row, at].numpy(), basis @ fit, atol=1e-5)


def test_latents_that_write_alike_or_nothing_span_no_more():
    sae = random_sae(WIDTH, RESID)
    with torch.no_grad():
        sae.W_dec[:] = 0
        sae.W_dec[: LATENTS // 2] = torch.eye(WIDTH)[0]
    (splice,) = spliced(sae).variant.splices
    x, error = torch.randn(1, 6, WIDTH), torch.randn(1, 6, WIDTH)
    spanned = MissedSpan(splice, near_misses(splice.dictionary), LATENTS)(x, x, error)
    torch.testing.assert_close(spanned[..., 0], error[..., 0])
    assert spanned[..., 1:].abs().max() < 1e-6


def test_a_class_that_does_not_tell_its_thresholds_is_refused():
    (splice,) = spliced(random_sae(WIDTH, RESID, "gated")).variant.splices
    with pytest.raises(UserError, match="'gated' does not tell which latents just missed their threshold"):
        near_misses(splice.dictionary)


# -- on the embedded world ------------------------------------------------------------------------------------


def explained(folder, tasks="sae_world_villages,sae_world_homes", variant=K4, by=("first:1",), limit=16, **other):
    given = {"model_args": {"pretrained": "world"}, "variants": [variant], "tasks": tasks, "limit": limit}
    sweep = sweep_of({**given, "device": "cpu"})
    (explanation,) = explain_drops(sweep, lm_eval_config(sweep), folder, Inquiry(by, **other))
    return explanation


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    return folder, explained(folder, latents=3)


def test_a_latent_costs_what_a_run_without_it_loses(world, tmp_path):
    _, explanation = world
    rows = [row for row in explanation.record()["latents"]["rows"] if row["name"] == "overall"]
    assert len(rows) == 3
    latent = rows[0]["latent"]
    without = explained(tmp_path, variant={"sae": K4, "ablate": str(latent), "name": "without"})
    keys = [run.losses["margin"].by_key["reconstruction"] for run in (explanation, without)]
    assert [document.doc_id for document in explanation.prompts] == [document.doc_id for document in without.prompts]
    expected = float(((keys[1] - keys[0]) * keys[0]).sum() / np.abs(keys[0]).sum())
    assert rows[0]["ablated"] == pytest.approx(expected, abs=1e-4)
    assert rows[0]["ablated_low"] <= rows[0]["ablated"] <= rows[0]["ablated_high"]
    assert np.sign(rows[0]["attributed"]) == np.sign(rows[0]["ablated"])


@pytest.mark.parametrize("where", [{"latent_positions": "first:2"}, {"latent_heads": "0"}])
def test_latents_edited_in_part_are_not_ablated(where):
    sae = random_sae(WIDTH, "blocks.1.attn.hook_z")
    spliced_model = spliced(sae, ablate="3", **where)
    with pytest.raises(UserError, match=r"--latents ablates latents wherever a dictionary is spliced in: leave out "):
        check_variant(Inquiry(latents=2), "part", spliced_model)
    check_variant(Inquiry(), "part", spliced_model)
    check_variant(Inquiry(latents=2), "whole", spliced(sae, ablate="3"))


def test_the_record_tells_the_parts_and_the_tokens(world):
    folder, explanation = world
    record = json.loads((folder / "where" / f"{explanation.name}.json").read_text())
    latents = record["latents"]
    assert latents["reason"] is None
    assert latents["documents"] == 32
    assert {part["name"] for part in latents["parts"]} == {"overall", "sae_world_villages", "sae_world_homes"}
    lost = explanation.losses["margin"].by_key["reconstruction"]
    assert latents["parts"][0]["lost"] == pytest.approx(float((lost**2).sum() / np.abs(lost).sum()), rel=1e-5)
    for row in latents["rows"]:
        activations = [token["activation"] for token in row["tokens"]]
        assert activations == sorted(activations, reverse=True)
        assert len(activations) == min(row["active"], 5)
        assert all(token["token"] for token in row["tokens"])


@pytest.mark.parametrize(
    ("text", "position", "before", "token", "after"),
    [
        ("日x", 0, "", "日", "x"),
        ("日x", 1, "", "日", "x"),
        ("日x", 2, "", "日", "x"),
        ("日x", 3, "日", "x", ""),
        ("a é.", 3, "a ", "é", "."),
        ("日本語x", 4, "日", "本", "語x"),
    ],
)
def test_a_token_inside_a_character_is_shown_as_the_whole_one(text, position, before, token, after):
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(text)
    model = SimpleNamespace(tokens=SimpleNamespace(tokenizer=tokenizer))
    record = _example(model, [PromptDocument("t", 0, None, ())], ActivatingToken(0, ids, position, 1.0))
    assert (record["before"], record["token"], record["after"]) == (before, token, after)


def test_of_ablated_latents_margins_alone_are_made_of_few_at_a_time(world, tmp_path, monkeypatch):
    _, expected = world
    answered, reduced = AskedTask.accuracy, where_variant.margins_lost
    scored, batches = [], []

    def accuracy(task, answers):
        scored.append(task.name)
        return answered(task, answers)

    def few(contrasts, owner, answers):
        batches.append(list(answers))
        return reduced(contrasts, owner, answers)

    monkeypatch.setattr(AskedTask, "accuracy", accuracy)
    monkeypatch.setattr(patches, "VARIANTS_AT_ONCE", 2)
    monkeypatch.setattr(where_variant, "margins_lost", few)
    rows = explained(tmp_path, latents=3).record()["latents"]["rows"]
    latents = {(row["hook"], row["latent"]) for row in rows}
    assert [len(keys) for keys in batches[:-1]] == [3] * (len(batches) - 1)  # the baseline and two
    assert sum(len(keys) - 1 for keys in batches) == len(latents)
    monkeypatch.undo()
    monkeypatch.setattr(AskedTask, "accuracy", accuracy)
    with_latents = len(scored)
    scored.clear()
    explained(tmp_path / "without", questions=("sae_world_homes:3",))
    assert len(scored) == with_latents
    for row, other in zip(rows, expected.record()["latents"]["rows"], strict=True):
        assert row["latent"] == other["latent"]
        assert row["ablated"] == pytest.approx(other["ablated"], abs=1e-4)


def test_its_table_links_to_the_release(world):
    _, explanation = world
    record = explanation.record()
    rows = [{**row, "neuronpedia": "gpt2-small/8-res-jb"} for row in record["latents"]["rows"]]
    table = latent_table({**record, "latents": {**record["latents"], "rows": rows}}, "where-latents")
    assert table is not None
    assert table.rows[0][1].link == f"https://www.neuronpedia.org/gpt2-small/8-res-jb/{rows[0]['latent']}"
    assert len(table.rows) == len(rows)
    assert [column.heading for column in table.columns][:4] == ["questions", "latent", "attributed", "ablated"]
    said = latent_sentences(record)
    assert said[0].startswith("2 tasks together: weighted by what each question lost, the margin gains ")
    assert latent_table({**record, "latents": None}, "where-latents") is None


def test_what_misses_no_threshold_is_told_and_the_rest_is_scored(tmp_path):
    variant = {"sae": Halved(), "hook": "blocks.2.hook_resid_post", "name": "half"}
    explanation = explained(tmp_path, "sae_world_homes", variant, ("first:1", "missed"), limit=8, latents=2)
    record = explanation.record()
    assert record["not_told"][0].endswith("does not tell which latents just missed their threshold.")
    assert {row["division"] for row in record["rows"]} == {"first"}
    assert "has no latents to attribute anything to" in record["latents"]["reason"]
    assert latent_sentences(record) == [f"No latents: {record['latents']['reason']}"]
    with pytest.raises(UserError, match="does not tell which latents"):
        explained(tmp_path / "alone", "sae_world_homes", variant, ("missed",), limit=8)


def test_the_nearest_misses_come_back_alone(tmp_path):
    explanation = explained(tmp_path, "sae_world_villages", by=("missed",))
    record = explanation.record()
    assert list(record["energy"]) == ["missed: 8 nearest latents", "missed: 32 nearest latents"]
    few, many = record["energy"].values()
    assert 0 < few < many < 1
    rows = {row["class"]: row for row in record["rows"] if row["measure"] == "kl"}
    assert list(rows) == ["8 nearest latents", "32 nearest latents"], "one lies in the other, so that they have no sum"
    assert record["held_out"] is False


@pytest.mark.parametrize(
    ("tasks", "has_energy"), [("sae_world_homes", False), ("sae_world_homes,sae_world_villages", True)]
)
def test_texts_without_a_spliced_position_miss_nothing(tasks, has_energy, tmp_path):
    """Prompts of homes have fewer than 8 tokens."""
    variant = {"sae": K4, "splice_tokens": "non_special:7", "name": "late"}
    explanation = explained(tmp_path, tasks, variant, ("missed", "first:1"), limit=8)
    assert all((energy is not None) == has_energy for energy in explanation.record()["energy"].values())
