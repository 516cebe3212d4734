"""Where edits of latents hold, in every kind of request, against plain torch."""

from __future__ import annotations

import lm_eval
import pytest
import torch
from lm_eval.api.instance import Instance
from models import HEADS, WIDTH, random_model, random_sae, word_tokenizer, words
from torch import Tensor, nn

from sae_lm_eval import SaeHFLM, UserError
from sae_lm_eval.harness import model
from sae_lm_eval.harness.few_shot_headers import header_lengths
from sae_lm_eval.harness.joined import joined
from sae_lm_eval.splicing.arguments import requested_splices

RESID, HEAD_SITE = "blocks.1.hook_resid_post", "blocks.1.attn.hook_z"
RULES = ("all", "last", "first:3")
EDITS = {"ablate": "3+9", "clamp": "5:2.5"}


def edited(latents: Tensor) -> Tensor:
    latents = latents.clone()
    latents[..., [3, 9]], latents[..., 5] = 0, 2.5
    return latents


def holds(rule: str, length: int, prompt: int) -> Tensor:
    """Which of a text's positions are edited; its first `prompt` tokens are the prompt."""
    numbers = torch.arange(length)
    kind, _, count = rule.partition(":")
    return {"all": numbers >= 0, "last": numbers == prompt - 1, "first": numbers < int(count or 0)}[kind]


def spliced_by_hand(model, sae, where: Tensor, mode: str, columns: Tensor | None = None):
    """`model` with what the rule makes of a dictionary at RESID or at HEAD_SITE, in plain torch."""

    def new(y: Tensor) -> Tensor:
        plain = sae.encode(y) @ sae.W_dec + sae.b_dec
        other = edited(sae.encode(y)) @ sae.W_dec + sae.b_dec
        here = where[:, None] if columns is None else where[:, None] & columns
        mixed = torch.where(here, other, plain)
        return mixed if mode == "reconstruction" else y + (mixed - plain)

    if columns is None:
        return model.model.layers[1].register_forward_hook(lambda _m, _a, out: new(out))
    return model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda _m, args: (new(args[0]),))


def logprob_by_hand(sae, query, rule: str, mode: str, columns: Tensor | None = None) -> float:
    model, ids = random_model("llama"), torch.tensor([list(query.ids)])
    where = holds(rule, len(query.ids), len(query.ids) - len(query.targets) + 1)
    spliced_by_hand(model, sae, where, mode, columns)
    logits = model(ids).logits[0, -len(query.targets) :].log_softmax(-1)
    return float(logits.gather(-1, torch.tensor(list(query.targets))[:, None]).sum())


def family(sae, *variants, **kwargs) -> list[SaeHFLM]:
    given = {"pretrained": random_model("llama"), "tokenizer": word_tokenizer(), **kwargs}
    baseline = SaeHFLM(sae=[], splice="none", **given)
    wanted = [requested_splices(sae, splice_tokens="all", **EDITS, **variant) for variant in variants]
    return joined(baseline, [baseline.as_variant(splices) for splices in wanted])


HEADER = words(12, seed=0)
CONTEXTS = [f"{HEADER} {words(n, seed=n)}" for n in (2, 5, 3, 9)]


@pytest.mark.parametrize("mode", ["reconstruction", "with_error"])
def test_answers_behind_a_prompt(mode):
    sae, pairs = random_sae(WIDTH, RESID), [(context, f" {words(2, seed=50)}") for context in CONTEXTS]
    models = family(sae, *({"latent_positions": rule, "splice": mode} for rule in RULES))
    requests = [Instance("loglikelihood", {}, pair, i, ("task", i, 1)) for i, pair in enumerate(pairs)]
    answers = [[answer for answer, _ in lm.loglikelihood(requests)] for lm in models]
    queries = [models[0].spliced.query(*ids) for ids in models[0].spliced.group.pairs(pairs)]
    for rule, logprobs in zip(RULES, answers[1:], strict=True):
        expected = [logprob_by_hand(sae, query, rule, mode) for query in queries]
        torch.testing.assert_close(torch.tensor(logprobs), torch.tensor(expected), atol=1e-4, rtol=0)
    assert len({tuple(logprobs) for logprobs in answers}) == 4


def test_documents():
    sae = random_sae(WIDTH, RESID)
    models = family(sae, *({"latent_positions": rule} for rule in RULES), max_length=8)
    documents = [words(5, seed=1), words(19, seed=2)]  # which takes several windows
    requests = [Instance("loglikelihood_rolling", {}, (text,), i, ("task", i, 1)) for i, text in enumerate(documents)]
    for rule, lm in zip(RULES, models[1:], strict=True):
        expected = [
            sum(logprob_by_hand(sae, query, rule, "reconstruction") for query in lm.spliced.rolling(document))
            for document in documents
        ]
        torch.testing.assert_close(
            torch.tensor(lm.loglikelihood_rolling(requests)), torch.tensor(expected), atol=1e-4, rtol=0
        )


def written_by_hand(sae, prompt: list[int], rule: str, length: int) -> list[int]:
    ids = list(prompt)
    for _ in range(length):
        model = random_model("llama")
        spliced_by_hand(model, sae, holds(rule, len(ids), len(prompt)), "reconstruction")
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("by", ["together", "transformers", "clean"])
def test_texts(by):
    sae, length = random_sae(WIDTH, RESID), 5
    further = {"splice_input": "clean"} if by == "clean" else {}
    models = family(sae, *({"latent_positions": rule, **further} for rule in RULES))
    settings = {"until": [], "max_gen_toks": length, "do_sample": False}
    settings |= {"repetition_penalty": 1.0000001} if by == "transformers" else {}  # which the decoder does not follow
    requests = [
        Instance("generate_until", {}, (context, settings), i, ("task", i, 1)) for i, context in enumerate(CONTEXTS)
    ]
    for rule, lm in zip(RULES, models[1:], strict=True):
        prompts = [lm.tok_encode(context) for context in CONTEXTS]
        expected = [written_by_hand(sae, prompt, rule, length) for prompt in prompts]
        texts = lm.generate_until(requests, disable_tqdm=True)
        assert texts == [lm.tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]


@pytest.mark.parametrize("rule", ["all", "last"])
@pytest.mark.parametrize("mode", ["reconstruction", "with_error"])
def test_heads(rule, mode):
    sae = random_sae(WIDTH, HEAD_SITE)
    columns = (torch.arange(WIDTH) // (WIDTH // HEADS) == 1) | (torch.arange(WIDTH) // (WIDTH // HEADS) == 3)
    pairs = [(context, f" {words(2, seed=50)}") for context in CONTEXTS]
    _, lm = family(sae, {"latent_positions": rule, "latent_heads": "1+3", "splice": mode})
    requests = [Instance("loglikelihood", {}, pair, i, ("task", i, 1)) for i, pair in enumerate(pairs)]
    queries = [lm.spliced.query(*ids) for ids in lm.spliced.group.pairs(pairs)]
    expected = [logprob_by_hand(sae, query, rule, mode, columns) for query in queries]
    logprobs = [answer for answer, _ in lm.loglikelihood(requests)]
    torch.testing.assert_close(torch.tensor(logprobs), torch.tensor(expected), atol=1e-4, rtol=0)
    assert lm.spliced.provenance()["latent_edits"].endswith("latent_heads=1+3")


def test_no_ids_are_joined_where_nothing_looks_at_headers(monkeypatch):
    id_iterators = []
    monkeypatch.setattr(
        model, "header_lengths", lambda *given: id_iterators.append(given[-1]) or header_lengths(*given)
    )
    lm = SaeHFLM(pretrained="world", device="cpu", sae="world#blocks.2.hook_resid_post.k4")
    lm_eval.simple_evaluate(lm, tasks=["sae_world_villages"], limit=2, bootstrap_iters=0)
    assert next(id_iterators[0])  # none of them was taken


def test_behind_the_few_shot_header():
    given = {"pretrained": "world", "device": "cpu", "sae": "world#blocks.2.hook_resid_post.k4"}
    lm = SaeHFLM(**given, clamp="3:9", latent_positions="after_header")
    task, shots = "sae_world_villages", 2
    results = lm_eval.simple_evaluate(lm, tasks=[task], num_fewshot=shots, limit=2, bootstrap_iters=0)
    sae, kept = lm.spliced.variant.splices[0].unedited.module, torch.tensor(sorted(lm.spliced.variant.special_ids))

    def by_hand(before: list[int], behind: list[int], header: int) -> float:
        ids = torch.tensor([[*before, *behind]])[:, :-1]

        def new(_module, _args, y):
            z = sae.encode(y)
            clamped = z.clone()
            clamped[..., 3] = 9
            mixed = torch.where((torch.arange(y.shape[1]) >= header)[:, None], sae.decode(clamped), sae.decode(z))
            return torch.where(torch.isin(ids, kept)[..., None], y, mixed)

        handle = lm.model.model.layers[2].register_forward_hook(new)
        with torch.no_grad():
            logits = lm.model(ids).logits[0, -len(behind) :].log_softmax(-1)
        handle.remove()
        return float(logits.gather(-1, torch.tensor(behind)[:, None]).sum())

    moved = []
    for sample in results["samples"][task]:
        pairs = [tuple(arguments) for arguments in sample["arguments"]]
        for (context, continuation), (answer, _) in zip(pairs, sample["filtered_resps"], strict=True):
            own = context.split("\n\n")[-1]
            assert context.count("\n\n") == shots
            ((before, behind),) = lm.spliced.tokens.pairs([(context, continuation)])
            header = len(before) - len(lm.spliced.tokens.encode(own, add_special_tokens=False))
            expected = by_hand(before, behind, header)
            assert float(answer) == pytest.approx(expected, abs=1e-4)
            moved.append(abs(by_hand(before, behind, 0) - expected))
    assert max(moved) > 1e-3


def test_without_a_header_all_is_behind_it():
    sae = random_sae(WIDTH, RESID)
    models = family(sae, {"latent_positions": "after_header"}, {})
    requests = [Instance("loglikelihood_rolling", {}, (words(6, seed=1),), 0, ("task", 0, 1))]
    assert models[1].loglikelihood_rolling(requests) == models[2].loglikelihood_rolling(requests)


def test_positions_are_encoded_once():
    sae, calls = random_sae(WIDTH, RESID), []
    lm = SaeHFLM(pretrained=random_model("llama"), tokenizer=word_tokenizer(), sae=sae, keep_top=4)
    module = lm.spliced.variant.splices[0].dictionary.module
    module.hook_sae_acts_post.register_forward_hook(lambda *_: calls.append(1))
    lm._model_call(torch.tensor([[5, 6, 7]]))
    assert len(calls) == 1


WRONG = {
    "no rule": ({"latent_positions": "lst"}, "latent_positions=lst is no rule for positions. Did you mean 'last'"),
    "no count": ({"latent_positions": "first"}, "There are all, last, after_header, first:N"),
    "no positions": ({"latent_positions": "first:0"}, "latent_positions=first:0 is no rule"),
    "a part of one": ({"latent_positions": "first:2.5"}, "latent_positions=first:2.5 is no rule"),
    "negative": ({"latent_positions": "first:-3"}, "latent_positions=first:-3 is no rule"),
    "heads elsewhere": ({"latent_heads": 1}, "is for dictionaries of attention's heads, at attn.hook_z"),
    "no head": ({"latent_heads": "1+x"}, "latent_heads=1\\+x names no heads"),
    "a head twice": ({"latent_heads": "1+1"}, "latent_heads=1\\+1 names no heads"),
    "a head below 0": ({"latent_heads": -1}, "latent_heads=-1 names no heads"),
    "a layer that none reads at": ({"ablate": "2/3"}, "Latent 2/3: no dictionary reads at layer 2; they read at 1"),
    "a part of a name": ({"ablate": "1/"}, "'1/' is no latent"),
    "two layers": ({"ablate": "1/2/3"}, "'1/2/3' is no latent"),
    "a latent beyond": ({"ablate": "1/64"}, "has no latent 64: they run from 0 to 63"),
    "nothing asked of the dictionary": ({"ablate": 3, "splice": "zero"}, "does not ask the dictionary"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_mistake_is_told_in_a_sentence(what):
    given, sentence = WRONG[what]
    given = given if {"ablate"} & given.keys() else {"keep_top": 4, **given}
    with pytest.raises(UserError, match=sentence):
        SaeHFLM(pretrained=random_model("llama"), tokenizer=word_tokenizer(), sae=random_sae(WIDTH, RESID), **given)


def test_places_without_edits_are_a_mistake():
    with pytest.raises(UserError, match="latent_positions=last says where edits of latents hold: give keep_top="):
        requested_splices(random_sae(WIDTH, RESID), latent_positions="last")
    with pytest.raises(UserError, match="latent_heads=2 says where"):
        requested_splices(random_sae(WIDTH, HEAD_SITE), latent_heads=2)


def test_a_head_beyond_those_of_the_model():
    sae = random_sae(WIDTH, HEAD_SITE)
    with pytest.raises(UserError, match=f"names head {HEADS}: the heads of .* run from 0 to {HEADS - 1}"):
        SaeHFLM(
            pretrained=random_model("llama"), tokenizer=word_tokenizer(), sae=sae, keep_top=4, latent_heads=str(HEADS)
        )


def test_a_call_of_the_model_does_not_say_where_a_prompt_ends():
    given = {"sae": random_sae(WIDTH, RESID), "keep_top": 4, "latent_positions": "last"}
    lm = SaeHFLM(pretrained=random_model("llama"), tokenizer=word_tokenizer(), **given)
    with pytest.raises(
        UserError, match="latent_positions=last needs to know where a prompt ends, which a call does not say"
    ):
        lm._model_call(torch.tensor([[5, 6, 7]]))


@pytest.mark.parametrize("kind", ["loglikelihood", "generate_until"])
def test_requests_of_no_task_have_no_header(kind):
    given = {"sae": random_sae(WIDTH, RESID), "keep_top": 4, "latent_positions": "after_header"}
    lm = SaeHFLM(pretrained=random_model("llama"), tokenizer=word_tokenizer(), **given)
    behind = " w7" if kind == "loglikelihood" else {"until": ["w5"], "max_gen_toks": 2}
    request = Instance(kind, {}, ("w5 w6", behind), 0, ("mine", 0, 1))
    with pytest.raises(UserError, match="after_header is not for mine: its prompts do not hold the text"):
        getattr(lm, kind)([request])


class Shifted(nn.Module):
    """Keeps between an encode and the next decode what it has taken away."""

    def encode(self, x: Tensor) -> Tensor:
        self.mean = x.mean(-1, keepdim=True)
        return x - self.mean

    def decode(self, latents: Tensor) -> Tensor:
        out = latents + self.mean
        del self.mean
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def test_a_dictionary_that_keeps_something_between_encode_and_decode():
    given = {"sae": Shifted(), "hook": RESID, "ablate": 3}
    lm = SaeHFLM(pretrained=random_model("llama"), tokenizer=word_tokenizer(), **given)
    x = torch.randn(1, 4, WIDTH, generator=torch.Generator().manual_seed(0))
    expected = x - x.mean(-1, keepdim=True)
    expected[..., 3] = 0
    reconstruction = lm.spliced.variant.splices[0].dictionary.reconstruct(x)
    torch.testing.assert_close(reconstruction, expected + x.mean(-1, keepdim=True))
