"""Where nobody says how TransformerLens loaded the model that a dictionary was trained on, and it matters."""

from __future__ import annotations

from sae_lm_eval.files.logs import logger_of
from sae_lm_eval.splicing.activation_map import CENTERED_KINDS
from sae_lm_eval.splicing.hook_names import Architecture
from sae_lm_eval.splicing.site import Site
from sae_lm_eval.splicing.splice import Splice

logger = logger_of(__name__)


def warn_of_unstated_processing(architecture: Architecture, splice: Splice) -> None:
    """Say that the activation map is a guess, where the options that are not stated could ask for another one."""
    dictionary = splice.dictionary
    if "processing" not in dictionary.not_stated:
        return
    sites = {splice.site_in.hook: splice.site_in, splice.site_out.hook: splice.site_out}
    doubtful = [hook for hook, site in sites.items() if depends_on_processing(architecture, site)]
    if doubtful:
        logger.warning(
            "%s: how TransformerLens loaded its model is not stated, so its activations at '%s' are taken as they are "
            "(hook_map=raw). hook_map= states another map; 'sae-lm-eval inspect --text FILE' shows which one fits.",
            dictionary.name,
            "' and '".join(doubtful),
        )


def depends_on_processing(architecture: Architecture, site: Site) -> bool:
    """Whether TransformerLens' loading options can change the activations at `site` of this model.

    Centring moves the residual stream of models with LayerNorm; folding moves `hook_z` where the block has biases, and
    what enters an MLP in every model, since the gain of the norm before it goes into the MLP's weights.
    """
    if site.kind in CENTERED_KINDS:
        return architecture.layer_norm
    if site.kind == "attn.hook_z" and site.layer is not None:
        block = architecture.model.get_submodule(f"{architecture.blocks_path}.{site.layer}")
        return any(name.rpartition(".")[2] == "bias" for name, _ in block.named_parameters())
    return site.kind == "mlp.hook_in"
