"""Which module of a Hugging Face model a TransformerLens hook name means.

TransformerLens keeps, for some 150 architectures, an adapter that maps its component names to Hugging Face
module paths. This is the only module that reads those adapters.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

from torch import nn

from sae_lm_eval.errors import UserError
from sae_lm_eval.splicing.module_io import Port, Side, has_module

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
        config = build_bridge_config_from_hf(self.model.config, class_name, self.name, dtype)
        try:
            adapter = ArchitectureAdapterFactory.select_architecture_adapter(config)
        except ValueError as error:
            raise UserError(
                f"{self.name} is a {class_name}, for which TransformerLens has no hook names. "
                f"Give the site as a module of the model, as in hook=model.layers.3.output."
            ) from error
        return dict(adapter.get_component_mapping())

    @property
    def blocks_path(self) -> str:
        return self._components["blocks"].name

    @cached_property
    def layers(self) -> int:
        """How many blocks there are."""
        return sum(1 for _ in self.model.get_submodule(self.blocks_path).children())

    @property
    def embedding(self) -> Port:
        return Port(self._components["embed"].name, "output")

    @property
    def layer_norm(self) -> bool:
        """Whether the norms of the text model subtract the mean; a vision tower's do not count."""
        return isinstance(self.model.get_submodule(self._components["ln_final"].name), nn.LayerNorm)

    def port(self, hook: str, layer: int) -> Port | None:
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
        port = Port(".".join(path), side)
        return port if has_module(self.model, port.path) else None

    def hooks(self, layer: int) -> list[str]:
        """Every hook that block `layer` has."""
        return [hook for hook in BLOCK_HOOKS if self.port(hook, layer) is not None]

    def value_projection(self, layer: int) -> tuple[nn.Module, nn.Module, Literal["qkv", "v"]]:
        """The norm before attention, the projection that makes the values, and its kind: "v" alone, or "qkv" fused."""
        attention = self._components["blocks"].submodules["attn"]
        block = self.model.get_submodule(f"{self.blocks_path}.{layer}")
        norm = block.get_submodule(self._components["blocks"].submodules["ln1"].name)
        for kind in ("qkv", "v"):
            if kind in attention.submodules:
                path = f"{attention.name}.{attention.submodules[kind].name}"
                if has_module(block, path):
                    return norm, block.get_submodule(path), kind
        raise UserError(f"{self.name} has no projection that makes attention values in layer {layer}.")


def _alias(component: Any, hook: str) -> str | None:
    alias = component.hook_aliases.get(hook)
    return alias[0] if isinstance(alias, list) else alias


def model_name(model: nn.Module) -> str:
    """What the model was loaded from, or its class where it was made from a configuration."""
    return getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__
