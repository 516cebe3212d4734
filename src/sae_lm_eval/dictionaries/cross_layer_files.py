"""The files of cross-layer transcoders and crosscoders, in circuit-tracer's and Gemma Scope 2's layouts; no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import StrictBool, StrictStr

from sae_lm_eval import world
from sae_lm_eval.dictionaries.hub_files import hub_told, names_of_files, refuse_other_format, refuse_revision
from sae_lm_eval.dictionaries.spec import SaeSpec
from sae_lm_eval.errors import UserError, one_of
from sae_lm_eval.files.reading import Foreign, checked, json_value, read_text, shown, yaml_value

ACTIVATIONS = ("relu", "jumprelu")
KIND = "cross_layer_transcoder"  # as circuit-tracer's configurations name it
PLACES = re.compile(r"\{([^{}]*)\}")  # stands for a layer in Gemma Scope 2's configuration: {all}, or {5,9,12,15}
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


class CrossLayerConfiguration(Foreign):
    """What is read of either layout's configuration."""

    model_name: StrictStr | None = None
    model_kind: StrictStr = KIND
    activation: StrictStr | None = None
    feature_input_hook: StrictStr = "hook_resid_mid"
    feature_output_hook: StrictStr = "hook_mlp_out"
    hf_hook_point_in: StrictStr = "model.layers.{all}.pre_feedforward_layernorm.output"
    hf_hook_point_out: StrictStr = "model.layers.{all}.post_feedforward_layernorm.output"
    affine_connection: StrictBool | None = None


class CrossLayerNames(NamedTuple):
    """What the names of files and the configuration say of a transcoder.

    `layers` are those of the model at which its parts read and write, in the order of its files: all of them, or of a
    crosscoder some. `requested_files` are the numbers of those that are asked for, None for all; `id` is the folder in
    the source.
    """

    layout: FileLayout
    config: CrossLayerConfiguration
    layers: tuple[int, ...]
    requested_files: range | None
    id: str

    @property
    def last(self) -> int:
        """The number of the last file that is needed: those before it write there too."""
        return len(self.layers) - 1 if self.requested_files is None else self.requested_files[-1]


@dataclass(frozen=True)
class CrossLayerPlace:
    """A cross-layer transcoder in a local folder: its own, or the snapshot of a repository at `commit`."""

    spec: SaeSpec
    folder: Path
    commit: str | None
    names: CrossLayerNames

    def file(self, kind: str, number: int) -> Path:
        return self.folder / kind.format(number)


def find_cross_layer(spec: SaeSpec) -> CrossLayerPlace:
    """Where the transcoder lies, its files on this machine. Raises `UserError` where there is none."""
    names = names_of_cross_layer(spec)
    root, commit, layout = local_folder(spec), None, names.layout
    if root is None:
        from huggingface_hub import snapshot_download

        prefix = f"{names.id}/" if names.id else ""
        files = {kind.format(n) for kind in (layout.encoder, layout.decoder) for n in range(names.last + 1)}
        patterns = [f"{prefix}{name}" for name in (*sorted(files), layout.config)]
        with hub_told(spec):
            root = Path(snapshot_download(spec.source, revision=spec.revision, allow_patterns=patterns))
        commit = root.name
    return CrossLayerPlace(spec, root / names.id, commit, names)


def local_folder(spec: SaeSpec) -> Path | None:
    """The user's own folder, or that of the embedded world."""
    return world.CROSS_LAYER if spec.folder is None and spec.source == world.NAME else spec.folder


def names_of_cross_layer(spec: SaeSpec) -> CrossLayerNames:
    """Of the transcoder that `spec` names what is told without its weights.

    Raises `UserError` where there is none, a layer is missing, or one that is asked for is not there.
    """
    match = SOME_LAYERS.fullmatch(spec.id or "")
    id_ = (match[1] if match else spec.id) or ""
    selection = range(int(match[2]), int(match[3] or match[2]) + 1) if match else None
    folder = local_folder(spec)
    if folder == world.CROSS_LAYER and spec.revision is not None:
        raise UserError(f"The embedded world has no revision '{spec.revision}': leave it out.")
    if folder is not None:
        refuse_revision(spec)
    names = names_of_files(spec, folder)
    prefix = f"{id_}/" if id_ else ""
    file_names = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    layout = next((layout for layout in LAYOUTS if _numbers(layout, file_names)), None)
    if layout is None:
        refuse_other_format(spec, file_names)
        raise UserError(f"'{spec}' holds no cross-layer transcoder.{_others(names)}")
    count = _count(spec, layout, set(file_names))
    config = _configuration(spec, layout, folder, prefix, layout.config in file_names)
    layers = _layers(spec, config, count, selection is not None) if layout is GEMMA_SCOPE_2 else tuple(range(count))
    if selection is None:
        return CrossLayerNames(layout, config, layers, None, id_)
    numbers = [number for number, layer in enumerate(layers) if layer in selection]
    if not selection or not {selection[0], selection[-1]} <= set(layers):
        which = f"no layer {next(n for n in (selection[-1], selection[0]) if n not in layers)}" if selection else ""
        choices = f"run from {layers[0]} to {layers[-1]}" if layers == tuple(range(count)) else f"are {_listed(layers)}"
        raise UserError(f"'{spec}': there is {which or f'nothing in {spec.id}'}; the layers {choices}.")
    return CrossLayerNames(layout, config, layers, range(numbers[0], numbers[-1] + 1), id_)


def _listed(layers: Iterable[int]) -> str:
    return ", ".join(map(str, layers))


def _configuration(
    spec: SaeSpec, layout: FileLayout, folder: Path | None, prefix: str, is_there: bool
) -> CrossLayerConfiguration:
    """Where there is none, the hooks are those of all releases of that layout."""
    if not is_there:
        return CrossLayerConfiguration()
    file = (folder or Path()) / prefix / layout.config
    if folder is None:
        from huggingface_hub import hf_hub_download

        with hub_told(spec):
            file = Path(hf_hub_download(spec.source, f"{prefix}{layout.config}", revision=spec.revision))
    where = f"'{shown(file)}'"
    values = (yaml_value if file.suffix == ".yaml" else json_value)(read_text(file), where)
    config = checked(CrossLayerConfiguration, values, where, f"a configuration of {layout.name}")
    if config.model_kind != KIND:
        raise UserError(f"{where} says model_kind: {config.model_kind}, where {KIND} is expected.")
    if config.activation is not None:
        one_of(config.activation, ACTIVATIONS, f"In {where} the activation")
    return config


def _layers(spec: SaeSpec, config: CrossLayerConfiguration, count: int, in_part: bool) -> tuple[int, ...]:
    """The model's layers that the hooks of Gemma Scope 2 name, of `count` files; where layers are asked for `in_part`
    the first files alone may be in the cache.
    """
    hook_layers: list[tuple[int, ...]] = []
    for path in (config.hf_hook_point_in, config.hf_hook_point_out):
        match = PLACES.search(path)
        parts = [] if match is None else match[1].replace(" ", "").split(",")
        if parts == ["all"]:
            hook_layers.append(tuple(range(count)))
        elif parts and all(re.fullmatch(r"\d{1,4}", part) for part in parts):
            hook_layers.append(tuple(map(int, parts)))
        else:
            raise UserError(f"'{spec}' names the hook '{path}', where {{all}} or layers as in {{5,9}} are expected.")
    layers, written = hook_layers
    if layers != written:
        raise UserError(f"'{spec}' reads at the layers {_listed(layers)} and writes at {_listed(written)}.")
    if list(layers) != sorted(set(layers)):
        raise UserError(f"'{spec}' names the layers {_listed(layers)}, which are not in order.")
    if len(layers) != count and not (in_part and count < len(layers)):
        raise UserError(f"'{spec}' names the layers {_listed(layers)}, and there are files of {count}.")
    return layers[:count]


def _others(names: Sequence[str]) -> str:
    firsts = {layout.encoder.format(0) for layout in LAYOUTS}
    folders = sorted(name.rpartition("/")[0] for name in names if name.rpartition("/")[2] in firsts)
    if not folders:
        return " One has files " + " or ".join(layout.encoder.format("N") for layout in LAYOUTS) + "."
    return f" There is one {', '.join(f'at #{folder}' if folder else 'at the top' for folder in folders[:8])}."


def _numbers(layout: FileLayout, names: Iterable[str]) -> list[int]:
    """Of the layers that have a first file."""
    return [int(match[1]) for name in names if (match := re.fullmatch(layout.encoder.format(r"(\d{1,4})"), name))]


def _count(spec: SaeSpec, layout: FileLayout, names: set[str]) -> int:
    last = max(_numbers(layout, names))
    for layer in range(last + 1):
        for kind in (layout.encoder, layout.decoder):
            if kind.format(layer) not in names:
                raise UserError(f"'{spec}' has no file {kind.format(layer)}: a layer is missing.")
    return last + 1
