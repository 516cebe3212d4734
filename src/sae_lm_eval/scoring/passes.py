"""The forked pass of a model and its variants, and a pass of its own for each variant that cannot be in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_lm_eval.scoring.forked_pass import Fork, Point
from sae_lm_eval.splicing.attach import Attachment, SpliceWatch
from sae_lm_eval.splicing.module_edits import Rows, attach_edits
from sae_lm_eval.splicing.splice import Context, Variant


class Passes:
    """What runs a batch as the untouched model and as each of `variants`, in a scope; see `Fork`.

    `count` passes each have a cache of their own, the first of which is the forked one's.
    """

    def __init__(
        self, model: nn.Module, variants: Sequence[Variant], scope: ExitStack, point: Point | None = None
    ) -> None:
        self.model, self.variants = model, tuple(variants)
        self._apart = [number for number, variant in enumerate(variants) if variant.is_apart]
        self.fork = Fork(model, [variant for variant in variants if not variant.is_apart], scope, point)
        self.models, self.count = 1 + len(self.variants), 1 + len(self._apart)

    def run(
        self, context: Context, watch: SpliceWatch | None, trunk: Callable[[int, int], Float[Tensor, "all ..."]]
    ) -> Float[Tensor, "models rows positions width"]:
        """The last hidden states, the baseline's first. `watch` is called at each splice of the first variant.

        `trunk` is given how many copies of the context's rows it is to be called with, and the number of the pass.
        """
        self.fork.begin(context, None if 0 in self._apart else watch)
        hidden = self.fork.in_order(trunk(self.fork.copies, 0))
        if not self._apart:
            return hidden
        model_states = [*hidden]
        for place, number in enumerate(self._apart, start=1):
            with self.fork.idle(), self._alone(number, context, watch if number == 0 else None):
                model_states.insert(1 + number, trunk(1, place))
        return torch.stack([states.to(hidden.device) for states in model_states])

    @contextmanager
    def _alone(self, number: int, context: Context, watch: SpliceWatch | None) -> Iterator[None]:
        with ExitStack() as scope:
            attachment = Attachment(self.model, self.variants[number], scope)
            attachment.begin(replace(context, reconstructed=None), watch)
            yield

    @contextmanager
    def head_of(self, model: int) -> Iterator[None]:
        """Inside the scope, what makes logits is that of a model by its number, 0 being the baseline."""
        with ExitStack() as scope:
            if model and (variant := self.variants[model - 1]).is_apart:
                attach_edits(self.model, variant.edits, Rows(), scope)
            yield
