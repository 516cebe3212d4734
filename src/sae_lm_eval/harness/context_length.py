"""How many tokens a model reads, by its configuration; torch is not needed for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sae_lm_eval.errors import UserError

LENGTHS = ("n_positions", "max_position_embeddings", "n_ctx")  # in the order in which lm_eval asks for them


def stated(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """The first of `names` that a configuration, or that of the language model inside, has as a whole number."""
    for part in (config.get("text_config") or {}, config):
        for name in names:
            value = part.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None


def check_length(model_args: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise `UserError` where `max_length` is more than the model reads, by its configuration or `--model_args`."""
    max_length, most = model_args.get("max_length"), stated(model_args, LENGTHS) or stated(config, LENGTHS)
    if max_length is not None and most is not None and int(max_length) > most:
        raise UserError(
            f"max_length={max_length} is more than the {most:,} tokens that {model_args['pretrained']} reads by its "
            f"configuration. Where it reads more, say so: max_position_embeddings={max_length}."
        )
