"""What is said of a variant beyond its dictionaries, checked without torch: mistakes are told before it is imported."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_lm_eval.dictionaries.latent_edits import NO_EDITS, LatentEdits, edits_of
from sae_lm_eval.errors import UserError, did_you_mean, one_of
from sae_lm_eval.files.reading import shown
from sae_lm_eval.splicing.layer_choice import LayerChoice, layers_of
from sae_lm_eval.splicing.splice_arguments import INPUTS, MODES, OF_SITES, TOKENS, SpliceArguments

if TYPE_CHECKING:
    from sae_lm_eval.dictionaries.dictionary import Dictionary

MAPS = ("raw", "centered", "value_bias", "folded_value_bias")
# What `variants` warns of where a dictionary was trained on another model.
OF_OTHER_MODEL = "the results say nothing of the dictionary if these differ"
LARGEST = 2**63  # of whole numbers, which torch takes no larger
DTYPE_NAMES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Choices:
    """What the user says of a variant beyond its dictionaries; `hooks` and `hook_maps` go by the dictionaries' order.

    A hook is written `IN:OUT` where a transcoder reads and writes at different sites. None is what the release says.
    `splice_tokens` is "all", "non_special", or "non_special:N", where the first N positions keep their activation,
    whatever the release says of them. `layers` are those at which something is spliced in, None for all that there are.
    """

    splice: str = str(SpliceArguments.splice)
    splice_tokens: str = SpliceArguments.splice_tokens
    hooks: tuple[str, ...] | None = None
    hook_maps: tuple[str, ...] | None = None
    seed: int = SpliceArguments.seed
    scale: float = SpliceArguments.scale
    edits: LatentEdits = NO_EDITS
    layers: LayerChoice | None = None
    splice_input: str = SpliceArguments.splice_input

    def __post_init__(self) -> None:
        one_of(self.splice, MODES, "splice")
        one_of(self.splice_input, INPUTS, "splice_input")
        if self.edits and self.splice in OF_SITES:
            raise UserError(
                f"splice={self.splice} does not ask the dictionary, so that {self.edits} would change nothing: "
                "leave one of them out."
            )
        kind, colon, first = self.splice_tokens.partition(":")
        if colon and kind == "non_special" and not first.isdecimal():
            raise UserError(
                f"splice_tokens={self.splice_tokens}: non_special: takes the number of first positions to keep, as in "
                f"splice_tokens=non_special:4."
            )
        one_of(kind if colon and kind == "non_special" else self.splice_tokens, TOKENS, "splice_tokens")
        for name in self.hook_maps or ():
            one_of(name, MAPS, "hook_map")

    @property
    def record(self) -> dict[str, Any]:
        """What is written down of the choices that are not made as a rule."""
        layers = {} if self.layers is None else {"splice_layers": str(self.layers)}
        reads = {} if self.splice_input == SpliceArguments.splice_input else {"splice_input": self.splice_input}
        return {**self.edits.record, **layers, **reads}

    @property
    def keeps_special(self) -> bool:
        """Whether positions of special tokens keep their activation."""
        return self.splice_tokens != "all"

    def first_position(self, dictionary: Dictionary) -> int:
        """The first position at which `dictionary` is spliced in."""
        if not self.keeps_special:
            return 0
        _, colon, first = self.splice_tokens.partition(":")
        return int(first) if colon else dictionary.first_position or 0


def choices_of(arguments: SpliceArguments) -> Choices:
    """What is said of a variant beyond its dictionaries; `+` joins what goes by dictionary."""
    hook, hook_map, layers = arguments.hook, arguments.hook_map, layers_of(arguments.splice_layers)
    if (layers is not None and layers.best is not None) != (arguments.layers_text is not None):
        raise UserError(
            "splice_layers=best:COUNT and layers_text=FILE go together: layers are chosen by what each alone costs on "
            "that text (.txt, .jsonl or .parquet)."
        )
    return Choices(
        # lm_eval makes None of the text "none" in its arguments.
        splice="none" if arguments.splice is None else str(arguments.splice),
        splice_tokens=str(arguments.splice_tokens),
        hooks=None if hook is None else tuple(str(hook).split("+")),
        hook_maps=None if hook_map is None else tuple(str(hook_map).split("+")),
        seed=whole(arguments.seed, "seed", least=0),
        scale=_share(arguments.scale, "scale"),
        edits=edits_of(
            arguments.keep_top,
            arguments.ablate,
            arguments.clamp,
            arguments.latent_positions,
            arguments.latent_heads,
        ),
        layers=layers,
        splice_input=str(arguments.splice_input),
    )


def finite_number(value: Any, name: str) -> float:
    """`value` as a finite number."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{name}={shown(value)} must be a number, as in {name}=0.5.")
    return number


def whole(value: Any, name: str, *, least: int) -> int:
    """`value` as a whole number of at least `least`; lm_eval reads 1e3 as a float."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or isinstance(value, bool) or number != value or number < least:
        raise UserError(f"{name}={shown(value)} must be a whole number of at least {least}.")
    if number >= LARGEST:
        raise UserError(f"{name}={shown(number)} must be below 2**63.")
    return number


def _share(value: Any, name: str) -> float:
    number = finite_number(value, name)
    if not 0 <= number <= 1:
        raise UserError(f"{name}={value} must be from 0, which changes nothing, to 1, the whole splice.")
    return number


def refuse_misspelt(names: Iterable[str], known_names: Iterable[str]) -> None:
    """Raise `UserError` for a name that is not known and near to one that is; others may be the model's own."""
    known_names = list(known_names)
    for name in names:
        if name not in known_names and (hint := did_you_mean(name, known_names, most=1)):
            raise UserError(f"sae_hf has no argument '{name}'.{hint}")
