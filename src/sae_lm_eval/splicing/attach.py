"""A variant attached to a model for a scope."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae_lm_eval.errors import UserError
from sae_lm_eval.splicing.cross_layer_sums import LayerSums
from sae_lm_eval.splicing.module_edits import Rows, attach_edits, rows_given
from sae_lm_eval.splicing.module_io import ModuleSide, hook_side
from sae_lm_eval.splicing.special_tokens import spliced_positions
from sae_lm_eval.splicing.splice import Context, Splice, Variant


@contextmanager
def attached(model: nn.Module, variant: Variant, prompt: int | None = None) -> Iterator[None]:
    """Inside the scope, `model` runs as `variant`; after it, the model is as it was, whatever was raised.

    The model must be called with token ids: they say which positions hold special tokens. `prompt` is how many of a
    text's tokens, padding included, are its prompt.
    """
    with ExitStack() as scope:
        attachment = Attachment(model, variant, scope)

        def begin(_model: nn.Module, args: tuple, kwargs: dict) -> None:
            if attachment.is_recording:
                return
            input_ids = kwargs.get("input_ids", args[0] if args else None)
            if input_ids is None:
                raise UserError(
                    "A spliced model must be called with input_ids: embeddings do not say where special tokens are."
                )
            context = Context.of_call(input_ids, kwargs, prompt)
            attachment.begin(context)
            if variant.reads_clean:
                if kwargs.get("past_key_values") is not None:  # see `Variant.needs_whole_text`
                    raise UserError("splice_input=clean reads whole texts: call the model with use_cache=False.")
                with attachment.recording():
                    model(*args, **kwargs)

        scope.callback(model.register_forward_pre_hook(begin, with_kwargs=True).remove)
        yield


@runtime_checkable
class SpliceWatch(Protocol):
    """Sees what passes the splices of a variant in one forward pass."""

    def __call__(
        self,
        splice: Splice,
        x: Float[Tensor, "rows positions d_in"],
        y: Float[Tensor, "rows positions d_out"],
        new: Float[Tensor, "rows positions d_out"] | None,
        context: Context,
    ) -> None:
        """At a splice: raw `x` and `y`, and what takes the place of `y`, None where nothing does."""


class Attachment(Rows):
    """The hooks of a variant in a scope, and what they have to tell each other during one forward pass.

    `rows` are those of the batch that run as the variant: all of them, unless a fork has appended others. A splice may
    read at one module and write at a later one, so what passes the first is kept in `passed` until then. What the
    untouched model passes, for a variant that reads it, are the first rows of a forked pass, or what a pass of its own
    has recorded before.
    """

    def __init__(self, model: nn.Module, variant: Variant, scope: ExitStack):
        super().__init__()
        self.variant = variant
        self.context: Context | None = None
        self.behind_first: Context | None = None  # what the later splices are given: they read what the first left
        self.kept: dict[int, Bool[Tensor, "batch positions 1"]] = {}  # by first position, where nothing is spliced in
        self.passed: dict[ModuleSide, Tensor] = {}
        self.inputs = {} if variant.reads_clean else self.passed  # of these, what dictionaries read
        self.watch: SpliceWatch | None = None
        self.is_recording = False
        self.clean: dict[ModuleSide, Tensor] = {}  # what a pass of the untouched model has recorded
        self.written = LayerSums(variant.splices, self.inputs) if variant.is_cross_layer else None
        attach_edits(model, variant.edits, self, scope)
        for splice in variant.in_order():
            read = {site.read for site in (*splice.earlier, splice.site_in)}
            for port in (read | {splice.site_out.residual}) - {splice.site_out.write}:
                if port is not None:
                    scope.callback(hook_side(model, port, partial(self._read, port)).remove)
            write = splice.site_out.write
            assert write is not None, "resolve the site with writable_port first"
            scope.callback(hook_side(model, write, partial(self._write, splice)).remove)

    def begin(self, context: Context, watch: SpliceWatch | None = None) -> None:
        """Before each forward pass; `watch` is called at each splice of that pass."""
        if self.written is not None:
            self.written.begin()
            context = replace(context, written=self.written.output)
        self.context, self.watch = context, watch
        self.behind_first = replace(context, reconstructed=None)
        count, self.positions = context.input_ids.shape
        self.rows = slice(0, count)
        self.passed.clear()
        self.inputs.clear()
        self.clean.clear()
        self.kept.clear()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside the scope the model runs untouched, and what passes the sites is kept for the pass that follows."""
        self.is_recording = True
        try:
            yield
        finally:
            self.is_recording = False

    def _kept(self, splice: Splice) -> Bool[Tensor, "batch positions 1"] | None:
        """Which positions keep their activation at a splice."""
        assert self.context is not None
        first, special = splice.first_position, self.variant.special_ids
        if not first and not special:
            return None
        if first not in self.kept:
            spliced = spliced_positions(self.context.input_ids, self.context.positions, special, first)
            self.kept[first] = ~spliced[..., None]
        return self.kept[first]

    def _by_position(self, passing: Float[Tensor, "*batch width"]) -> Float[Tensor, "all_rows positions width"]:
        """Where some modules see rows and positions as one axis."""
        return passing.reshape(-1, self.positions, passing.shape[-1])

    def _read(self, port: ModuleSide, passing: Float[Tensor, "*batch width"]) -> None:
        if self.is_recording:
            self.clean[port] = self._by_position(passing)
            return
        everything = self._by_position(passing)
        rows = rows_given(self.rows, len(everything))
        if rows.start < rows.stop:
            self.passed[port] = everything[rows]
            if self.variant.reads_clean:
                self.inputs[port] = self._clean_rows(port, everything)

    def _clean_rows(
        self, port: ModuleSide, everything: Float[Tensor, "all_rows positions width"]
    ) -> Float[Tensor, "rows positions width"]:
        """What the untouched model passes: recorded, or the first rows of a forked pass."""
        assert self.context is not None
        return self.clean[port] if port in self.clean else everything[: len(self.context.input_ids)]

    def _write(self, splice: Splice, passing: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"] | None:
        if self.is_recording:
            assert splice.site_out.write is not None
            self.clean[splice.site_out.write] = self._by_position(passing)
            return None
        if splice.mode == "none" and self.watch is None:
            return None
        assert self.context is not None
        assert self.behind_first is not None
        everything = self._by_position(passing)
        rows = rows_given(self.rows, len(everything))
        if rows.start == rows.stop:
            return None
        flat = everything[rows]
        site = splice.site_out
        stream = None if site.residual is None else self.passed[site.residual].to(flat.device)
        y = flat if stream is None else stream + flat
        if splice.site_in.read != site.read:
            x = self.inputs[splice.site_in.read]
        else:
            x = self._clean_rows(site.read, everything) if self.variant.reads_clean else y
        context = self.context if splice is self.variant.first else self.behind_first
        new = None if splice.mode == "none" else splice.edit(x, y, context)
        if self.watch is not None:
            self.watch(splice, x, y, new, self.context)
        if new is None:
            return None
        keep = self._kept(splice)
        if self.variant.places is not None:
            of_class = self.variant.places.kept(site.hook, self.context.labels, y, new)
            keep = of_class if keep is None else keep.to(of_class.device) | of_class
        if stream is not None:
            new = flat + (new - y)  # to the bit, where nothing is changed
        if keep is not None:
            new = torch.where(keep.to(new.device), flat, new)
        if len(flat) < len(everything):
            everything = everything.clone()
            everything[rows] = new
            new = everything
        return new.reshape(passing.shape)
