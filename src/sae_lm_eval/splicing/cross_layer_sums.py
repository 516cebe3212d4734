"""What the latents of cross-layer transcoders have written, layer after layer, in one forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from sae_lm_eval.dictionaries.cross_layer import CrossLayerLatents, CrossLayerOutput
from sae_lm_eval.splicing.module_io import ModuleSide
from sae_lm_eval.splicing.splice import Splice


class LayerSums:
    """For each layer of a cross-layer transcoder that is written the sum of what latents have written there so far.

    When the pass comes to a splice, the latents of its layer and of all before it that were not computed yet are: once
    each. What they write at the later layers is added up there, so that no latents are kept. `passed` is what has
    passed the sites in this pass.
    """

    def __init__(self, splices: Sequence[Splice], passed: Mapping[ModuleSide, Tensor]):
        self._passed = passed
        self._outputs = {id(of_layer): of_layer for splice in splices for of_layer in splice.cross_layer_outputs}
        self._written_by: dict[int, list[tuple[int, int]]] = {}  # by the id of latents, ids of outputs and their layers
        for number, of_layer in self._outputs.items():
            for latents in of_layer.sources:
                self._written_by.setdefault(id(latents), []).append((number, of_layer.layer))
        self._sums: dict[int, Tensor] = {}  # by the id of an output
        self._computed: set[int] = set()

    def begin(self) -> None:
        """Before each forward pass."""
        self._sums.clear()
        self._computed.clear()

    def output(self, of_layer: CrossLayerOutput, splice: Splice, x: Float[Tensor, "*batch d_in"]) -> Tensor:
        """What `of_layer` puts in the place of what passes `splice`, in the dictionary's space and dtype."""
        for latents, site in zip(of_layer.sources, (*splice.earlier, splice.site_in), strict=True):
            if id(latents) not in self._computed:
                self._compute(latents, splice, x if site is splice.site_in else self._passed[site.read])
        constant = of_layer.constant(splice.map_in.there(x.to(of_layer.b_dec)))
        return self._sums[id(of_layer)].to(constant.device) + constant

    def _compute(self, latents: CrossLayerLatents, reader: Splice, x: Tensor) -> None:
        outputs = self._written_by[id(latents)]
        # The layers of a transcoder share their latents, whatever device each layer is on.
        read = reader.map_in.there(x.to(latents.W_enc))
        written = latents.written(latents(read), [layer for _, layer in outputs])
        for (number, _), part in zip(outputs, written, strict=True):
            so_far = self._sums.get(number)
            self._sums[number] = part if so_far is None else so_far.to(part.device) + part
        self._computed.add(id(latents))
