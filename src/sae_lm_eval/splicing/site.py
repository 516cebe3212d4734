"""Hook name + model -> site: where an activation is read and where it is written."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sae_lm_eval.errors import UserError, did_you_mean
from sae_lm_eval.splicing.hook_names import BLOCK_HOOKS, Architecture, blocks_path
from sae_lm_eval.splicing.module_io import ModuleSide, has_module

BLOCK_HOOK = re.compile(r"blocks\.(\d+)\.(.+)")
EMBED_HOOKS = ("hook_embed", "embed.hook_out")
SAME_HOOK = {"hook_z": "attn.hook_z"}
MODULE_PATHS = 10**9  # in the order of sites, as if behind the last layer


@dataclass(frozen=True)
class Site:
    """A place in a model where activations of one kind pass.

    `read` is where the activation can be seen. `write` is where an edited one goes in, None where none can.
    Where `residual` is given, what passes `write` is the activation less what passes `residual`: the stream
    between attention and MLP is never an argument of its own, so an edit of it goes into the attention branch.
    """

    hook: str
    kind: str
    layer: int | None
    read: ModuleSide
    write: ModuleSide | None
    residual: ModuleSide | None = None

    @property
    def order(self) -> tuple[int, int]:
        """Sorts sites as a forward pass comes to them; embeddings first, module paths last."""
        if self.kind in EMBED_HOOKS:
            return (-1, 0)
        if self.layer is None or self.kind not in BLOCK_HOOKS:
            return (MODULE_PATHS, 0)
        return (self.layer, BLOCK_HOOKS.index(self.kind))


def resolve_site(architecture: Architecture, hook: str, module_hook: str | None = None) -> Site:
    """The site that `hook` names in the model: a TransformerLens hook, or a module path with `.input` or `.output`.

    `module_hook` is the module path that a release states beside its TransformerLens name; it wins, since
    TransformerLens' names are ambiguous for some architectures.

    Raises `UserError` for an unknown hook, a layer out of range, or a hook that the block does not have.
    """
    match = BLOCK_HOOK.fullmatch(hook)
    kind = SAME_HOOK.get(match[2], match[2]) if match else hook
    layer = int(match[1]) if match else None
    if module_hook is not None:
        port = module_port(architecture, module_hook)
        if port is None:
            raise UserError(f"{architecture.name} has no module '{module_hook}', where '{hook}' was trained.")
        return Site(hook, kind, layer, port, port)
    if hook in EMBED_HOOKS:
        return Site(hook, EMBED_HOOKS[0], None, architecture.embedding, architecture.embedding)
    if layer is None:
        port = module_port(architecture, hook)
        if port is None:
            raise UserError(
                f"{architecture.name} has no hook '{hook}'. Give a TransformerLens hook such as "
                f"blocks.0.hook_resid_post, or a module of the model with .input or .output behind it."
            )
        return Site(hook, "module", None, port, port)
    if layer >= architecture.layers:
        raise UserError(f"{architecture.name} has no hook '{hook}'. Layers run from 0 to {architecture.layers - 1}.")
    port = architecture.port(kind, layer)
    if port is None:
        have = architecture.hooks(layer)
        raise UserError(
            f"{architecture.name} has no hook '{hook}'.{did_you_mean(kind, have)} Layer {layer} has {', '.join(have)}."
        )
    if kind == "hook_resid_mid":
        # The block has stored the residual by the time its second norm reads it.
        branch, stream = architecture.port("hook_attn_out", layer), architecture.port("hook_resid_pre", layer)
        return Site(hook, kind, layer, port, branch if stream else None, stream)
    return Site(hook, kind, layer, port, None if port.side == "normalized" else port)


def writable_port(architecture: Architecture, site: Site) -> ModuleSide:
    """`site.write`. Raises `UserError` where it is None, naming the hooks that can be written."""
    if site.write is not None:
        return site.write
    layer = site.layer or 0
    able = [
        hook
        for hook in architecture.hooks(layer)
        if resolve_site(architecture, f"blocks.{layer}.{hook}").write is not None
    ]
    raise UserError(
        f"'{site.hook}' of {architecture.name} can be read but not written. "
        f"Layer {layer} can be written at {', '.join(able)}."
    )


def module_port(architecture: Architecture, hook: str) -> ModuleSide | None:
    """The port that a module path means; without `.input` or `.output` it is the module's output."""
    path, _, side = hook.rpartition(".")
    if side not in ("input", "output"):
        path, side = hook, "output"
    model = architecture.model
    # What is wrapped around the model by adapters or compilation has longer paths.
    path = path.removeprefix("_orig_mod.").removeprefix("base_model.model.")
    candidates = [path, f"{getattr(model, 'base_model_prefix', '')}.{path}"]
    blocks = blocks_path(model)
    if blocks and (match := re.fullmatch(r"(?:model\.)?(?:language_model\.)?(?:model\.)?layers\.(\d+)(.*)", path)):
        # Inside a multimodal class the text model's layers lie deeper than in a class of their own.
        candidates.append(f"{blocks}.{match[1]}{match[2]}")
    module_path = next((candidate for candidate in candidates if candidate and has_module(model, candidate)), None)
    return None if module_path is None else ModuleSide(module_path, "input" if side == "input" else "output")
