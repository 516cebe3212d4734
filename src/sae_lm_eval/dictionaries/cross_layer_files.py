"""The files of cross-layer transcoders, in circuit-tracer's layout and in Gemma Scope 2's; without torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sae_lm_eval import world
from sae_lm_eval.dictionaries.hub_files import hub_told, names_of_files, refuse_other_format, refuse_revision
from sae_lm_eval.dictionaries.spec import SaeSpec
from sae_lm_eval.errors import UserError

SOME_LAYERS = re.compile(r"(?:(.*)/)?layer_(\d{1,4})(?:-(\d{1,4}))?")


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

    `wanted` are the layers that are asked for, None for all; `id` is the folder in the source.
    """

    spec: SaeSpec
    folder: Path
    commit: str | None
    layout: FileLayout
    layers: int
    wanted: range | None
    id: str

    def file(self, kind: str, layer: int) -> Path:
        return self.folder / kind.format(layer)


def find_cross_layer(spec: SaeSpec) -> CrossLayerPlace:
    """Where the transcoder lies, its files on this machine. Raises `UserError` where there is none."""
    layout, layers, asked, id_ = names_of_cross_layer(spec)
    root, commit = local_folder(spec), None
    if root is None:
        from huggingface_hub import snapshot_download

        prefix = f"{id_}/" if id_ else ""
        last = layers - 1 if asked is None else asked[-1]
        files = {kind.format(n) for kind in (layout.encoder, layout.decoder) for n in range(last + 1)}
        wanted = [f"{prefix}{name}" for name in (*sorted(files), layout.config)]
        with hub_told(spec):
            root = Path(snapshot_download(spec.source, revision=spec.revision, allow_patterns=wanted))
        commit = root.name
    return CrossLayerPlace(spec, root / id_, commit, layout, layers, asked, id_)


def local_folder(spec: SaeSpec) -> Path | None:
    """The user's own folder, or that of the embedded world."""
    return world.CROSS_LAYER if spec.folder is None and spec.source == world.NAME else spec.folder


def names_of_cross_layer(spec: SaeSpec) -> tuple[FileLayout, int, range | None, str]:
    """Of the transcoder that `spec` names, told from names of files alone: layout, how many layers, those that are
    asked for, None for all, and the folder that it lies in.

    Raises `UserError` where there is none, a layer is missing, or one that is asked for is not there.
    """
    some = SOME_LAYERS.fullmatch(spec.id or "")
    id_, asked = (some[1] or "", range(int(some[2]), int(some[3] or some[2]) + 1)) if some else (spec.id or "", None)
    folder = local_folder(spec)
    if folder == world.CROSS_LAYER and spec.revision is not None:
        raise UserError(f"The embedded world has no revision '{spec.revision}': leave it out.")
    if folder is not None:
        refuse_revision(spec)
    names = names_of_files(spec, folder)
    prefix = f"{id_}/" if id_ else ""
    here = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    layout = next((one for one in LAYOUTS if _numbers(one, here)), None)
    if layout is None:
        refuse_other_format(spec, here)
        raise UserError(f"'{spec}' holds no cross-layer transcoder.{_others(names)}")
    layers = _count(spec, layout, set(here))
    if asked is not None and (not asked or asked[-1] >= layers):
        which = f"no layer {asked[-1]}" if asked else f"nothing in {spec.id}"
        raise UserError(f"'{spec}': there is {which}; the layers run from 0 to {layers - 1}.")
    return layout, layers, asked, id_


def _others(names: Sequence[str]) -> str:
    firsts = {one.encoder.format(0) for one in LAYOUTS}
    found = sorted(name.rpartition("/")[0] for name in names if name.rpartition("/")[2] in firsts)
    if not found:
        return " One has files " + " or ".join(one.encoder.format("N") for one in LAYOUTS) + "."
    return f" There is one {', '.join(f'at #{folder}' if folder else 'at the top' for folder in found[:8])}."


def _numbers(layout: FileLayout, names: Iterable[str]) -> list[int]:
    """Of the layers that have a first file."""
    return [int(found[1]) for name in names if (found := re.fullmatch(layout.encoder.format(r"(\d{1,4})"), name))]


def _count(spec: SaeSpec, layout: FileLayout, names: set[str]) -> int:
    last = max(_numbers(layout, names))
    for layer in range(last + 1):
        for kind in (layout.encoder, layout.decoder):
            if kind.format(layer) not in names:
                raise UserError(f"'{spec}' has no file {kind.format(layer)}: a layer is missing.")
    return last + 1
