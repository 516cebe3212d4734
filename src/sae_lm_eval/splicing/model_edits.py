"""The edit that is asked for + a model -> the modules that it changes, tried before anything is evaluated."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sae_lm_eval.dictionaries import python_loader
from sae_lm_eval.dictionaries.snapshots import snapshot
from sae_lm_eval.dictionaries.spec import PYTHON
from sae_lm_eval.errors import UserError, did_you_mean, first_line
from sae_lm_eval.files.reading import at_home
from sae_lm_eval.runtime.content import contents
from sae_lm_eval.splicing.edit_spec import OWN, Edit, check_layers
from sae_lm_eval.splicing.hook_names import blocks_path, model_name
from sae_lm_eval.splicing.module_edits import Edited, ModuleEdit
from sae_lm_eval.splicing.splice import Variant
from sae_lm_eval.splicing.weight_edits import low_rank, noised, normal_float, pruned, quantized

ATTENTION = re.compile("attention|attn", re.IGNORECASE)
TRIED = [[0, 1], [1, 0]]  # token ids
Passed = tuple[tuple, dict[str, Any], Any]  # the arguments of a module, those by name, and what it gave


def linear_layers(model: nn.Module, weights: str) -> dict[str, nn.Module]:
    """The linear layers in the blocks of a model, by their paths: those of its MLPs, of its attention, or all.

    An MLP's is any that is in no module of attention. Raises `UserError` where there are none.
    """
    from transformers.pytorch_utils import Conv1D

    blocks = blocks_path(model)
    if blocks is None:
        raise UserError(f"{model_name(model)} has no list of blocks whose linear layers could be edited.")
    kinds = {path: type(module).__name__ for path, module in model.named_modules()}
    layers: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        if not path.startswith(f"{blocks}.") or not isinstance(module, nn.Linear | Conv1D) or ".lora_" in path:
            continue
        above = [path[: dot.start()] for dot in re.finditer(r"\.", path) if dot.start() > len(blocks)]
        attends = any(ATTENTION.search(kinds[parent]) for parent in above)
        if weights in ("all", "attention" if attends else "mlp"):
            layers[path] = module
    if not layers:
        which = "" if weights == "all" else f" of weights={weights}"
        raise UserError(f"{model_name(model)} has no linear layers{which} that could be edited one by one.")
    _refuse_other_weights(model, layers, blocks, weights)
    for path, module in layers.items():
        if not isinstance(module.weight, Tensor) or not module.weight.is_floating_point():
            raise UserError(f"The weights of '{path}' are packed ({module.weight.dtype}): load the model without that.")
    return layers


def _refuse_other_weights(model: nn.Module, layers: Mapping[str, nn.Module], blocks: str, weights: str) -> None:
    """Raise `UserError` where experts hold more weights than the linear layers do: little would be edited."""
    if weights == "attention":
        return
    linear = sum(module.weight.numel() for module in layers.values())  # pyright: ignore[reportCallIssue]
    stacked = sum(p.numel() for name, p in model.named_parameters() if name.startswith(f"{blocks}.") and p.ndim > 2)
    if stacked > linear:
        raise UserError(
            f"Most weights of {model_name(model)} are those of experts that lie in one tensor, and not linear layers: "
            f"edit them by edit=python:FILE.py:FUNCTION."
        )


def code_checksum(edit: Edit) -> str | None:
    """Of the file of a function that an edit names, None where it names none."""
    if edit.kind != PYTHON:
        return None
    place, _ = python_loader.python_source_parts(edit.source)
    return python_loader.checksum_of(at_home(place))


def edited_bytes(model: nn.Module, edit: Edit) -> int:
    """What the edited weights take. Raises `UserError` as `module_edits`."""
    if edit.kind in (PYTHON, OWN):
        edited = Edited(module_edits(model, edit))
        return sum(tensor.numel() * tensor.element_size() for tensor in (*edited.parameters(), *edited.buffers()))
    if edit.kind == "skip":
        _blocks(model, edit)
        return 0
    layers = linear_layers(model, edit.values["weights"]).values()
    return sum(module.weight.numel() * module.weight.element_size() for module in layers)  # pyright: ignore


def module_edits(model: nn.Module, edit: Edit) -> tuple[ModuleEdit, ...]:
    """What an edit changes of a model; of matrices that it leaves as they are to the bit, nothing.

    Raises `UserError` where the model has nothing of the kind, or what a function of the user's own gives cannot take
    the place of the model's.
    """
    if edit.kind in (PYTHON, OWN):
        return _of_own(model, edit)
    if edit.kind == "skip":
        return tuple(ModuleEdit(path) for path in _blocks(model, edit))
    change, edits = MATRICES[edit.kind], []
    for path, module in linear_layers(model, edit.values["weights"]).items():
        weight: Any = module.weight.detach()  # pyright: ignore[reportCallIssue]
        across = not isinstance(module, nn.Linear)  # transformers' Conv1D holds (d_in, d_out)
        new = change(weight.T if across else weight, edit.values, path)
        new = new.T.contiguous() if across else new
        if not new.is_meta and not torch.equal(new, weight):
            edits.append(ModuleEdit(path, {"weight": new}))
    return tuple(edits)


MATRICES: Mapping[str, Callable[[Tensor, Mapping[str, Any], str], Tensor]] = {
    "quantize": lambda weight, values, _path: quantized(weight, values["bits"], values["group"]),
    "nf4": lambda weight, values, _path: normal_float(weight, values["block"]),
    "prune": lambda weight, values, _path: pruned(weight, values["share"]),
    "lowrank": lambda weight, values, _path: low_rank(
        weight, values.get("rank") or round(values["share"] * min(weight.shape))
    ),
    "noise": lambda weight, values, path: noised(weight, values["std"], values["seed"], path),
}


def _blocks(model: Any, edit: Edit) -> list[str]:
    path = blocks_path(model)
    count = 0 if path is None else len(model.get_submodule(path))
    check_layers(edit, count, model_name(model))
    return [f"{path}.{layer}" for layer in edit.values["layers"]]


def _of_own(model: nn.Module, edit: Edit) -> tuple[ModuleEdit, ...]:
    """Of what a function of the user's own gives: a mapping of the model's modules and parameters to others."""
    before = contents({"": model})[""].weights
    if edit.kind == PYTHON:
        replacements, _ = python_loader.made_by(edit.source, model)
    else:
        try:
            replacements = edit.source(model)
        except Exception as error:  # of the user's own code, whatever it raises
            raise UserError(f"edit={edit} fails: {type(error).__name__}: {first_line(error)}") from error
    if contents({"": model})[""].weights != before:
        raise UserError(f"edit={edit} changes the model's weights in place: let it give new ones by their names.")
    if not isinstance(replacements, Mapping) or not replacements:
        raise UserError(
            f"edit={edit} gives a {type(replacements).__name__}: it must give a mapping of names of the model's "
            f"modules to modules, or of its parameters to tensors."
        )
    weights: dict[str, dict[str, Tensor]] = {}
    edits: dict[str, ModuleEdit] = {}
    for name, value in replacements.items():
        if isinstance(value, Tensor):
            owner, _, own = str(name).rpartition(".")
            weights.setdefault(owner, {})[own] = _weight(model, edit, str(name), value)
        else:
            edits[str(name)] = ModuleEdit(str(name), replacement=_replacement(model, edit, str(name), value))
    if both := sorted(weights.keys() & edits.keys()):
        raise UserError(f"edit={edit} gives both '{both[0]}' and parameters of it: give one of the two.")
    edits |= {owner: ModuleEdit(owner, own) for owner, own in weights.items()}
    changed = tuple(
        module_edit
        for module_edit in edits.values()
        if module_edit.replacement is not None or _differs(model, module_edit)
    )
    return _tried(model, edit, changed)


def _weight(model: nn.Module, edit: Edit, name: str, value: Tensor) -> Tensor:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    own = parameters.get(name)
    if own is None:
        names = list(parameters)
        raise UserError(f"edit={edit}: the model has no parameter '{name}'.{did_you_mean(name, names, most=1)}")
    if tied := next((other for other, parameter in parameters.items() if parameter is own and other != name), None):
        raise UserError(
            f"edit={edit}: '{name}' and '{tied}' are one parameter, and the edit would change one alone: "
            f"give a module in the place of '{name.rpartition('.')[0]}'."
        )
    if value.shape != own.shape:
        raise UserError(f"edit={edit}: '{name}' is {tuple(own.shape)}, and {tuple(value.shape)} is given for it.")
    if not value.isfinite().all():
        raise UserError(f"edit={edit} gives '{name}' values that are not finite.")
    return value.detach().to(own.device, own.dtype, copy=True)


def _differs(model: nn.Module, edit: ModuleEdit) -> bool:
    module = model.get_submodule(edit.path)
    return any(not torch.equal(getattr(module, name), new) for name, new in edit.weights.items())


def _replacement(model: nn.Module, edit: Edit, name: str, value: Any) -> Any:
    modules = dict(model.named_modules())
    if name not in modules or not name:
        raise UserError(f"edit={edit}: the model has no module '{name}'.{did_you_mean(name, modules, most=1)}")
    if not callable(value):
        raise UserError(f"edit={edit} gives a {type(value).__name__} for '{name}': a module or a tensor is needed.")
    if not isinstance(value, nn.Module):
        return value
    example = next((p for p in (*modules[name].parameters(), *model.parameters())), None)
    assert example is not None, "a model has parameters"
    return snapshot(value)[0].to(example.device, example.dtype).requires_grad_(False)


@torch.no_grad()
def _tried(model: Any, edit: Edit, edits: Sequence[ModuleEdit]) -> tuple[ModuleEdit, ...]:
    """The edits, with what cannot be in a pass that variants share set apart.

    Raises `UserError` where a replacement cannot stand for its module.
    """
    replaced = [module_edit for module_edit in edits if module_edit.replacement is not None]
    seen = passed_modules(model, [module_edit.path for module_edit in replaced])
    for module_edit in replaced:
        if module_edit.path not in seen:
            raise UserError(f"edit={edit}: nothing passes '{module_edit.path}' in a forward pass.")
        _try_one(edit, module_edit, *seen[module_edit.path])
    apart = paths_apart(model, [module_edit.path for module_edit in edits], seen)
    return tuple(replace(module_edit, is_apart=module_edit.path in apart) for module_edit in edits)


@torch.no_grad()
def passed_modules(model: Any, paths: Sequence[str]) -> dict[str, Passed]:
    """What modules are given and give in a short forward pass; those that nothing passes are left out."""
    seen: dict[str, Passed] = {}
    with ExitStack() as scope:
        for path in paths:
            keep = partial(_keep, seen, path)
            scope.callback(model.get_submodule(path).register_forward_hook(keep, with_kwargs=True).remove)
        model(input_ids=torch.tensor(TRIED, device=next(model.parameters()).device), use_cache=False)
    return seen


def paths_apart(model: Any, paths: Sequence[str], seen: Mapping[str, Passed]) -> set[str]:
    """The modules that no pass can run for some of its rows alone: the head, and those that give no single tensor."""
    head = model.get_output_embeddings()
    heads = {path for path, module in model.named_modules() if module is head}
    return {path for path in paths if path in heads or (path in seen and not isinstance(seen[path][2], Tensor))}


def _keep(seen: dict[str, Passed], path: str, _module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
    seen[path] = args, kwargs, output


def _try_one(edit: Edit, module_edit: ModuleEdit, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
    assert module_edit.replacement is not None
    path, expected = module_edit.path, _first_tensor(output)
    if expected is None:
        raise UserError(
            f"edit={edit}: '{path}' does not give a tensor, or a tuple that begins with one, as what can be "
            f"replaced does: replace modules in it."
        )
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    before = [value.clone() for value in given]
    try:
        result = module_edit.replacement(*args, **kwargs)
    except UserError:
        raise
    except Exception as error:  # of the user's own code, whatever it raises
        raise UserError(
            f"edit={edit}: what is given for '{path}' fails: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not all(map(torch.equal, before, given)):
        raise UserError(
            f"edit={edit}: what is given for '{path}' changes what it is given in place: let it make a new tensor."
        )
    new = result if isinstance(output, Tensor) and isinstance(result, Tensor) else None
    if not isinstance(output, Tensor) and isinstance(result, tuple | list) and len(result) == len(output):
        new = _first_tensor(result)
    if new is None or new.shape != expected.shape:
        raise UserError(f"edit={edit}: '{path}' gives {_shown(output)}, and its replacement {_shown(result)}.")
    if not new.isfinite().all():
        raise UserError(f"edit={edit}: what is given for '{path}' makes values that are not finite.")


def _first_tensor(output: Any) -> Tensor | None:
    """What a module gives, or the first of what it gives; None where that is no tensor of rows."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    return first if isinstance(first, Tensor) and first.ndim > 1 else None


def _shown(output: Any) -> str:
    if isinstance(output, Tensor):
        return str(tuple(output.shape))
    first = _first_tensor(output)
    kind = f"a {type(output).__name__}"
    return kind if first is None else f"{kind} of {len(output)} that begins with {tuple(first.shape)}"


def edited_variant(model: nn.Module, edit: Edit) -> Variant:
    """The variant that an edit makes of a model. Raises `UserError` as `module_edits`."""
    edits = module_edits(model, edit)
    return Variant((), edits=edits, edit=edit_record(model, edit, edits))


def edit_record(model: nn.Module, edit: Edit, edits: Sequence[ModuleEdit]) -> dict[str, Any]:
    """What was edited, as plain values for a results file."""
    changed = [dict(model.get_submodule(module_edit.path).named_parameters()) for module_edit in edits]
    kept = [
        {name: own[name] for name in module_edit.weights} if module_edit.weights else own
        for module_edit, own in zip(edits, changed, strict=True)
    ]
    content = contents({"": Edited(edits)}, {"": Edited.functions(edits)})[""]
    return {
        "name": edit.name,
        "kind": edit.kind,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in edit.values.items()},
        "modules": len(edits),
        "parameters": sum(p.numel() for own in kept for p in own.values()),
        "weights_checksum": content.weights,
    }
