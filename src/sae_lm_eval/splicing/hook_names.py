"""Which module of a Hugging Face model a TransformerLens hook name means.

TransformerLens keeps, for some 150 architectures, an adapter that maps its component names to Hugging Face
module paths. This is the only module that reads those adapters.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from sae_lm_eval.errors import UserError
from sae_lm_eval.splicing import norms
from sae_lm_eval.splicing.module_io import ModuleSide, Side, has_module

# What a block can be asked for by TransformerLens' names, in the order in which a forward pass comes to them.
BLOCK_HOOKS = (
    "hook_resid_pre",
    "ln1.hook_normalized",
    "attn.hook_z",
    "hook_attn_out",
    "hook_resid_mid",
    "hook_mlp_in",
    "ln2.hook_normalized",
    "mlp.hook_in",
    "hook_mlp_out",
    "hook_resid_post",
)
SIDES: dict[str, Side] = {"hook_in": "input", "hook_out": "output", "hook_normalized": "normalized"}


class Architecture:
    """The blocks of `model` under TransformerLens' names.

    Reading anything of it raises `UserError` where TransformerLens has no adapter for the model's class.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.name = model_name(model)

    @cached_property
    def _components(self) -> dict[str, Any]:
        from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf

        class_name = type(self.model).__name__
        dtype = next(self.model.parameters()).dtype
        try:
            # Of a configuration that it does not know, TransformerLens may look for what is not there.
            config = build_bridge_config_from_hf(self.model.config, class_name, self.name, dtype)
            return dict(ArchitectureAdapterFactory.select_architecture_adapter(config).get_component_mapping())
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            blocks = blocks_path(self.model)
            example = f", as in hook={blocks}.0.output" if blocks else " with .input or .output behind it"
            raise UserError(
                f"{self.name} is a {class_name}, for which TransformerLens has no hook names. "
                f"Give the site as a module of the model{example}."
            ) from error

    @property
    def blocks_path(self) -> str:
        return self._components["blocks"].name

    @cached_property
    def layers(self) -> int:
        """How many blocks there are."""
        return sum(1 for _ in self.model.get_submodule(self.blocks_path).children())

    @property
    def embedding(self) -> ModuleSide:
        return ModuleSide(self._components["embed"].name, "output")

    @cached_property
    def layer_norm(self) -> bool:
        """Whether the text model's norms subtract the mean: the last one, and the first block's first."""
        first = self._components["blocks"].submodules.get("ln1")
        paths = [self._components["ln_final"].name, first and f"{self.blocks_path}.0.{first.name}"]
        modules = [self.model.get_submodule(path) for path in paths if path and has_module(self.model, path)]
        width = cast(Any, self.model.config).get_text_config().hidden_size
        return bool(modules) and all(norms.subtracts_mean(norm, width) for norm in modules)

    def port(self, hook: str, layer: int) -> ModuleSide | None:
        """Where block `layer` has `hook` (without its `blocks.N.`), or None where it has no such hook."""
        component = self._components["blocks"]
        path = [component.name, str(layer)]
        if hook == "hook_mlp_in":
            # What enters the MLP's branch of the residual stream, before the norm.
            hook = _alias(component, "hook_resid_mid") or "ln2.hook_in"
        hook = _alias(component, hook) or hook
        while "." in hook:
            name, _, hook = hook.partition(".")
            component = component.submodules.get(name)
            if component is None or component.name is None:
                return None
            path.append(component.name)
            hook = _alias(component, hook) or hook
        side = SIDES.get(hook)
        if side is None or not hasattr(component, hook):
            return None
        port = ModuleSide(".".join(path), side)
        return port if has_module(self.model, port.path) else None

    def hooks(self, layer: int) -> list[str]:
        """Every hook that block `layer` has."""
        return [hook for hook in BLOCK_HOOKS if self.port(hook, layer) is not None]

    def bias_before_attention(self, layer: int, width: int) -> Tensor:
        """That of the norm before attention, (width,); zeros where there is no such norm or it has none."""
        norm = self._components["blocks"].submodules.get("ln1")
        path = None if norm is None else f"{self.blocks_path}.{layer}.{norm.name}"
        if path is None or not has_module(self.model, path):
            return torch.zeros(width)
        return norms.of_nothing(self.model.get_submodule(path), width)


def _alias(component: Any, hook: str) -> str | None:
    alias = component.hook_aliases.get(hook)
    return alias[0] if isinstance(alias, list) else alias


def model_name(model: nn.Module) -> str:
    """What the model was loaded from, or its class where it was made from a configuration."""
    return getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__


def blocks_path(model: Any) -> str | None:
    """Where the list of the text model's blocks is, None where there is not just one of the configured length."""
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    inside = set(model.get_decoder().modules())
    paths = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == layers and module in inside
    ]
    return paths[0] if len(paths) == 1 else None
