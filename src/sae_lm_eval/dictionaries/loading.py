"""Loaders, by name, that turn a spec into one kind of thing: a `Dictionary`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint
from typing import Any

import torch
from torch import nn

from sae_lm_eval.dictionaries import (
    circuit_tracer_loader,
    dictionary_learning_loader,
    llama_scope_loader,
    saelens_loader,
    saelens_object,
    sparsify_loader,
)
from sae_lm_eval.dictionaries.cross_layer_loader import load_cross_layer
from sae_lm_eval.dictionaries.dictionary import Dictionary, Origin
from sae_lm_eval.dictionaries.norm_factors import check_norm_factor, factors_of
from sae_lm_eval.dictionaries.own_module import OwnModule, code_of, from_own, is_own
from sae_lm_eval.dictionaries.python_loader import made_by
from sae_lm_eval.dictionaries.sequential import attends_over_positions
from sae_lm_eval.dictionaries.snapshots import Memo, rebound, snapshot
from sae_lm_eval.dictionaries.spec import CROSS_LAYER, PYTHON, SaeSpec, loaders_of_others
from sae_lm_eval.dictionaries.trial import tried
from sae_lm_eval.errors import UserError, first_line
from sae_lm_eval.runtime.content import contents


def load_dictionary(
    source: Any, *, dtype: torch.dtype = torch.float32, norm_factor: float | str | None = None
) -> Dictionary:
    """The dictionary that `source` is or names: a spec as text or value, a SAELens SAE, a sparsify coder, a Dictionary,
    any other `torch.nn.Module` or callable.

    `norm_factor` is what activations were multiplied by in training, for releases that normalised them and do
    not say by how much; `IN:OUT` for a transcoder, one for each of its sites. What is loaded is tried on random
    activations: see `dictionaries.trial`; where its widths are not known yet, where it is placed.

    An object is copied, and stays as it was; `renewed` follows what becomes of it.

    Raises `UserError` for whatever cannot be found, read or applied.
    """
    dictionary, *others = load_dictionaries(source, dtype=dtype, norm_factor=norm_factor)
    if others:
        raise UserError(f"'{source}' names {len(others) + 1} dictionaries: load_dictionaries gives them all.")
    return dictionary


def load_all(
    sources: Sequence[Any], *, dtype: torch.dtype = torch.float32, norm_factor: float | str | None = None
) -> tuple[Dictionary, ...]:
    """As `load_dictionaries` of each; layers of a cross-layer transcoder that are given as objects share their latents
    afterwards as they did before.
    """
    of_layers = [source for source in sources if isinstance(source, Dictionary) and source.cross_layer is not None]
    copies = dict(zip(map(id, of_layers), _copied(*of_layers), strict=True))
    out: list[Dictionary] = []
    for source in sources:
        if id(source) in copies:
            out.append(_as_used(copies[id(source)], source, dtype, norm_factor))
        else:
            out += load_dictionaries(source, dtype=dtype, norm_factor=norm_factor)
    return tuple(out)


def load_dictionaries(
    source: Any, *, dtype: torch.dtype = torch.float32, norm_factor: float | str | None = None
) -> tuple[Dictionary, ...]:
    """As `load_dictionary`, of a source that may be several: a cross-layer transcoder is one a layer."""
    source = SaeSpec.parse(source) if isinstance(source, str) else source
    return tuple(_as_used(dictionary, source, dtype, norm_factor) for dictionary in load_as_released(source))


def _as_used(dictionary: Dictionary, source: Any, dtype: torch.dtype, norm_factor: float | str | None) -> Dictionary:
    may_be_two = isinstance(norm_factor, str) and dictionary.needs_norm_factor
    if not may_be_two:
        check_norm_factor(norm_factor)
    if dictionary.needs_norm_factor:
        dictionary = _with_factors(dictionary, norm_factor)
    elif norm_factor is not None:
        raise UserError(f"{dictionary.name} needs no norm_factor: leave it out.")
    dictionary.module.to(dtype=dtype).eval().requires_grad_(False)
    if dictionary.d_in is not None:
        dictionary = tried(dictionary)
    if isinstance(source, SaeSpec):
        return replace(dictionary, is_loaded=source.loader in LOADERS and source.loader != PYTHON)
    module, functions = _parts_of(source)
    content = contents({"": module}, {"": functions})[""]
    origin = Origin(source, module, functions, content, dtype, norm_factor)
    return replace(dictionary, is_loaded=dictionary.is_loaded or not isinstance(source, Dictionary), origin=origin)


def _parts_of(source: Any) -> tuple[nn.Module, tuple[Callable[..., Any], ...]]:
    """What decides the output of an object of the user's: a module, and functions besides."""
    if isinstance(source, Dictionary):
        return source.module, source.functions
    return (source, ()) if _of_library(source) else (OwnModule(source), tuple(code_of(source)))


def renewed(dictionaries: Sequence[Dictionary]) -> tuple[Dictionary, ...]:
    """The dictionaries, of which those are made anew whose object of the user's is no longer as it was.

    Raises `UserError` as `load_dictionary` does.
    """
    origins = {str(i): dictionary.origin for i, dictionary in enumerate(dictionaries) if dictionary.origin is not None}
    if not origins:
        return tuple(dictionaries)
    now = contents(
        {name: origin.module for name, origin in origins.items()},
        {name: origin.functions for name, origin in origins.items()},
    )
    changed = {name for name, origin in origins.items() if now[name] != origin.content}
    of_layers = [name for name in origins if dictionaries[int(name)].cross_layer is not None]
    out = list(dictionaries)
    for name in changed.difference(of_layers):
        origin = origins[name]
        out[int(name)] = load_dictionary(origin.source, dtype=origin.dtype, norm_factor=origin.norm_factor)
    if changed.intersection(of_layers):  # which share latents
        reloaded = load_all([origins[name].source for name in of_layers], dtype=origins[of_layers[0]].dtype)
        for name, dictionary in zip(of_layers, reloaded, strict=True):
            out[int(name)] = dictionary
    return tuple(out)


def _with_factors(dictionary: Dictionary, norm_factor: float | str | None) -> Dictionary:
    """The dictionary with what its activations were multiplied by folded into its weights."""
    two = dictionary.is_transcoder or "transcoder" in dictionary.architecture
    form = "IN:OUT, each " if two else ""
    if norm_factor is None:
        raise UserError(
            f"{dictionary.name} was trained on normalised activations "
            f"(normalize_activations=expected_average_only_in) and its factor is not known: its output would "
            f"be silently wrong. Give norm_factor={form}sqrt(d_in)/(mean norm of the activations); "
            f"'sae-lm-eval inspect --text FILE' estimates it."
        )
    factors = factors_of(norm_factor)
    if len(factors) != 1 + two:
        what = "IN:OUT, a factor each for where it reads and where it writes" if form else "one factor above 0"
        raise UserError(f"norm_factor={norm_factor} does not fit {dictionary.name}: give {what}.")
    module: Any = dictionary.module
    if two:
        saelens_object.fold_factors(module, *factors)
    else:
        module.fold_activation_norm_scaling_factor(*factors)
    remark = f"activations scaled by norm_factor={norm_factor}"
    return replace(dictionary, needs_norm_factor=False, remarks=(*dictionary.remarks, remark))


def load_as_released(source: Any) -> tuple[Dictionary, ...]:
    """The dictionaries as they were released, in their own dtype; see `load_dictionaries`."""
    source = SaeSpec.parse(source) if isinstance(source, str) else source
    if isinstance(source, SaeSpec):
        other = loaders_of_others().get(source.loader)
        loaded = LOADERS[source.loader](source) if other is None else _from_package(other, source)
        return loaded if isinstance(loaded, tuple) else (loaded,)
    return (_one_as_released(source),)


def _one_as_released(source: Any) -> Dictionary:
    if isinstance(source, Dictionary):
        forgotten = not source.sequential and attends_over_positions(source.module)
        return _copied(replace(source, sequential=True) if forgotten else source)[0]
    if (from_object := _of_library(source)) is not None:
        return from_object(snapshot(source)[0])
    if is_own(source):
        return from_own(source)
    what = f"The class {source.__name__}" if isinstance(source, type) else f"A {type(source).__name__}"
    raise UserError(
        f"{what} is no dictionary. Give a spec, a SAELens SAE, a sparsify SparseCoder, a sae_lm_eval.Dictionary, "
        f"or a module or function that maps activations to activations."
    )


def _from_python(spec: SaeSpec) -> Dictionary:
    """What a function of the user's own makes, under the name of its spec."""
    result, checksum = made_by(spec)
    dictionary = _as_dictionary(result, spec, checksum)
    remark = f"made by Python of the user's own, {spec.source}"
    return replace(dictionary, revision=dictionary.revision or checksum, remarks=(*dictionary.remarks, remark))


def _from_package(loader: EntryPoint, spec: SaeSpec) -> Dictionary:
    """What the loader of another package makes of a spec."""
    package = f"{loader.dist.name} {loader.dist.version}" if loader.dist is not None else loader.value
    try:
        result = loader.load()(spec)
    except UserError:
        raise
    except Exception as error:  # of somebody else's package, whatever it raises
        raise UserError(
            f"The loader '{loader.name}' of {package} cannot load '{spec}': {type(error).__name__}: {first_line(error)}"
        ) from error
    dictionary = _as_dictionary(result, spec, package)
    return replace(dictionary, remarks=(*dictionary.remarks, f"loaded by {package}"))


def _as_dictionary(result: Any, spec: SaeSpec, source: str | None) -> Dictionary:
    """What code that is not this package's made of a spec; `source` stands for that code."""
    if isinstance(result, str | SaeSpec):
        raise UserError(f"'{spec}' gives the text '{result}', where it must give a module, a function or a Dictionary.")
    if is_own(result) and not isinstance(result, Dictionary) and _of_library(result) is None:
        return from_own(result, name=str(spec), source=source)
    return replace(_one_as_released(result), name=str(spec))


def _of_library(source: Any) -> Callable[[Any], Dictionary] | None:
    """What makes a dictionary of an object, where it is of a library whose objects are known."""
    names = [cls.__module__ for cls in type(source).__mro__]
    return next(
        (converter for prefix, converter in OBJECTS.items() if any(name.startswith(prefix) for name in names)), None
    )


def _copied(*dictionaries: Dictionary) -> list[Dictionary]:
    """Copies that share what the dictionaries share."""
    _, memo = snapshot(nn.ModuleList([dictionary.module for dictionary in dictionaries]))
    return [_of_copies(dictionary, memo) for dictionary in dictionaries]


def _of_copies(dictionary: Dictionary, memo: Memo) -> Dictionary:
    module = memo[id(dictionary.module)]
    parts: dict[str, Any] = {name: memo.get(id(getattr(dictionary, name))) for name in ("latent_module", "cross_layer")}
    given = {name: getattr(dictionary, name) for name in ("reconstruct", "encode", "decode", "formula")}
    functions: dict[str, Any] = {name: None if f is None else rebound(f, memo) for name, f in given.items()}
    return replace(dictionary, module=module, **parts, **functions)


LOADERS: dict[str, Callable[[SaeSpec], Dictionary | tuple[Dictionary, ...]]] = {
    "saelens": saelens_loader.load_saelens,
    "sparsify": sparsify_loader.load_sparsify,
    "dictionary_learning": dictionary_learning_loader.load_dictionary_learning,
    "circuit_tracer": circuit_tracer_loader.load_circuit_tracer,
    "llama_scope": llama_scope_loader.load_llama_scope,
    CROSS_LAYER: load_cross_layer,
    PYTHON: _from_python,
}
OBJECTS: dict[str, Callable[[Any], Dictionary]] = {
    "sae_lens.": lambda sae: saelens_object.from_sae(sae, name=f"<{type(sae).__name__}>"),
    "sparsify.": lambda coder: sparsify_loader.from_coder(coder, name=f"<{type(coder).__name__}>", hookpoint=None),
}
