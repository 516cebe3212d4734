"""The gradient of a question's margin with respect to what dictionaries put in the place of activations.

Gradient times activation as in Marks et al. 2024, "Sparse Feature Circuits", arXiv:2403.19647, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_lm_eval.scoring.attention_kernels import attention_without_plans
from sae_lm_eval.scoring.lm_head import Head
from sae_lm_eval.scoring.memory import in_pieces
from sae_lm_eval.scoring.request import Query
from sae_lm_eval.scoring.scorer import CAPACITY
from sae_lm_eval.scoring.spliced_model import SplicedModel
from sae_lm_eval.splicing.attach import Attachment
from sae_lm_eval.splicing.splice import Context, Variant


@dataclass(frozen=True)
class Contrast:
    """The likeliest right answer to a document's question, and the likeliest wrong one: their log-probabilities make
    its margin. `document` is its number; `right_choices` are the numbers of its right ones among all choices.
    """

    document: int
    right: Query
    wrong: Query
    right_choices: tuple[int, ...] = ()


@dataclass(frozen=True)
class SiteGradient:
    """At one splice, of one text: what the dictionary reads, its error y - new, and the margin's gradient (nats) with
    respect to what it puts there. The gradient is 0 where it is not spliced in.
    """

    read: Float[Tensor, "positions d_in"]
    error: Float[Tensor, "positions d_out"]
    gradient: Float[Tensor, "positions d_out"]

    @property
    def error_attribution(self) -> Float[Tensor, " positions"]:
        """By how much the margin (nats) rises to first order when the error of a position is put back."""
        return (self.error.float() * self.gradient.float()).sum(-1)


@dataclass(frozen=True)
class TextGradient:
    """Of a document's text, the part of the margin's gradient that goes by it; `sites` are those of the variant's
    splices, in their order. Of texts that hold both answers' prompts `answers` are "right" and "wrong".
    """

    document: int
    ids: Sequence[int]
    answers: tuple[str, ...]
    sites: tuple[SiteGradient, ...]


@dataclass
class _Text:
    """What is read at once: the targets that its last positions predict, with the sign that they have in the margin."""

    document: int
    ids: Sequence[int]
    terms: list[tuple[int, Sequence[int]]] = field(default_factory=list)

    @property
    def answers(self) -> tuple[str, ...]:
        return tuple("right" if sign > 0 else "wrong" for sign, _ in self.terms)


class _Shift:
    """Stands for a part of the error that is put back, which is 0: the margin is differentiated by it."""

    def __init__(self) -> None:
        self.read = self.error = self.shift = torch.zeros(0)

    def __call__(self, x: Tensor, _y: Tensor, error: Tensor) -> Tensor:
        self.read, self.error = x.detach(), error.detach()
        self.shift = torch.zeros_like(self.error, requires_grad=True)
        return self.shift


def margin_gradients(
    spliced: SplicedModel, contrasts: Sequence[Contrast], deliver: Callable[[TextGradient], object]
) -> None:
    """Give `deliver` each text of each document, one or two of them, once a backward pass went through the variant.

    Texts run without a shared prefix. Raises `ValueError` where the model's head cannot be told from the rest.
    """
    with spliced.evaluation(), attention_without_plans(), spliced.loaded.autocast(), ExitStack() as scope:
        # Both run the model, which no hook of the variant's may see.
        head, uneven = Head(spliced.model), spliced.scorer([spliced.variant]).layout.uneven
        variant, shifts = _shifted(spliced.variant)
        parts = [spliced.model, *(splice.dictionary.module for splice in variant.splices)]
        scope.enter_context(_without_weights(parts))
        attachment = Attachment(spliced.model, variant, scope)
        passing = _Pass(head, attachment, shifts, spliced.loaded.settings.softmax_dtype)
        texts = sorted(_texts(contrasts), key=lambda text: -len(text.ids))
        size = _Size(spliced.loaded.settings.rows * CAPACITY, uneven)
        for batch in in_pieces(texts, size, passing, size.shrink):
            for gradient in batch:
                deliver(gradient)


def _texts(contrasts: Sequence[Contrast]) -> Iterator[_Text]:
    """The texts of each document, of which equal ones are read once."""
    for contrast in contrasts:
        texts: dict[tuple[int, ...], _Text] = {}
        for sign, query in ((1, contrast.right), (-1, contrast.wrong)):
            text = texts.setdefault(tuple(query.ids), _Text(contrast.document, query.ids))
            text.terms.append((sign, query.targets))
        yield from texts.values()


def _shifted(variant: Variant) -> tuple[Variant, list[_Shift]]:
    shifts = [_Shift() for _ in variant.splices]
    splices = zip(variant.splices, shifts, strict=True)
    return replace(variant, splices=tuple(replace(splice, restored=shift) for splice, shift in splices)), shifts


@contextmanager
def _without_weights(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Inside the scope no weight is differentiated by, so that no graph is kept below the first splice."""
    weights = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


@dataclass
class _Size:
    """How many texts run at once: up to `tokens`, padding included; those of one length unless `uneven`."""

    tokens: int
    uneven: bool

    def __call__(self, texts: Sequence[_Text]) -> int:
        longest = len(texts[0].ids)
        count = max(1, min(len(texts), self.tokens // longest))
        return count if self.uneven else sum(len(text.ids) == longest for text in texts[:count])

    def shrink(self, texts: Sequence[_Text], count: int) -> None:
        self.tokens = count * len(texts[0].ids)


class _Pass:
    """One forward and one backward pass over some texts, the longest first."""

    def __init__(self, head: Head, attachment: Attachment, shifts: Sequence[_Shift], dtype: torch.dtype | None) -> None:
        self.head, self.attachment, self.shifts = head, attachment, shifts
        self.dtype = dtype or torch.float32
        self.device = next(head.model.parameters()).device

    def __call__(self, texts: Sequence[_Text]) -> list[TextGradient]:
        lengths = [len(text.ids) for text in texts]
        width = max(lengths)
        # A causal model looks at no padding that comes later.
        ids = np.array([[*text.ids, *[text.ids[-1]] * (width - len(text.ids))] for text in texts])
        real = np.arange(width) < np.array(lengths)[:, None]
        here = torch.from_numpy(ids).to(self.device)
        positions = torch.arange(width, device=self.device).expand_as(here)
        self.attachment.begin(Context(here, positions, None, real=torch.from_numpy(real).to(self.device)))
        if self.attachment.variant.reads_clean:
            with self.attachment.recording(), torch.no_grad():
                self.head.trunk(input_ids=here, use_cache=False)
        with torch.enable_grad():
            hidden = self.head.trunk(input_ids=here, use_cache=False).last_hidden_state
            margins = self._margins(hidden, texts)
            leaves = [shift.shift for shift in self.shifts]
            gradients = torch.autograd.grad(margins, leaves, allow_unused=True, materialize_grads=True)
        out = []
        for row, text in enumerate(texts):
            own = slice(0, lengths[row])
            sites = tuple(
                SiteGradient(shift.read[row, own], shift.error[row, own], gradient[row, own])
                for shift, gradient in zip(self.shifts, gradients, strict=True)
            )
            out.append(TextGradient(text.document, text.ids, text.answers, sites))
        return out

    def _margins(self, hidden: Float[Tensor, "texts positions width"], texts: Sequence[_Text]) -> Tensor:
        """The sum of all texts' parts of their margins, which do not depend on each other."""
        places: dict[tuple[int, int], int] = {}
        terms: list[tuple[int, int, int]] = []
        for row, text in enumerate(texts):
            for sign, targets in text.terms:
                for at, target in enumerate(targets, start=len(text.ids) - len(targets)):
                    terms.append((places.setdefault((row, at), len(places)), target, sign))
        rows, at = torch.tensor([*places], device=hidden.device).T
        logprob = self.head(hidden[rows, at]).to(self.dtype).log_softmax(-1)
        place, target, sign = torch.tensor(terms, device=logprob.device).T
        return (logprob[place, target] * sign).sum()
