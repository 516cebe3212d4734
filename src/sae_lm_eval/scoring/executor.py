"""Running a plan: its prefixes and rows through the forked model, and the head where there are targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from transformers.cache_utils import Cache

from sae_lm_eval.files.logs import logger_of
from sae_lm_eval.scoring import prefix_cache
from sae_lm_eval.scoring.batches import Batch, Batches
from sae_lm_eval.scoring.divergences import MEASURES, Predicted
from sae_lm_eval.scoring.last_block import LastBlock
from sae_lm_eval.scoring.lm_head import Head
from sae_lm_eval.scoring.memory import in_pieces
from sae_lm_eval.scoring.packing import PackedRow, Prefix
from sae_lm_eval.scoring.passes import Passes
from sae_lm_eval.scoring.request import ScoreRequest, Scores, TargetIndex
from sae_lm_eval.scoring.score_tables import ScoreTables
from sae_lm_eval.splicing.splice import Context

logger = logger_of(__name__)
Caches = Sequence[Cache]  # of each pass its own

# Logits held at a time: on a CPU as many as its cache makes quick work of, elsewhere as many as keep it busy.
LOGITS_ON_CPU, LOGITS = 2**22, 2**26


class States(NamedTuple):
    """A batch before the head, at the positions that predict targets; the baseline is the first model."""

    hidden: Float[Tensor, "models positions width"]
    targets: TargetIndex


class Executor:
    """Runs one request in the scope of its passes.

    The order in time: a prefix runs before all that begins with it, and its keys and values stay until the last of
    these has run. Of rows behind the same prefix, batch after batch runs through the trunk until `batches.ENOUGH`
    positions predict targets; then the head runs for these at once, and `deliver` is given the scores of the queries
    that are complete, by number.

    `tokens` is how many a batch may hold; it is halved where memory does not suffice for as many.
    """

    def __init__(
        self,
        passes: Passes,
        head: Head,
        request: ScoreRequest,
        deliver: Callable[[Mapping[int, Scores]], object],
        *,
        tokens: int,
        dtype: torch.dtype,
        uneven: bool = True,
        last_block: LastBlock | None = None,
    ) -> None:
        self.passes, self.head, self.request, self.deliver = passes, head, request, deliver
        self.dtype, self.last_block = dtype, last_block
        self.answered = frozenset(request.answered)
        self.tables = ScoreTables(request, passes.models)
        self.measures = {name: MEASURES[name] for name in request.measures}
        config = head.model.config.get_text_config()
        heads = getattr(config, "num_attention_heads", None)
        copies, starts = passes.fork.copies, self.tables.starts
        self.batches = Batches(request.queries, starts, tokens=tokens, copies=copies, heads=heads, uneven=uneven)
        self.device = next(head.model.parameters()).device
        logits = LOGITS_ON_CPU if self.device.type == "cpu" else LOGITS
        self.positions_at_once = max(1, logits // config.vocab_size)  # that the head runs for

    @property
    def tokens(self) -> int:
        """How many tokens a batch may hold, as far as memory has shown until now."""
        return self.batches.tokens

    def run(self, node: Prefix, caches: Caches | None = None) -> None:
        """Run everything behind a prefix, whose keys and values are in `caches`, None being those of none."""
        rows = sorted(node.rows, key=lambda row: -len(row.ids))
        for branches in (True, False):  # not in one batch: a row without them may be longer than a window looks back
            self._run_rows([row for row in rows if row.branches == branches], caches)
        for longer in node.longer:
            if not self.answered.issuperset(longer.members):
                self.run(longer, self._run_prefix(longer, caches))

    def _run_rows(self, rows: Sequence[PackedRow], caches: Caches | None) -> None:
        while rows:
            count = self.batches.rows_for_head(rows)
            numbers = [number for row in rows[:count] for number in row.paths]
            if not self.answered.issuperset(numbers):
                run, sizes = partial(self._run_batch_of_rows, caches), self.batches
                states = [*in_pieces(rows[:count], sizes.rows_at_once, run, sizes.shrink)]
                self._score([each for each in states if each is not None])
                self.deliver({number: self.tables.scores(number) for number in numbers})
            rows = rows[count:]

    def _run_batch_of_rows(self, caches: Caches | None, rows: Sequence[PackedRow]) -> States | None:
        batch = self.batches.of_rows(rows)
        if batch is None:
            return None
        return self._run_batch(batch, None if caches is None else [*map(prefix_cache.shared, caches)])

    def _run_prefix(self, node: Prefix, caches: Caches | None) -> Caches:
        """Its keys and values behind those of the shorter prefix in `caches`; targets inside it are scored."""
        if caches is None:
            caches = [prefix_cache.empty() for _ in range(self.passes.count)]
        else:
            caches = [*map(prefix_cache.extended, caches)]
        self._score([self._run_batch(self.batches.of_prefix(node), caches)])
        return caches

    def _run_batch(self, batch: Batch, caches: Caches | None) -> States:
        """One forked pass through the trunk, and those of the variants that are apart.

        All that looks into a pass is told of the batch before it: the fork, which appends the variants' rows, the
        last block, and the watch.
        """
        targets, watch = batch.targets, self.request.watch
        labels, ids = np.divmod(batch.ids, self.request.radix) if self.request.radix else (None, batch.ids)
        context = Context(self._here(ids), self._here(batch.positions), None)
        context.labels = None if labels is None else self._here(labels)
        context.real = self._here(batch.real)
        kwargs: dict[str, Any] = {}
        if batch.visible is not None:
            kwargs = {"position_ids": context.positions, "attention_mask": self._additive_mask(batch.visible)}
        with ExitStack() as scope:
            record = None
            if watch is not None:
                record = scope.enter_context(watch.batch(context, targets, self.tables.queries(targets.columns)))

            def trunk(copies: int, number: int) -> Tensor:
                if self.last_block is not None:
                    self.last_block.begin(targets.positions, context.input_ids.shape)
                own = {name: value.repeat(copies, *[1] * (value.ndim - 1)) for name, value in kwargs.items()}
                ids, cache = context.input_ids.repeat(copies, 1), None if caches is None else caches[number]
                out: Any = self.head.trunk(input_ids=ids, past_key_values=cache, use_cache=cache is not None, **own)
                return out.last_hidden_state

            hidden = self.passes.run(context, record, trunk).flatten(1, 2)
        # The last block may be on another device than the first.
        return States(hidden[:, torch.from_numpy(targets.positions).to(hidden.device)], targets)

    def _additive_mask(self, visible: Bool[np.ndarray, "rows length all"]) -> Float[Tensor, "rows 1 length all"]:
        """To be added to attention scores."""
        dtype, hidden = self.head.model.dtype, self._here(~visible)
        mask = torch.zeros(hidden.shape, dtype=dtype, device=self.device)
        return mask.masked_fill(hidden, torch.finfo(dtype).min)[:, None]

    def _here(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _score(self, batches: Sequence[States]) -> None:
        """Run the head for batches, in pieces of positions, and write the targets' scores into the tables."""
        if not batches:
            return
        hidden = torch.cat([batch.hidden for batch in batches], dim=1)
        starts = np.cumsum([0, *(batch.hidden.shape[1] for batch in batches)])[:-1]
        place = np.concatenate([batch.targets.place + start for batch, start in zip(batches, starts, strict=True)])
        tokens = np.concatenate([batch.targets.tokens for batch in batches])
        columns = np.concatenate([batch.targets.columns for batch in batches])

        def score_piece(positions: range) -> None:
            piece = slice(*np.searchsorted(place, [positions.start, positions.stop]))
            at, target = self._here(place[piece] - positions.start), self._here(tokens[piece])
            scores = self._scores(hidden[:, positions.start : positions.stop], at, target)
            values = {name: scored.float().cpu().numpy() for name, scored in scores.items()}
            self.tables.write(columns[piece], values)

        for _ in in_pieces(range(hidden.shape[1]), self._positions_at_once, score_piece, self._shrink):
            pass

    def _positions_at_once(self, positions: range) -> int:
        return min(self.positions_at_once, len(positions))

    def _shrink(self, _positions: range, count: int) -> None:
        self.positions_at_once = count
        logger.warning("Out of memory: continuing with logits at %d positions.", count)

    def _scores(
        self,
        hidden: Float[Tensor, "models positions width"],
        place: Int[Tensor, " targets"],
        target: Int[Tensor, " targets"],
    ) -> dict[str, Shaped[Tensor, "_ targets"]]:
        """What the tables take: `place` indexes positions, `target` the vocabulary."""
        columns: dict[str, list[Tensor]] = {name: [] for name in self.tables.tables}
        baseline = None
        for number, of_model in enumerate(hidden):
            with self.passes.head_of(number):
                logits = self.head(of_model)
            predicted = Predicted(logits.to(self.dtype).log_softmax(-1), baseline)
            baseline = baseline or predicted
            place, target = place.to(predicted.logprob.device), target.to(predicted.logprob.device)
            columns["logprob"].append(predicted.logprob[place, target])
            if "greedy" in columns:
                columns["greedy"].append(predicted.likeliest[place] == target)
            for name, measure in self.measures.items() if 1 <= number <= self.tables.compared else ():
                columns[name].append(measure(predicted)[place])
        return {name: torch.stack(column) for name, column in columns.items() if column}
