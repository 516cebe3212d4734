"""Whatever the sequences, each of their tokens is computed behind exactly the tokens that come before it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lm_eval.scoring.packing import Prefix, common, pack

TOKENS = st.integers(0, 3)
SEQUENCES = st.lists(st.lists(TOKENS, min_size=1, max_size=24), min_size=1, max_size=40)


def walk(node: Prefix, before: list[int], seen: dict[int, tuple[list[int], object]]) -> tuple[int, int]:
    """Every sequence as the plan spells it, in `seen`; the tokens that are run, and the longest row."""
    prefix = [*before, *node.ids]
    assert len(prefix) == node.stop
    tokens, longest = node.stop - node.start, 0
    for row in node.rows:
        assert row.depth == node.stop
        visible = row.visible()
        for number, path in row.paths.items():
            assert number not in seen
            seen[number] = ([*prefix, *(row.ids[slot] for slot in path)], row)
            for place, slot in enumerate(path):
                assert row.depths[slot] == node.stop + place
                assert sorted(np.flatnonzero(visible[slot])) == sorted(path[: place + 1])
        tokens, longest = tokens + len(row.ids), max(longest, len(row.ids))
    for longer in node.longer:
        more, row = walk(longer, prefix, seen)
        tokens, longest = tokens + more, max(longest, row)
    return tokens, longest


@given(SEQUENCES, st.integers(1, 40), st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_every_token_sees_what_precedes_it(sequences, capacity, prefixes, trees):
    root = pack(sequences, capacity=capacity, limit=24, prefixes=prefixes, trees=trees)
    seen: dict = {}
    tokens, longest = walk(root, [], seen)
    for number, ids in enumerate(sequences):
        spelled, row = seen[number]
        assert spelled[: len(ids)] == ids
        assert len(spelled) == max(len(ids), row.depth)
    assert tokens <= sum(map(len, sequences)) + max(map(len, sequences)) * bool(root.longer)
    assert longest <= max(capacity, *map(len, sequences))
    if not prefixes:
        assert not root.longer
    if not trees:
        assert not any(row.branches for row in rows_of(root))


def rows_of(node: Prefix) -> list:
    return [*node.rows, *(row for longer in node.longer for row in rows_of(longer))]


@pytest.fixture(scope="module")
def sequences():
    """Fifty questions behind a header of 600 tokens, with four answers each; two such subjects."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(2):
        header = rng.integers(10**6, size=600).tolist()
        for _ in range(50):
            question = rng.integers(10**6, size=70).tolist()
            out += [header + question + rng.integers(10**6, size=5).tolist() for _ in range(4)]
    return out


class TestFewShot:
    def test_headers_and_questions_are_run_once(self, sequences):
        root = pack(sequences, capacity=256, limit=4096, prefixes=True, trees=True)
        assert [longer.stop for longer in root.longer] == [600, 600]
        assert walk(root, [], {})[0] == 2 * (600 + 50 * (70 + 4 * 5))

    def test_without_trees_each_answer_is_a_row(self, sequences):
        root = pack(sequences, capacity=256, limit=4096, prefixes=True, trees=False)
        assert walk(root, [], {})[0] == 2 * (600 + 200 * 75)
        assert len(rows_of(root)) == len(sequences)

    def test_a_row_and_its_prefix_stay_within_the_limit(self, sequences):
        root = pack(sequences, capacity=256, limit=700, prefixes=True, trees=True)
        assert all(row.depth + len(row.ids) <= 700 for row in rows_of(root))

    def test_one_answer_is_asked_once_however_many_ask(self, sequences):
        root = pack([sequences[0]] * 30, capacity=64, limit=4096, prefixes=True, trees=True)
        assert walk(root, [], {})[0] == len(sequences[0])


def test_a_long_stem_inside_a_header_is_a_prefix_of_its_own():
    rng = np.random.default_rng(0)
    header = rng.integers(10**6, size=300).tolist()
    sequences = []
    for _ in range(3):
        passage = rng.integers(10**6, size=400).tolist()
        sequences += [header + passage + rng.integers(10**6, size=30).tolist() for _ in range(20)]
    root = pack(sequences, capacity=128, limit=4096, prefixes=True, trees=True)
    (outer,) = root.longer
    assert (outer.start, outer.stop) == (0, 300)
    assert [(inner.start, inner.stop) for inner in outer.longer] == [(300, 700)] * 3


def test_common():
    a, b = np.array([1, 2, 3]), np.array([1, 2, 4, 5])
    assert common(a, b) == 2
    assert common(a, a) == 3
    assert common(a[:2], b) == 2
    assert common(a, b[2:]) == 0
