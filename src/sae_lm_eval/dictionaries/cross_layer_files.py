"""The files of cross-layer transcoders, in circuit-tracer's layout and in Gemma Scope 2's; without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from sae_lm_eval import world
from sae_lm_eval.dictionaries.hub_files import check_repository_name, hub_told, refuse_other_format, repository_files
from sae_lm_eval.dictionaries.spec import SaeSpec
from sae_lm_eval.errors import UserError

ONE_LAYER = re.compile(r"(?:(.*)/)?layer_(\d+)")


@dataclass(frozen=True)
class FileLayout:
    """How a release lays out its files: globs of the first and the second file of a layer, and the names of tensors,
    in both of which {} stands for the layer. Which of `optional` there are must be the same in all layers.
    """

    name: str
    encoder: str
    decoder: str
    config: str
    tensors: Mapping[str, str]
    optional: Mapping[str, str]


CIRCUIT_TRACER = FileLayout(
    name="circuit-tracer",
    encoder="W_enc_{}.safetensors",
    decoder="W_dec_{}.safetensors",
    config="config.yaml",
    tensors={"W_enc": "W_enc_{}", "b_enc": "b_enc_{}", "b_dec": "b_dec_{}", "W_dec": "W_dec_{}"},
    optional={"threshold": "threshold_{}", "W_skip": "W_skip_{}"},
)
GEMMA_SCOPE_2 = FileLayout(
    name="Gemma Scope 2",
    encoder="params_layer_{}.safetensors",
    decoder="params_layer_{}.safetensors",
    config="config.json",
    tensors={"W_enc": "w_enc", "b_enc": "b_enc", "b_dec": "b_dec", "W_dec": "w_dec", "threshold": "threshold"},
    optional={"W_skip": "affine_skip_connection"},
)
LAYOUTS = (CIRCUIT_TRACER, GEMMA_SCOPE_2)


@dataclass(frozen=True)
class CrossLayerPlace:
    """A cross-layer transcoder in a local folder: its own, or the snapshot of a repository at `commit`.

    `layer` is the one that is asked for, None for all.
    """

    spec: SaeSpec
    folder: Path
    commit: str | None
    layout: FileLayout
    layers: int
    layer: int | None

    def file(self, kind: str, layer: int) -> Path:
        return self.folder / kind.format(layer)


def find_cross_layer(spec: SaeSpec) -> CrossLayerPlace:
    """Where the transcoder lies, its files on this machine. Raises `UserError` where there is none."""
    layout, layers, layer, id_ = names_of_cross_layer(spec)
    root, commit = local_folder(spec), None
    if root is None:
        from huggingface_hub import snapshot_download

        prefix = f"{id_}/" if id_ else ""
        last = layers - 1 if layer is None else layer
        files = {kind.format(n) for kind in (layout.encoder, layout.decoder) for n in range(last + 1)}
        wanted = [f"{prefix}{name}" for name in (*sorted(files), layout.config)]
        with hub_told(spec):
            root = Path(snapshot_download(spec.source, revision=spec.revision, allow_patterns=wanted))
        commit = root.name
    return CrossLayerPlace(spec, root / id_, commit, layout, layers, layer)


def local_folder(spec: SaeSpec) -> Path | None:
    """The user's own folder, or that of the embedded world."""
    return world.CROSS_LAYER if spec.folder is None and spec.source == world.NAME else spec.folder


def names_of_cross_layer(spec: SaeSpec) -> tuple[FileLayout, int, int | None, str]:
    """Of the transcoder that `spec` names, told from names of files alone: layout, layers, the one layer that is asked
    for, and the folder that it lies in.

    Raises `UserError` where there is none, a layer is missing, or the one that is asked for is not there.
    """
    one = ONE_LAYER.fullmatch(spec.id or "")
    id_, layer = (one[1] or "", int(one[2])) if one else (spec.id or "", None)
    if (folder := local_folder(spec)) is not None:
        if spec.revision is not None:
            raise UserError(f"'{spec.source}' is a local folder, which has no revision '{spec.revision}'.")
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    else:
        check_repository_name(spec)
        with hub_told(spec):
            names = repository_files(spec)
    prefix = f"{id_}/" if id_ else ""
    here = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    layout = next((one for one in LAYOUTS if any(fnmatch(name, one.encoder.format("*")) for name in here)), None)
    if layout is None:
        refuse_other_format(spec, here)
        raise UserError(f"'{spec}' holds no cross-layer transcoder.{_others(names)}")
    layers = _count(spec, layout, set(here))
    if layer is not None and layer >= layers:
        raise UserError(f"'{spec}': there is no layer {layer}; the layers run from 0 to {layers - 1}.")
    return layout, layers, layer, id_


def _others(names: Sequence[str]) -> str:
    firsts = {one.encoder.format(0) for one in LAYOUTS}
    found = sorted(name.rpartition("/")[0] for name in names if name.rpartition("/")[2] in firsts)
    if not found:
        return " One has files " + " or ".join(one.encoder.format("N") for one in LAYOUTS) + "."
    return f" There is one at #{', #'.join(found[:8])}."


def _count(spec: SaeSpec, layout: FileLayout, names: set[str]) -> int:
    numbers = [int(found[1]) for name in names if (found := re.fullmatch(layout.encoder.format(r"(\d+)"), name))]
    for layer in range(max(numbers) + 1):
        for kind in (layout.encoder, layout.decoder):
            if kind.format(layer) not in names:
                raise UserError(f"'{spec}' has no file {kind.format(layer)}: a layer is missing.")
    return max(numbers) + 1
