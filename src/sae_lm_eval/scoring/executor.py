"""Running a plan: its prefixes and rows through the forked model, and the head where something is asked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor
from transformers.cache_utils import Cache

from sae_lm_eval.scoring import prefix_cache
from sae_lm_eval.scoring.divergences import MEASURES, Predicted
from sae_lm_eval.scoring.forked_pass import Fork
from sae_lm_eval.scoring.last_block import LastBlock
from sae_lm_eval.scoring.lm_head import Head
from sae_lm_eval.scoring.packing import Prefix, Row
from sae_lm_eval.splicing.splice import Context, Splice

logger = logging.getLogger(f"lm_eval.{__name__}")  # below lm_eval's own, whose verbosity the user sets

# Logits held at a time: on a CPU as many as its cache makes quick work of, elsewhere as many as keep it busy.
LOGITS_ON_CPU, LOGITS = 2**22, 2**26
ENOUGH = 32  # positions to run the head for at once: for a few it takes as long, since all its weights are read


@dataclass(frozen=True)
class Query:
    """What the model reads, and what its last `len(targets)` positions are asked for."""

    ids: Sequence[int]
    targets: Sequence[int]


@dataclass(frozen=True)
class Scores:
    """Of one query, float32 arrays.

    `logprob` (1 + variants, targets) is the target's, in nats, and `greedy`, if asked for, is 1 where it is the
    likeliest token, the baseline first; `measures` (variants compared, targets) compare variants with the baseline.
    """

    logprob: np.ndarray
    greedy: np.ndarray | None
    measures: dict[str, np.ndarray]


class Watch(Protocol):
    """Sees what passes the splices of the first variant in a walk, at the positions that are asked for."""

    def begin(self, context: Context, places: np.ndarray, which: np.ndarray, queries: np.ndarray) -> None:
        """Before a batch; `places` and `which` are those of `Asked`, `queries` the numbers of the queries."""

    def __call__(self, splice: Splice, x: Tensor, y: Tensor, new: Tensor | None, context: Context) -> None:
        """At a splice."""

    def commit(self) -> None:
        """After a batch; one that memory does not suffice for is begun again and never committed."""


class Asked(NamedTuple):
    """What is asked of a batch: the positions, among rows x positions, of which each is listed once; then for every
    answer which of these it is asked of, the token, and where it goes. Sorted by position."""

    places: np.ndarray
    which: np.ndarray
    targets: np.ndarray
    goes: np.ndarray

    @classmethod
    def of(cls, parts: Iterable[tuple[np.ndarray, ...]]) -> Asked:
        """From pieces of positions, targets and where the answers go."""
        everywhere, targets, goes = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        places, which = np.unique(everywhere, return_inverse=True)
        order = np.argsort(which, kind="stable")
        return cls(places, which[order], targets[order], goes[order])


class States(NamedTuple):
    """What a batch comes to before the head: `hidden` (1 + variants, places, width), and what is asked of it."""

    hidden: Tensor
    asked: Asked


class Walk:
    """One walk over a plan.

    `tokens` is how many a batch may hold; it is halved where memory does not suffice for as many. `done` is told of
    scores, by the number of the query, as soon as they are known; what is answered together is left out where all of it
    is `known`. `measures` compare the first `compared` variants with the baseline, None being all of them.
    """

    def __init__(
        self,
        fork: Fork,
        head: Head,
        queries: Sequence[Query],
        tokens: int,
        dtype: torch.dtype,
        measures: Sequence[str],
        greedy: bool,
        done: Callable[[Mapping[int, Scores]], object],
        known: Collection[int] = (),
        last_block: LastBlock | None = None,
        compared: int | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.fork, self.head, self.queries = fork, head, queries
        self.tokens, self.dtype, self.done = tokens, dtype, done
        self.known, self.last_block, self.watch = frozenset(known), last_block, watch
        self.uneven = True  # whether a batch may hold rows of several lengths
        self.compared = fork.models - 1 if compared is None else compared
        self.device = next(head.model.parameters()).device
        # Some models give their blocks a tensor of (heads, ...), which must not look like one of (rows, ...).
        self.heads = getattr(head.model.config.get_text_config(), "num_attention_heads", None)
        logits = LOGITS_ON_CPU if self.device.type == "cpu" else LOGITS
        self.places = max(1, logits // head.model.config.get_text_config().vocab_size)  # that the head is run for
        self.starts = np.concatenate([[0], np.cumsum([len(query.targets) for query in queries], dtype=int)])
        models = {"logprob": fork.models, **({"greedy": fork.models} if greedy else {})}
        models |= dict.fromkeys(measures, self.compared)
        self.tables = {name: np.zeros((rows, self.starts[-1]), dtype=np.float32) for name, rows in models.items()}
        self.measures = {name: MEASURES[name] for name in measures}

    def behind(self, node: Prefix, cache: Cache | None) -> None:
        """Run everything that comes behind a prefix, whose cache is given."""
        rows = sorted(node.rows, key=lambda row: -len(row.ids))
        for branches in (True, False):  # not in one batch: a row without them may be longer than a window looks back
            self._in_batches([row for row in rows if row.branches == branches], cache)
        for longer in node.longer:
            if not self.known.issuperset(longer.members):
                self.behind(longer, self._prefix(longer, cache))

    def _in_batches(self, rows: Sequence[Row], cache: Cache | None) -> None:
        """Answer rows, several batches at once where little is asked of each."""
        while rows:
            count = asked = 0
            while count < len(rows) and asked < ENOUGH:
                batch = rows[count : count + self._fitting(rows[count:])]
                asked += len(self._asked(batch).places)
                count += len(batch)
            numbers = [number for row in rows[:count] for number in row.paths]
            if not self.known.issuperset(numbers):
                self._answer([*self._states(rows[:count], cache)])
                self.done({number: self._scores(number) for number in numbers})
            rows = rows[count:]

    def _fitting(self, rows: Sequence[Row]) -> int:
        """How many of the rows, the longest first, are run as one batch."""
        count = min(len(rows), max(1, self.tokens // max(1, len(rows[0].ids))))
        if not self.uneven:
            count = sum(len(row.ids) == len(rows[0].ids) for row in rows[:count])  # the longest come first
        while count > 1 and (self._is_square(rows[:count]) or count * self.fork.copies == self.heads):
            count -= 1
        return count

    def _states(self, rows: Sequence[Row], cache: Cache | None) -> Iterator[States]:
        while rows:
            count = self._fitting(rows)
            try:
                states = self._rows(rows[:count], cache)
            except Exception as error:
                if count == 1 or not should_reduce_batch_size(error):
                    raise
                self.tokens = max(1, count // 2) * len(rows[0].ids)
                logger.warning("Out of memory: continuing with batches of %d tokens.", self.tokens)
                continue
            if states is not None:
                yield states
            rows = rows[count:]

    def _is_square(self, rows: Sequence[Row]) -> bool:
        """Whether a tensor of (positions, ...) would look like one of (rows, ...)."""
        return len(rows[0].ids) == len(rows) * self.fork.copies

    def _scores(self, number: int) -> Scores:
        of_query = slice(self.starts[number], self.starts[number + 1])
        cut = {name: table[:, of_query] for name, table in self.tables.items()}
        return Scores(cut["logprob"], cut.get("greedy"), {name: cut[name] for name in self.measures})

    def _prefix(self, node: Prefix, cache: Cache | None) -> Cache:
        ids = torch.tensor([node.ids], device=self.device)
        positions = torch.arange(node.start, node.stop, device=self.device)[None]
        cache = prefix_cache.empty() if cache is None else prefix_cache.extended(cache)
        wanted = [self._wanted(number, node.start, node.stop) for number in node.members]
        asked = Asked.of((where - node.start, targets, goes) for where, targets, goes in wanted)
        self._answer([self._run(Context(ids, positions, None), cache, asked)])
        return cache

    def _rows(self, rows: Sequence[Row], cache: Cache | None) -> States | None:
        depth, length = rows[0].depth, self._length(rows)
        if not length:
            return None
        ids = np.zeros((len(rows), length), dtype=np.int64)
        positions = np.tile(np.arange(depth, depth + length), (len(rows), 1))
        for index, row in enumerate(rows):
            ids[index, : len(row.ids)], positions[index, : len(row.ids)] = row.ids, row.depths
        context = Context(self._here(ids), self._here(positions), None)
        trees = {"position_ids": context.positions, "attention_mask": self._mask(rows, depth, length)}
        cache = None if cache is None else prefix_cache.shared(cache)
        return self._run(context, cache, self._asked(rows), **(trees if rows[0].branches else {}))

    def _length(self, rows: Sequence[Row]) -> int:
        """Of a batch of rows, the longest first."""
        return len(rows[0].ids) + self._is_square(rows)

    def _asked(self, rows: Sequence[Row]) -> Asked:
        depth, length, parts = rows[0].depth, self._length(rows), []
        for index, row in enumerate(rows):
            for number, path in row.paths.items():
                where, targets, goes = self._wanted(number, depth, len(self.queries[number].ids))
                parts.append((index * length + path[where - depth], targets, goes))
        return Asked.of(parts)

    def _wanted(self, number: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What a query asks from `start` to `stop`: at which positions, the targets, and where its answers go."""
        query = self.queries[number]
        first = len(query.ids) - len(query.targets)
        where = np.arange(max(start, first), max(start, first, min(stop, len(query.ids))))
        return where, np.asarray(query.targets, dtype=np.int64)[where - first], self.starts[number] + where - first

    def _mask(self, rows: Sequence[Row], depth: int, length: int) -> Tensor:
        """(rows, 1, length, depth + length), to be added to attention scores."""
        visible = np.tile(np.eye(length, dtype=bool), (len(rows), 1, 1))
        for index, row in enumerate(rows):
            visible[index, : len(row.ids), : len(row.ids)] = row.visible()
        dtype = self.head.model.dtype
        hidden = self._here(~np.pad(visible, ((0, 0), (0, 0), (depth, 0)), constant_values=True))
        return torch.zeros(hidden.shape, dtype=dtype, device=self.device).masked_fill(hidden, torch.finfo(dtype).min)[
            :, None
        ]

    def _here(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _run(self, context: Context, cache: Cache | None, asked: Asked, **kwargs: Tensor) -> States:
        """Run a batch; `kwargs` are the trunk's own."""
        self.fork.begin(context)
        if self.last_block is not None:
            self.last_block.ask(asked.places, context.input_ids.shape)
        if self.watch is not None:
            queries = np.searchsorted(self.starts, asked.goes, side="right") - 1
            self.watch.begin(context, asked.places, asked.which, queries)
        copies = self.fork.copies
        kwargs = {name: value.repeat(copies, *[1] * (value.ndim - 1)) for name, value in kwargs.items()}
        ids = context.input_ids.repeat(copies, 1)
        out: Any = self.head.trunk(input_ids=ids, past_key_values=cache, use_cache=cache is not None, **kwargs)
        hidden = self.fork.in_order(out.last_hidden_state).flatten(1, 2)
        if self.watch is not None:
            self.watch.commit()
        # The last block may be on another device than the first.
        return States(hidden[:, torch.from_numpy(asked.places).to(hidden.device)], asked)

    def _answer(self, batches: Sequence[States]) -> None:
        """Write what is asked of batches into the tables."""
        if not batches:
            return
        hidden = torch.cat([batch.hidden for batch in batches], dim=1)
        before = np.cumsum([0, *(batch.hidden.shape[1] for batch in batches)])
        which = np.concatenate([batch.asked.which + start for batch, start in zip(batches, before[:-1], strict=True)])
        targets, goes = (np.concatenate([getattr(b.asked, name) for b in batches]) for name in ("targets", "goes"))
        start = 0
        while start < hidden.shape[1]:
            piece = slice(*np.searchsorted(which, [start, start + self.places]))
            at, target = self._here(which[piece] - start), self._here(targets[piece])
            try:
                compared = self._compare(hidden[:, start : start + self.places], at, target)
            except Exception as error:
                if self.places == 1 or not should_reduce_batch_size(error):
                    raise
                self.places //= 2
                logger.warning("Out of memory: continuing with logits at %d positions.", self.places)
                continue
            for name, values in compared.items():
                self.tables[name][:, goes[piece]] = values.float().cpu().numpy()
            start += self.places

    def _compare(self, states: Tensor, at: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Columns of each table from hidden states (1 + variants, positions, width)."""
        columns: dict[str, list[Tensor]] = {name: [] for name in self.tables}
        baseline = None
        for number, of_model in enumerate(states):
            predicted = Predicted(self.head(of_model).to(self.dtype).log_softmax(-1), baseline)
            baseline = baseline or predicted
            at, target = at.to(predicted.logprob.device), target.to(predicted.logprob.device)
            columns["logprob"].append(predicted.logprob[at, target])
            if "greedy" in columns:
                columns["greedy"].append(predicted.likeliest[at] == target)
            for name, measure in self.measures.items() if 1 <= number <= self.compared else ():
                columns[name].append(measure(predicted)[at])
        return {name: torch.stack(column) for name, column in columns.items() if column}
