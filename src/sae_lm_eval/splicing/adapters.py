"""`peft=` of a variant: an adapter of PEFT's, such as a LoRA, loaded once, as edits of the modules that it wraps."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from sae_lm_eval.errors import UserError, error_sentence, first_line
from sae_lm_eval.runtime.content import contents
from sae_lm_eval.splicing.adapter_spec import FILE, AdapterSpec
from sae_lm_eval.splicing.hook_names import model_name
from sae_lm_eval.splicing.model_edits import passed_modules, paths_apart
from sae_lm_eval.splicing.module_edits import Edited, ModuleEdit
from sae_lm_eval.splicing.splice import Variant

HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
)


@dataclass(frozen=True, eq=False)
class AdapterEdit(ModuleEdit):
    """A layer of an adapter, the `replacement`, which calls the module that it wraps.

    That stands in `slot` of `owner`, a module of the layer, while the layer runs, and nothing at other times, so that
    the layer has the adapter's own weights alone. `owner` is None where the layer does without the module.
    """

    owner: nn.Module | None = None
    slot: str = ""

    def __call__(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        assert self.replacement is not None
        with self.wrapping(_bare(module, forward)):
            return self.replacement(*args, **kwargs)

    @contextmanager
    def wrapping(self, module: nn.Module) -> Iterator[None]:
        """Inside the scope the layer wraps a module."""
        if self.owner is None:
            yield
            return
        self.owner._modules[self.slot] = module
        try:
            yield
        finally:
            self.owner._modules[self.slot] = None


def _bare(module: nn.Module, forward: Callable[..., Any]) -> nn.Module:
    """A module with the weights of another and its `forward`, without its hooks: they are called around the layer."""
    bare = copy.copy(module)
    bare.__dict__ |= {name: OrderedDict() for name in HOOKS} | {"forward": forward}
    return bare


class LayerPlace(NamedTuple):
    """Where a layer of an adapter stands in the model, and the module that stands there without it."""

    parent: nn.Module
    name: str
    module: nn.Module
    edit: AdapterEdit


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter that was loaded for a model; `record` says which as plain values, for a results file."""

    places: tuple[LayerPlace, ...]
    record: Mapping[str, Any]

    @property
    def edits(self) -> tuple[AdapterEdit, ...]:
        return tuple(place.edit for place in self.places)

    @property
    def size(self) -> int:
        """The bytes of its weights."""
        return sum(tensor.numel() * tensor.element_size() for tensor in Edited(self.edits).state_dict().values())

    @contextmanager
    def put_on(self) -> Iterator[None]:
        """Inside the scope its layers are the model's modules, for what looks at weights; then all is as it was."""
        with ExitStack() as scope:
            for place in self.places:
                assert isinstance(place.edit.replacement, nn.Module)
                scope.enter_context(place.edit.wrapping(place.module))
                scope.callback(place.parent._modules.__setitem__, place.name, place.module)
                place.parent._modules[place.name] = place.edit.replacement
            yield

    def beside(self, variant: Variant) -> Variant:
        """A variant with the adapter. Raises `UserError` where it cannot be asked so."""
        both = replace(variant, edits=self.edits, adapter=self.record)
        if both.is_apart and both.reads_clean:
            raise UserError(
                f"splice_input=clean is not for a variant with peft={self.record['name']}, which takes passes of its "
                "own: leave one of them out."
            )
        return both


def load_adapter(model: Any, wrapped: Any, spec: AdapterSpec) -> Adapter:
    """The adapter as `PeftModel.from_pretrained` puts it on a model, which is then given back as it was.

    `wrapped` is what the model was loaded as. Raises `UserError` where there is no such adapter, or it does not fit.
    """
    if wrapped is not model:
        raise UserError(f"peft={spec} of a variant cannot be put beside the peft= of model_args: give one of the two.")
    if {"cpu", "disk"} & {str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()}:
        raise UserError(f"peft={spec} cannot be put on weights that are offloaded: give the model more memory.")
    config = _configuration(spec)
    before = contents({"": model})[""].weights
    with _giving_back(model) as children:
        injected = _injected(model, spec)
        changed = _changed(children)
        layers = [(path, parent, name, own, parent._modules[name]) for path, parent, name, own in changed]
    if contents({"": model})[""].weights != before:
        raise UserError(f"peft={spec} changes the model's own weights: save it as a plain LoRA, which does not.")
    del injected
    places = [_place(*layer) for layer in layers]
    if not places:
        raise UserError(f"peft={spec} is a {config.peft_type.value} adapter, which wraps no module of the model.")
    paths = [place.edit.path for place in places]
    apart = paths_apart(model, paths, passed_modules(model, paths))
    places = [place._replace(edit=replace(place.edit, is_apart=place.edit.path in apart)) for place in places]
    return Adapter(tuple(places), _record(spec, config, [place.edit for place in places]))


def _configuration(spec: AdapterSpec) -> Any:
    try:
        from peft import PeftConfig
    except ImportError as error:
        raise UserError("peft= needs the package peft: pip install peft.") from error
    try:
        config: Any = PeftConfig.from_pretrained(spec.place, **spec.options)
    except Exception as error:  # of a file of somebody else's, whatever it makes the library raise
        raise UserError(f"There is no adapter '{spec}' to load: {first_line(error)}") from error
    spec.check(config.to_dict())
    if config.is_prompt_learning:
        raise UserError(
            f"peft={spec} is a {config.peft_type.value} adapter, which adds virtual tokens: a variant takes adapters "
            "of weights, such as LoRA. As peft= in model_args it is part of the model itself."
        )
    return config


def _injected(model: Any, spec: AdapterSpec) -> Any:
    from peft import PeftModel

    options: dict[str, Any] = {**spec.options}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            injected = PeftModel.from_pretrained(model, spec.place, **options)
        except Exception as error:  # of a file of somebody else's, whatever it makes the library raise
            raise UserError(f"peft={spec} cannot be put on {model_name(model)}: {error_sentence(error)}") from error
    for warning in caught:
        if "missing adapter keys" in str(warning.message):
            raise UserError(
                f"peft={spec} lacks weights for {model_name(model)}: {str(warning.message).splitlines()[0]}"
            )
    return injected


@contextmanager
def _giving_back(model: nn.Module) -> Iterator[dict[str, tuple[nn.Module, dict[str, Any]]]]:
    """A scope after which the model is as it was; it is given the modules in each module of before, by path."""
    before = {path: (part, dict(part._modules)) for path, part in model.named_modules()}
    attributes, trained = dict(model.__dict__), [(p, p.requires_grad) for p in model.parameters()]
    training = [part for part in model.modules() if part.training]
    config: Any = getattr(model, "config", None)
    parallel = getattr(config, "pretraining_tp", None)
    try:
        yield before
    finally:
        for part, children in before.values():
            part._modules.clear()
            part._modules.update(children)
        for parameter, own in trained:
            parameter.requires_grad_(own)
        for part, _ in before.values():
            part.training = False
        for part in training:
            part.training = True
        for name in [name for name in model.__dict__ if name not in attributes]:
            del model.__dict__[name]
        model.__dict__.update(attributes)
        if parallel is not None:
            config.pretraining_tp = parallel


def _changed(
    before: Mapping[str, tuple[nn.Module, Mapping[str, Any]]],
) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """Path, parent, name and the module of before, of each module in whose place another stands now."""
    for path, (parent, children) in before.items():
        for name, module in children.items():
            if module is not None and parent._modules.get(name) is not module:
                yield f"{path}.{name}" if path else name, parent, name, module


def _place(path: str, parent: nn.Module, name: str, module: nn.Module, layer: Any) -> LayerPlace:
    owner, slot = None, ""
    for part in layer.modules():
        for own, child in part._modules.items():
            if child is module:
                owner, slot = part, own
    if owner is not None:
        owner._modules[slot] = None
    layer.eval().requires_grad_(False)
    return LayerPlace(parent, name, module, AdapterEdit(path, replacement=layer, owner=owner, slot=slot))


def _record(spec: AdapterSpec, config: Any, edits: Sequence[AdapterEdit]) -> dict[str, Any]:
    settings = {name: getattr(config, name, None) for name in ("r", "lora_alpha")}
    content, commit = contents({"": Edited(edits)})[""], _commit(spec)
    return {
        "name": str(spec),
        "kind": config.peft_type.value,
        **{name: value for name, value in settings.items() if value is not None},
        "trained_on": config.base_model_name_or_path or None,
        **({} if commit is None else {"revision": commit}),
        "modules": len(edits),
        "parameters": sum(p.numel() for p in Edited(edits).parameters()),
        "weights_checksum": content.weights,
        "settings_checksum": hashlib.sha256(f"{content.computed} {content.settings}".encode()).hexdigest()[:32],
    }


def _commit(spec: AdapterSpec) -> str | None:
    """The commit of the hub's that was loaded, None for a folder."""
    from huggingface_hub import try_to_load_from_cache

    if spec.is_folder:
        return None
    cached = try_to_load_from_cache(spec.place, FILE, revision=spec.revision)
    return Path(cached).parent.name if isinstance(cached, str) else spec.revision
