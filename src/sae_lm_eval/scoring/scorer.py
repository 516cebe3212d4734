"""Token sequences -> log-probabilities and divergences of the baseline and its variants, where they are asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32

from sae_lm_eval.errors import UserError
from sae_lm_eval.files.logs import logger_of
from sae_lm_eval.runtime.host_memory import raise_if_out_of_memory
from sae_lm_eval.scoring.attention_kernels import attention_without_plans
from sae_lm_eval.scoring.executor import Executor
from sae_lm_eval.scoring.forked_pass import START
from sae_lm_eval.scoring.last_block import LastBlock, Paths, paths_of_last_block
from sae_lm_eval.scoring.lengths import Lengths
from sae_lm_eval.scoring.lm_head import Head
from sae_lm_eval.scoring.packing import pack
from sae_lm_eval.scoring.passes import Passes
from sae_lm_eval.scoring.request import Query, ScoreRequest, Scores
from sae_lm_eval.scoring.rounding import is_rounding, rounded_otherwise
from sae_lm_eval.splicing.attach import attached
from sae_lm_eval.splicing.splice import Variant

logger = logger_of(__name__)

CAPACITY = 256  # tokens of a row that several sequences share

# How far a shared score may be from the plain one, in nats, whatever the model; beyond it, as `is_rounding` says. On an
# H100 a random model of Gemma-2-2B's size with top-k dictionaries is 0.04 nats apart in bfloat16 at the median.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 0.005, torch.bfloat16: 0.02}


@dataclass(frozen=True)
class Layout:
    """What is shared between a model, its variants and their sequences; an architecture may not bear all of it."""

    blocks: bool = True  # those below a variant's first site
    prefixes: bool = True
    rows: bool = True
    last_block: bool = True  # its MLP, queries and output projection run where targets are predicted alone
    uneven: bool = True  # rows of several lengths in a batch

    def __str__(self) -> str:
        names = [name for name, is_used in vars(self).items() if is_used and name not in ("last_block", "uneven")]
        shared = f"sharing {' and '.join(names)}" if names else "sharing nothing"
        return shared if self.uneven else f"{shared}, sequences of one length at a time"


LAYOUTS = (
    Layout(),
    Layout(last_block=False),
    Layout(rows=False, last_block=False),
    Layout(prefixes=False, rows=False, last_block=False),
    Layout(blocks=False, last_block=False),
    Layout(blocks=False, rows=False, last_block=False),
    Layout(blocks=False, prefixes=False, rows=False, last_block=False),
    Layout(prefixes=False, rows=False, last_block=False, uneven=False),
    Layout(blocks=False, prefixes=False, rows=False, last_block=False, uneven=False),
)


@dataclass(frozen=True)
class LayoutTrial:
    """Queries by which a layout is tried: several lengths, behind a common stem."""

    of_length: list[list[Query]]

    @classmethod
    def for_vocabulary(cls, vocabulary: int) -> LayoutTrial:
        stem, *rest = np.random.default_rng(0).integers(vocabulary, size=(10, 16)).tolist()
        # Behind the stem, of which a prefix is made, a row of 32 has room for three branches, and most is not asked.
        return cls([[Query(stem + row[: 8 + i], row[:2]) for row in rest[i::3]] for i in range(3)])

    @cached_property
    def queries(self) -> list[Query]:
        return [query for same in self.of_length for query in same]


class Scorer:
    """Scores queries by a model and its variants.

    Args:
        model: a causal language model of transformers.
        rows: of `CAPACITY` tokens that are run at once; halved where memory does not suffice.
        limit: the most tokens in one row, the model's context.
        dtype: of the log-softmax.
        layout: what is shared, where it was found before; by default it is found when it is needed.

    Raises:
        ValueError: where the model's head cannot be told from the rest.
    """

    def __init__(
        self,
        model: Any,
        variants: Sequence[Variant],
        *,
        rows: int,
        limit: int,
        dtype: torch.dtype = torch.float32,
        layout: Layout | None = None,
    ):
        self.model, self.variants = model, tuple(variants)
        self.rows, self.dtype, self._longest = rows, dtype, limit
        self.limit = min([limit, *attention_windows(model.config.get_text_config())])
        self.head = Head(model)
        self._found = layout

    @cached_property
    def _last_block_paths(self) -> Paths:
        return paths_of_last_block(self.model, self.variants)

    @cached_property
    def _lengths(self) -> Lengths:
        return Lengths(self.model, self.head.trunk, self._longest)

    @cached_property
    def _whole(self) -> bool:
        """Whether a sequence is only itself when it is run whole, beside none that is longer."""
        return any(variant.sequential for variant in self.variants) or self._lengths.matter()

    @cached_property
    @attention_without_plans()
    def layout(self) -> Layout:
        """The most that may be shared without changing a score: by what is known to forbid it, and by trying."""
        if self._found is not None:
            return self._found
        allowed = [layout for layout in LAYOUTS if not (self._whole and layout.uneven)]
        with self._lengths.from_nothing():
            layout = next((layout for layout in allowed if self._agrees(layout)), None)
        if layout is None:
            raise ValueError(
                f"{type(self.model).__name__} scores sequences of different lengths differently when they share a batch"
            )
        if layout not in LAYOUTS[:2]:
            logger.warning("%s is scored %s, which is slower.", type(self.model).__name__, layout)
        return layout

    @torch.no_grad()
    @attention_without_plans()
    def score(self, request: ScoreRequest, deliver: Callable[[Mapping[int, Scores]], object]) -> None:
        """Score each query by the baseline and every variant.

        `deliver` is given the scores of some queries at a time, by number, in no order.

        Raises `ValueError` where the model bears no layout, and what torch raises where memory does not suffice for a
        single row.
        """
        layout = self.layout  # found before it is needed: a trial runs the model in a scope of its own
        self.rows = self._score(request, deliver, layout, self.rows, CAPACITY)

    def _score(
        self,
        request: ScoreRequest,
        deliver: Callable[[Mapping[int, Scores]], object],
        layout: Layout,
        rows: int,
        capacity: int,
    ) -> int:
        """How many rows of `capacity` tokens memory sufficed for at once."""
        root = pack(request.codes(), capacity=capacity, limit=self.limit, prefixes=layout.prefixes, trees=layout.rows)
        with ExitStack() as scope:
            scope.enter_context(self._lengths.from_nothing())
            passes = Passes(self.model, self.variants, scope, None if layout.blocks else START)
            last_block = LastBlock(self.model, self._last_block_paths, scope) if layout.last_block else None
            executor = Executor(
                passes,
                self.head,
                request,
                deliver,
                tokens=rows * capacity,
                dtype=self.dtype,
                uneven=layout.uneven,
                last_block=last_block,
            )
            executor.run(root)
        return max(1, executor.tokens // capacity)

    @cached_property
    def _trial(self) -> LayoutTrial:
        return LayoutTrial.for_vocabulary(self.model.config.get_text_config().vocab_size)

    @cached_property
    @torch.no_grad()
    def _in_batches(self) -> Float32[np.ndarray, "queries models targets"]:
        """What the model gives the trial's queries, those of one length in a batch."""
        return np.concatenate([self._plainly(same) for same in self._trial.of_length])

    @cached_property
    @torch.no_grad()
    def _moved(self) -> Float[np.ndarray, "queries models targets"]:
        """How far rounding moves that."""
        with rounded_otherwise(self.model):
            return np.abs(np.concatenate([self._plainly(same) for same in self._trial.of_length]) - self._in_batches)

    @torch.no_grad()
    def _agrees(self, layout: Layout) -> bool:
        """Whether short sequences get the log-probabilities that the model gives them without padding.

        They may be as far from these as rounding moves them, and not much further.
        """
        scores: dict[int, Scores] = {}
        try:
            request = ScoreRequest(self._trial.queries, measures=(), greedy=False)
            self._score(request, scores.update, layout, max(2, self.rows), 32)
        except UserError:
            raise
        except Exception as error:  # whatever an architecture does not bear; it gets the next layout
            raise_if_out_of_memory(error)
            logger.debug("%s cannot be scored %s: %r", type(self.model).__name__, layout, error)
            return False
        shared = np.stack([scores[i].logprob for i in range(len(self._trial.queries))])
        off = np.abs(shared - self._in_batches)
        return not np.isnan(off).any() and is_rounding(off, TOLERANCE[self.model.dtype], lambda: self._moved)

    def _plainly(self, queries: Sequence[Query]) -> Float32[np.ndarray, "queries models targets"]:
        """Log-probabilities of sequences of one length, each variant by itself."""
        device = next(self.model.parameters()).device
        ids = torch.tensor([list(query.ids) for query in queries], device=device)
        targets = torch.tensor([list(query.targets) for query in queries])[..., None]
        out = []
        for variant in (None, *self.variants):
            with attached(self.model, variant) if variant else contextlib.nullcontext():
                logits = self.model(input_ids=ids, use_cache=False).logits[:, -targets.shape[1] :]
            logprob = logits.to(self.dtype).log_softmax(-1)
            out.append(logprob.gather(-1, targets.to(logits.device))[..., 0])
        return torch.stack(out, dim=1).float().cpu().numpy()


def attention_windows(config: Any) -> list[int]:
    """How far the model's layers look back, where some of them do not look at everything."""
    names = ("sliding_window", "window_size", "attention_chunk_size")
    return [size for name in names if isinstance(size := getattr(config, name, None), int)]
