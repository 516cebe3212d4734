"""Dictionary + site + mode = splice; one or more splices are a variant."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from sae_lm_eval.dictionaries.cross_layer import CrossLayerOutput
from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.dictionaries.latent_edits import AFTER_HEADER, ALL, NO_EDITS, LatentEdits
from sae_lm_eval.errors import UserError
from sae_lm_eval.splicing.activation_map import ActivationMap
from sae_lm_eval.splicing.module_edits import ModuleEdit
from sae_lm_eval.splicing.module_io import ModuleSide
from sae_lm_eval.splicing.places import Places
from sae_lm_eval.splicing.prompt_labels import edited_positions, prompt_labels
from sae_lm_eval.splicing.site import MODULE_PATHS, Site

DIRECTIONS = 4096  # random directions to draw from; a prime stride spreads tokens and positions over them
STRIDE = 2654435761


@dataclass(frozen=True)
class Splice:
    """One dictionary at its site.

    The dictionary reads at `site_in` and its output takes the place of what passes `site_out`; the two differ
    for transcoders only. `mean` (d_out,) is needed by the mode "mean" alone. `scale` is how much of what the mode
    changes is changed: the activation y becomes y + scale (new - y). Positions below `first_position` keep theirs.
    `restored` gives, of what is read, the activation and the dictionary's error, the part of the error that is put
    back. `earlier` are the sites at which the latents of earlier layers read that write here too: those of a
    cross-layer transcoder.

    Where latents are edited, `unedited` is the dictionary without `edits`: it stands where these do not hold, and its
    error is the one that the mode "with_error" adds. `edited_columns` (d_out,) are those of the heads that are named.
    """

    dictionary: Dictionary
    site_in: Site
    site_out: Site
    map_in: ActivationMap
    map_out: ActivationMap
    mode: str = "reconstruction"
    mean: Float[Tensor, " d_out"] | None = None
    seed: int = 0
    scale: float = 1.0
    first_position: int = 0
    restored: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    earlier: tuple[Site, ...] = ()
    unedited: Dictionary | None = None
    edits: LatentEdits = NO_EDITS
    edited_columns: Bool[Tensor, " d_out"] | None = None

    @property
    def cross_layer_outputs(self) -> tuple[CrossLayerOutput, ...]:
        """Of a cross-layer transcoder what is asked for here; where edits of latents hold in part, without them too."""
        both = (self.dictionary, self.unedited if self._needs_unedited else None)
        return tuple(d.cross_layer for d in both if d is not None and d.cross_layer is not None)

    @property
    def _needs_unedited(self) -> bool:
        return self.edits.positions != ALL or self.edited_columns is not None or self.mode == "with_error"

    def edited_positions(self, context: Context) -> Bool[Tensor, "batch positions"] | None:
        """Where edits of latents hold, None standing for all positions."""
        return edited_positions(self.edits, context.positions, context.labels)

    def dictionary_input(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Raw `x` in the dictionary's own space, on its device and in its dtype."""
        return self.map_in.there(x.to(self.dictionary.device, self.dictionary.dtype))

    def reconstruct(
        self, x: Float[Tensor, "batch positions d_in"], y: Float[Tensor, "batch positions d_out"]
    ) -> Float[Tensor, "batch positions d_out"]:
        """What the dictionary puts in the place of raw `y` when it reads raw `x`, in the dictionary's dtype."""
        return self._made_by(self.dictionary, x, y)

    def _made_by(
        self,
        dictionary: Dictionary,
        x: Float[Tensor, "batch positions d_in"],
        y: Float[Tensor, "batch positions d_out"],
        context: Context | None = None,
    ) -> Float[Tensor, "batch positions d_out"]:
        if context is not None and dictionary.cross_layer is not None:
            assert context.written is not None, "an attachment has it where there are cross-layer transcoders"
            z = context.written(dictionary.cross_layer, self, x)
        else:
            z = dictionary.reconstruct(self.dictionary_input(x))
        return self.map_out.back(z, y.to(dictionary.device, dictionary.dtype))

    def encoded(
        self, z: Float[Tensor, "positions d_in"], edited: Bool[Tensor, " positions"] | None
    ) -> Float[Tensor, "positions d_dictionary"]:
        """Activations of the latents for `z`, in the dictionary's space; `edited` is where edits of them hold."""
        assert self.dictionary.encode is not None, "it has latents"
        latents = self.dictionary.encode(z)
        if edited is None or self.unedited is None or self.unedited.encode is None:
            return latents
        return torch.where(edited[:, None].to(z.device), latents, self.unedited.encode(z))

    def edit(
        self, x: Float[Tensor, "batch positions d_in"], y: Float[Tensor, "batch positions d_out"], context: Context
    ) -> Float[Tensor, "batch positions d_out"]:
        """What the mode puts in the place of `y`, in the dtype of `y`, at every position."""
        new = EDITS[self.mode](self, x, y, context)
        if self.scale != 1:
            wide = y.to(new)
            new = wide + self.scale * (new - wide)
        return new.to(y.device, y.dtype)

    def reconstruction(
        self, x: Float[Tensor, "batch positions d_in"], y: Float[Tensor, "batch positions d_out"], context: Context
    ) -> Float[Tensor, "batch positions d_out"]:
        reconstructed = {} if context.reconstructed is None else context.reconstructed
        if self.reads not in reconstructed:
            reconstructed[self.reads] = self._all_rows(x, y, context)
        new = reconstructed[self.reads]
        if self.restored is None:
            return new
        wide = y.to(new)
        return new + self.restored(x, wide, wide - new)

    def _all_rows(
        self, x: Float[Tensor, "batch positions d_in"], y: Float[Tensor, "batch positions d_out"], context: Context
    ) -> Float[Tensor, "batch positions d_out"]:
        if self.dictionary.sequential:
            return self._by_row(x, y, context)
        new = self._made_by(self.dictionary, x, y, context)
        positions = self.edited_positions(context)
        if self.unedited is None or (positions is None and self.edited_columns is None):
            return new
        edited = torch.ones((), dtype=torch.bool) if positions is None else positions[..., None]
        if self.edited_columns is not None:
            edited = edited & self.edited_columns.to(edited.device)
        return torch.where(edited.to(new.device), new, self._made_by(self.unedited, x, y, context))

    @property
    def reads(self) -> tuple[Any, ...]:
        """What a reconstruction is made of besides what passes."""
        return id(self.dictionary), self.site_in, self.site_out, self.map_in.name, self.map_out.name

    def with_error(
        self, x: Float[Tensor, "batch positions d_in"], y: Float[Tensor, "batch positions d_out"], context: Context
    ) -> Float[Tensor, "batch positions d_out"]:
        new = self.reconstruction(x, y, context)
        own = new if self.unedited is None else self._made_by(self.unedited, x, y, context)
        return new + (y.to(new) - own)

    def zero(
        self, _x: Float[Tensor, "batch positions d_in"], y: Float[Tensor, "batch positions d_out"], _context: Context
    ) -> Float[Tensor, "batch positions d_out"]:
        return torch.zeros_like(y)

    def mean_activation(
        self, _x: Float[Tensor, "batch positions d_in"], y: Float[Tensor, "batch positions d_out"], _context: Context
    ) -> Float[Tensor, "batch positions d_out"]:
        if self.mean is None:
            raise UserError("splice=mean needs the mean of the activations: give mean_text=FILE to take it from.")
        return self.mean.expand_as(y)

    def random_error(
        self, x: Float[Tensor, "batch positions d_in"], y: Float[Tensor, "batch positions d_out"], context: Context
    ) -> Float[Tensor, "batch positions d_out"]:
        """`y` plus a vector of the norm of the dictionary's error at each position.

        Its direction depends on nothing but the seed, the site, the token and its position: not on the batch.
        """
        new = self.reconstruction(x, y, context)
        wide = y.to(new)
        index = (context.input_ids + context.positions * STRIDE) % 2_147_483_647 % DIRECTIONS
        directions = self._directions.to(new)[index.to(new.device)]
        return wide + directions * (wide - new).norm(dim=-1, keepdim=True)

    @cached_property
    def _directions(self) -> Float[Tensor, "directions d_out"]:
        """Unit vectors, uniform on the sphere; `DIRECTIONS` of them."""
        # torch's generator on the CPU looks at 32 bits of its seed only.
        seed = zlib.crc32(f"{self.seed} {self.site_out.hook}".encode())
        table = torch.randn(DIRECTIONS, self.dictionary.widths[1], generator=torch.Generator().manual_seed(seed))
        return nn.functional.normalize(table, dim=-1).to(self.dictionary.device, self.dictionary.dtype)

    def _by_row(
        self, x: Float[Tensor, "batch positions d_in"], y: Float[Tensor, "batch positions d_out"], context: Context
    ) -> Float[Tensor, "batch positions d_out"]:
        # A dictionary that attends over positions must not see padding.
        new = y.to(self.dictionary.dtype, copy=True)
        for row, real in enumerate(context.real_tokens(x.device)):
            new[row, real] = self.reconstruct(x[row, real][None], y[row, real][None])[0].to(new.device)
        return new


# By mode; "none" edits nothing.
EDITS = {
    "reconstruction": Splice.reconstruction,
    "with_error": Splice.with_error,
    "zero": Splice.zero,
    "mean": Splice.mean_activation,
    "random_error": Splice.random_error,
}


@dataclass
class Context:
    """What the forward pass under way was given: token ids, their positions in the text, and which are real.

    The mask is as long as what a cache holds and the ids together. `labels` are those of the queries, where they have
    any. `reconstructed` holds, where a pass has it, what dictionaries make of what the untouched model passes. `real`
    is which ids are no padding, where there is no mask to tell it. `written` gives what cross-layer transcoders write.
    """

    input_ids: Int[Tensor, "batch positions"]
    positions: Int[Tensor, "batch positions"]
    attention_mask: Shaped[Tensor, "batch cached_and_positions"] | None
    labels: Int[Tensor, "batch positions"] | None = None
    reconstructed: dict[Any, Tensor] | None = None
    real: Bool[Tensor, "batch positions"] | None = None
    written: Callable[[CrossLayerOutput, Splice, Tensor], Tensor] | None = None

    @classmethod
    def of_call(cls, input_ids: Int[Tensor, "batch positions"], kwargs: dict, prompt: int | None = None) -> Context:
        """Of a call of the model; the first `prompt` tokens, padding included, are the prompt of every row."""
        length = input_ids.shape[1]
        cache = kwargs.get("past_key_values")
        past = cache.get_seq_length() if cache is not None else 0
        mask = kwargs.get("attention_mask")
        mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        if mask is not None:
            # Counted from the first real token, so that padding on the left moves nothing.
            positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
        else:
            positions = torch.arange(past, past + length, device=input_ids.device).expand_as(input_ids)
        context = cls(input_ids, positions, mask)
        if prompt is not None:
            labels = torch.from_numpy(prompt_labels(range(past, past + length), header=0, prompt=prompt))
            context.labels = labels.to(input_ids.device).expand_as(input_ids)
        return context

    def real_tokens(self, device: torch.device) -> Iterator[Int[Tensor, " _"]]:
        for row in range(self.input_ids.shape[0]):
            if self.attention_mask is None:
                yield torch.arange(self.input_ids.shape[1], device=device)
            else:
                yield self.attention_mask[row, -self.input_ids.shape[1] :].nonzero().flatten().to(device)


@dataclass(frozen=True)
class Variant:
    """The splices that are applied together, and the token ids whose positions keep the original activation.

    `places` narrows them to a class of positions or sites. With `reads_clean` dictionaries read what passes the
    untouched model on the same text, and not what earlier splices have left.

    `edits` of the model's own modules hold at every position. They are an edit in the place of splices or an adapter
    beside them; `edit` and `adapter` say of these what is recorded.
    """

    splices: tuple[Splice, ...]
    special_ids: frozenset[int] = field(default_factory=frozenset)
    places: Places | None = None
    edits: tuple[ModuleEdit, ...] = ()
    edit: Mapping[str, Any] | None = None
    adapter: Mapping[str, Any] | None = None
    reads_clean: bool = False

    def __post_init__(self) -> None:
        seen: dict[tuple[ModuleSide | None, ModuleSide | None], Splice] = {}
        for splice in self.splices:
            place = (splice.site_out.write, splice.site_out.residual)
            if place in seen:
                raise UserError(
                    f"{seen[place].dictionary.name} and {splice.dictionary.name} both write at "
                    f"'{splice.site_out.hook}': one site takes one dictionary."
                )
            seen[place] = splice

    @property
    def is_baseline(self) -> bool:
        """Whether nothing was asked to be changed."""
        return not self.splices and self.edit is None and self.adapter is None

    @property
    def is_apart(self) -> bool:
        """Whether it takes forward passes of its own, since no pass can run it for some of its rows alone."""
        return any(edit.is_apart for edit in self.edits)

    @property
    def changes_nothing(self) -> bool:
        """Whether what was asked for leaves every activation as it is."""
        return not self.edits and all(splice.mode == "none" for splice in self.splices)

    def in_order(self) -> Sequence[Splice]:
        """As a forward pass comes to them, so that later ones see what earlier ones left."""
        return sorted(self.splices, key=lambda splice: splice.site_out.order)

    def number_of(self, splice: Splice) -> int:
        """Its place among the splices."""
        return next(number for number, own in enumerate(self.splices) if own is splice)

    def in_mode(self, mode: str) -> Variant:
        """The same splices, in another mode."""
        return replace(self, splices=tuple(replace(splice, mode=mode) for splice in self.splices))

    @property
    def first(self) -> Splice | None:
        """The one that reads what the untouched model passes; None where there is none, or names do not tell which."""
        ordered = self.in_order()
        if self.edits or not ordered or (len(ordered) > 1 and ordered[-1].site_out.order[0] == MODULE_PATHS):
            return None
        return ordered[0]

    @property
    def is_cross_layer(self) -> bool:
        """Whether latents of one layer write at another."""
        return any(splice.dictionary.cross_layer is not None for splice in self.splices)

    @property
    def looks_at_prompt(self) -> bool:
        """Whether it depends on where a prompt or its few-shot header ends."""
        return any(splice.edits.looks_at_prompt for splice in self.splices)

    @property
    def looks_at_header(self) -> bool:
        """Whether it depends on where the few-shot header of a prompt ends."""
        return any(splice.edits.positions == AFTER_HEADER for splice in self.splices)

    @property
    def first_position(self) -> int:
        """The first position at which every dictionary is spliced in."""
        return max((splice.first_position for splice in self.splices), default=0)

    @property
    def sequential(self) -> bool:
        """Whether some dictionary attends over positions, so that decoding must not be cached."""
        return any(
            splice.dictionary.sequential and splice.mode not in ("none", "zero", "mean") for splice in self.splices
        )

    @property
    def needs_whole_text(self) -> bool:
        """Whether each token of a text is generated from the whole text before it: no cache holds what it needs."""
        # Whether what stands for a whole attention module keeps a cache is its own affair.
        return self.sequential or self.is_apart or (self.reads_clean and not self.changes_nothing)
