"""What an ablation leaves of a text: run once where that is nothing, with the same losses as window by window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from models import ARCHITECTURES, CONTEXT, WIDTH, random_sae
from test_fidelity import SOURCE, TEXTS, adapter, ask, assert_close

from sae_lm_eval.fidelity import measure as fidelity
from sae_lm_eval.fidelity.ablations import ablations, leave_no_text, without_text
from sae_lm_eval.scoring.request import Query, ScoreRequest


def left_nothing(lm: Any) -> bool:
    return leave_no_text(lm.model, ablations(lm.spliced, SOURCE)[0])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("hook", ["resid_pre", "resid_post"])
def test_an_ablated_residual_stream_has_nothing_of_the_text(architecture, hook):
    assert left_nothing(adapter(random_sae(WIDTH, f"blocks.1.hook_{hook}"), model=architecture))


@pytest.mark.parametrize("hook", ["mlp_out", "attn_out"])
def test_the_stream_goes_round_other_sites(hook):
    assert not left_nothing(adapter(random_sae(WIDTH, f"blocks.1.hook_{hook}")))


def test_half_an_edit_leaves_the_other_half():
    assert not left_nothing(adapter(scale=0.5))


def test_a_stream_and_what_goes_round_another_site():
    saes = [random_sae(WIDTH, f"blocks.{hook}") for hook in ("0.hook_mlp_out", "1.hook_resid_post")]
    assert left_nothing(adapter(*saes))
    saes = [random_sae(WIDTH, f"blocks.{hook}") for hook in ("1.hook_resid_post", "2.hook_mlp_out")]
    assert left_nothing(adapter(*saes))


def test_what_is_behind_the_last_special_token_is_forgotten():
    queries = [Query([1, 5, 9, 2, 8, 7], [6, 4]), Query([5, 9], [9, 3]), Query([1, 5, 2], [1])]
    lm: Any = adapter()
    ablated = without_text(queries, lm.model, {1, 2})
    assert [query.ids for query in ablated] == [[1, 5, 9, 2, 0, 0], [0, 0], [1, 5, 2]]
    assert [query.targets for query in ablated] == [query.targets for query in queries]


@pytest.mark.parametrize("hook", ["resid_post", "mlp_out"])
@pytest.mark.parametrize("splice_tokens", ["all", "non_special"])
@pytest.mark.parametrize("positions", ["all", "non_special"])
@pytest.mark.parametrize("held_out", [SOURCE.held_out, ()])
def test_apart_and_together_are_the_same(monkeypatch, hook, splice_tokens, positions, held_out):
    lm = adapter(random_sae(WIDTH, f"blocks.1.hook_{hook}"), splice_tokens=splice_tokens)
    source = replace(SOURCE, positions=positions, held_out=held_out)
    apart = ask(lm, source=source)
    monkeypatch.setattr(fidelity, "leave_no_text", lambda _model, _variants: False)
    lm = adapter(random_sae(WIDTH, f"blocks.1.hook_{hook}"), splice_tokens=splice_tokens)
    assert_close(apart, ask(lm, source=source), 1e-5)


def test_all_windows_are_run_as_one():
    lm: Any = adapter(splice_tokens="all")
    queries = without_text([query for text in TEXTS for query in lm.spliced.rolling(text)], lm.model, ())
    scorer = lm.spliced.scorer(ablations(lm.spliced, SOURCE)[0])
    assert scorer.layout.rows
    tokens, by_number = [], {}
    lm.model.model.embed_tokens.register_forward_hook(lambda _m, args, _out: tokens.append(args[0].numel()))
    scorer.score(ScoreRequest(queries, measures=(), greedy=False, compared=0), by_number.update)
    assert len(by_number) == len(queries) > 5
    assert sum(tokens) <= CONTEXT + 1
