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
from sae_lm_eval.errors import UserError

if TYPE_CHECKING:
    from sae_lm_eval.runs.plan import Plan

BARE = ("segment", "kind", "distance", SITES, DIRECTIONS, COMPONENTS)  # divisions without a value
FITTED_ON = 4096  # requests of all tasks, whose errors directions are fitted on
FITTED = f" Before, the variant runs on up to {NORMS_OF} requests for norms, and on up to {FITTED_ON:,} for directions."


@dataclass(frozen=True)
class Inquiry:
    """`by` names divisions; with `held_out` half of the documents serve what is fitted, and the others are scored."""

    by: tuple[str, ...] = DEFAULT
    held_out: bool = False
    level: float = 0.95

    def __post_init__(self) -> None:
        labels = Labels([division(text, Words(())) for text in self.of_tokens])
        others = [text.partition(":")[0] for text in self.by if text not in self.of_tokens]
        names = [*(one.name for one in labels.divisions), *others, *({SITES} - {*others})]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"--by names '{twice}' twice.")
        if rest := next((text for text in self.by if text.partition(":")[0] in BARE and ":" in text), None):
            raise UserError(f"--by {rest}: {rest.partition(':')[0]} takes nothing behind it.")
        _ = self.parts

    @property
    def of_tokens(self) -> list[str]:
        """The divisions that tokens tell."""
        return [text for text in self.by if text.partition(":")[0] not in (NORMS, SITES, DIRECTIONS, COMPONENTS)]

    @property
    def of_directions(self) -> tuple[str, ...]:
        """The divisions of the error by direction."""
        return tuple(text for text in self.by if text in (DIRECTIONS, COMPONENTS))

    @property
    def fits(self) -> bool:
        """Whether something is fitted that must not see the documents that are scored."""
        return self.held_out or bool(self.of_directions)

    def most_variants(self, sites: int) -> int:
        """How many patched variants there are at most, of a variant with so many dictionaries."""
        counts = [len(division(text, Words(())).classes) for text in self.of_tokens]
        counts += [self.parts, sites if sites > 1 else 0, *(PARTS[text] for text in self.of_directions)]
        return PATCHES * sum(counts)

    def plan(self, made: Plan) -> list[str]:
        """A sentence for each variant of a plan: what its patches cost at most, in forward passes over the tasks."""
        out = []
        for one in made.variants:
            count = self.most_variants(len(one.sites))
            if one.cost is None:
                out.append(f"{one.asked.name}: at most {count} variants, whose cost is not known: {one.why}.")
                continue
            passes = -(-(count + 1) // VARIANTS_AT_ONCE) + (count + 1) * one.cost
            out.append(
                f"{one.asked.name}: at most {count} variants beside it, of {one.cost:.2f} forward passes each: at most "
                f"{passes:.1f} over the tasks, besides the dictionary's own work, done once for "
                f"{VARIANTS_AT_ONCE} of them.{FITTED if self.parts or self.of_directions else ''}"
            )
        return out

    @property
    def parts(self) -> int:
        """Into how many parts the norm of the error divides the positions; 0 where it is not asked for."""
        of_norms = [text for text in self.by if text.partition(":")[0] == NORMS]
        return whole_of(of_norms[0].partition(":")[2] or "4", f"--by {of_norms[0]}") if of_norms else 0
