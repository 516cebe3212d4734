"""What is asked about where a variant's errors cost what it lost; told before torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sae_lm_eval.attribution.classes import (
    COMPONENTS,
    DEFAULT,
    DIRECTIONS,
    NORMS,
    NORMS_OF,
    PARTS,
    PATCHES,
    SITES,
    VARIANTS_AT_ONCE,
    Labels,
    division,
    whole_of,
)
from sae_lm_eval.attribution.token_kinds import Words
from sae_lm_eval.comparison.restored import MISSED
from sae_lm_eval.dictionaries.latent_edits import AFTER_HEADER, LAST, LatentEdits
from sae_lm_eval.errors import UserError

if TYPE_CHECKING:
    from sae_lm_eval.runs.plan import Plan

BARE = ("segment", "kind", "distance", SITES, *PARTS)  # divisions without a value
FITTED_ON = 4096  # requests of all tasks, whose errors directions are fitted on
MOST_PARTS = 8  # parts of the tasks whose latents are told, besides all of them together
MOST_LATENTS = 100
MOST_TOKENS = 256  # of a question, each of which is a variant; with more, the gradient tells what each is worth
WORST = "worst"


@dataclass(frozen=True)
class Inquiry:
    """`by` names divisions; with `held_out` half of the documents serve what is fitted, and the others are scored.

    `latents` is how many are told of all tasks and of each part of them, 0 being none. `questions` are shown token by
    token: `DOC_ID`, `TASK:DOC_ID`, or `WORST`, those whose margins lost and gained most.
    """

    by: tuple[str, ...] = DEFAULT
    held_out: bool = False
    level: float = 0.95
    latents: int = 0
    questions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        labels = Labels([division(text, Words(())) for text in self.of_tokens])
        others = [text.partition(":")[0] for text in self.by if text not in self.of_tokens]
        names = [*(split.name for split in labels.divisions), *others, *({SITES} - {*others})]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"--by names '{twice}' twice.")
        if rest := next((text for text in self.by if text.partition(":")[0] in BARE and ":" in text), None):
            raise UserError(f"--by {rest}: {rest.partition(':')[0]} takes nothing behind it.")
        _ = self.parts
        if not 0 <= self.latents <= MOST_LATENTS:
            raise UserError(
                f"--latents {self.latents}: it takes a number from 1 to {MOST_LATENTS}, as in --latents 10."
            )
        for text in self.questions:
            if text != WORST and not text.rpartition(":")[2].isdecimal():
                raise UserError(
                    f"--question {text} is no question: give a document's number, as in --question 12 or "
                    f"--question arc_easy:12, or --question {WORST}."
                )

    def check_edits(self, name: str, edits: LatentEdits) -> None:
        """Raise `UserError` where the edits of the variant `name` hold at positions or in heads that are in the way."""
        if edits.looks_at_prompt:
            raise UserError(
                f"where divides the positions of {name} by itself: leave out latent_positions={LAST} and "
                f"{AFTER_HEADER}."
            )
        if self.latents and edits.where:
            raise UserError(
                f"--latents ablates latents wherever a dictionary is spliced in: leave out "
                f"{' and '.join(edits.where)} of {name}, or --latents."
            )

    @property
    def of_tokens(self) -> list[str]:
        """The divisions that tokens tell."""
        return [text for text in self.by if text.partition(":")[0] not in (NORMS, SITES, *PARTS)]

    @property
    def of_directions(self) -> tuple[str, ...]:
        """The divisions of the error by directions that are fitted."""
        return tuple(text for text in self.by if text in (DIRECTIONS, COMPONENTS))

    @property
    def fits(self) -> bool:
        """Whether something is fitted that must not see the documents that are scored."""
        return self.held_out or bool(self.of_directions)

    def most_variants(self, sites: int) -> int:
        """How many patched variants there are at most, of a variant with so many dictionaries."""
        counts = [len(division(text, Words(())).classes) for text in self.of_tokens]
        counts += [self.parts, sites if sites > 1 else 0, *(PARTS[text] for text in self.by if text in PARTS)]
        return PATCHES * sum(counts)

    def plan(self, plan: Plan) -> list[str]:
        """Of each variant of a plan what its patches cost at most, in forward passes over the tasks."""
        out = []
        for variant in plan.variants:
            name, cost = variant.request.name, variant.cost
            count = self.most_variants(len(variant.sites))
            if cost is None:
                out.append(f"{name}: up to {count} patched variants. Their cost is not known: {variant.why}.")
                continue
            groups = -(-(count + 1) // VARIANTS_AT_ONCE)
            out.append(
                f"{name}: at most {groups + (count + 1) * cost:.1f} forward passes over the tasks. The variant and up "
                f"to {count} patched ones cost {cost:.2f} of a pass each. They run in groups of {VARIANTS_AT_ONCE}, "
                f"and each group costs one pass of the baseline.{self._fitted}{self._further(cost)}"
            )
        return out

    def _further(self, cost: float) -> str:
        """What runs after the patches do."""
        latents = (
            " For its latents the right answer and the best wrong one of each question are read once more, with a "
            f"backward pass. Then up to {self.latents * (1 + MOST_PARTS)} latents are ablated, each at {cost:.2f} of a "
            "pass and an encoding of its own."
        )
        questions = f" Each question that is shown is scored once for each of its tokens, up to {MOST_TOKENS}."
        return f"{latents if self.latents else ''}{questions if self.questions else ''}"

    @property
    def _fitted(self) -> str:
        """What runs before the patches do."""
        norms = [f"up to {NORMS_OF} requests to measure norms"] if self.parts else []
        norms += [f"up to {NORMS_OF} requests to measure what latents below the threshold explain"] * (
            MISSED in self.by
        )
        directions = [f"up to {FITTED_ON:,} requests to fit directions"] if self.of_directions else []
        return f" Before that, it reads {' and '.join([*norms, *directions])}." if norms or directions else ""

    @property
    def parts(self) -> int:
        """Into how many parts the norm of the error divides the positions; 0 where it is not asked for."""
        of_norms = [text for text in self.by if text.partition(":")[0] == NORMS]
        return whole_of(of_norms[0].partition(":")[2] or "4", f"--by {of_norms[0]}") if of_norms else 0
