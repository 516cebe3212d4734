"""A model as shapes alone, for what needs no weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sae_lm_eval import world
from sae_lm_eval.errors import UserError, first_line
from sae_lm_eval.runtime.host_memory import raise_if_out_of_memory


def skeleton(model_args: Mapping[str, Any]) -> torch.nn.Module:
    """The model that `--model_args` name, with shapes and no weights."""
    import transformers

    pretrained = model_args.get("pretrained")
    if pretrained is None:
        raise UserError("pretrained= is missing: name a model, as in pretrained=gpt2.")
    name = pretrained
    if world.is_meant_by(pretrained):
        pretrained = world.model_path()
    options = {name: model_args[name] for name in ("revision", "trust_remote_code", "subfolder") if name in model_args}
    try:
        config = transformers.AutoConfig.from_pretrained(pretrained, **options)
        config._name_or_path = str(name)  # as messages call it
        # Without it transformers does not look for padding among the ids, which have no values on the meta device.
        config.pad_token_id = config.get_text_config().pad_token_id = None
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(config).eval()
    except Exception as error:  # whatever a configuration of somebody else's makes transformers raise
        raise_if_out_of_memory(error)
        raise UserError(f"There is no causal language model '{pretrained}': {first_line(error)}") from error
