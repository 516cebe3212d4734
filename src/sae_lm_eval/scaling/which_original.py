"""Which model the original is, and what is known of it: the one place where that is decided. Neither torch nor lm_eval.

What a user says wins, then the table of known models, then the curve that was measured beside the results, then what is
known of the embedded world.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

from sae_lm_eval import world
from sae_lm_eval.scaling.data_files import Row
from sae_lm_eval.scaling.loss_curves import MAIN
from sae_lm_eval.scaling.original_model import Original, OriginalNumbers, find_preset, get_original

COUNTED = "counted when the world was made"


def original_of(
    name: str, revision: str = MAIN, *, measured: Row | None = None, **numbers: Unpack[OriginalNumbers]
) -> Original:
    """The model of a hub name or path, at a revision. `measured` is its row in a curve beside the results.

    What nobody knows is None. Raises `UserError` for numbers that are not positive and for a `model` among the numbers
    that is not known.
    """
    if numbers.get("model"):
        return get_original(**numbers)
    given = get_original(**{**numbers, "flops": None})
    original = _known_original(name, revision, measured)
    if numbers.get("params") is not None:
        original = replace(original, params=given.params, params_non_embedding=None, params_source=given.params_source)
    if numbers.get("tokens") is not None:
        original = replace(original, tokens=given.tokens, tokens_status="given", tokens_source=given.tokens_source)
    original = replace(
        original,
        vocabulary=given.vocabulary or original.vocabulary,
        bytes_per_token=given.bytes_per_token or original.bytes_per_token,
    )
    flops = numbers.get("flops")
    return original if flops is None else original.with_flops(get_original(flops=flops).flops)


def _known_original(model: str, revision: str, measured: Row | None) -> Original:
    preset = find_preset(model)
    if preset is not None and revision == MAIN:
        return preset
    if measured is not None:
        return Original(
            name=model,
            params=float(measured["params"]),
            params_non_embedding=float(measured["params_non_embedding"]),
            params_source="counted in the loaded model",
            tokens=float(measured["tokens"]),
            tokens_source=str(measured["tokens_source"]),
            vocabulary=world.vocabulary_size() if world.is_meant_by(model) else None,
        )
    if not world.is_meant_by(model):
        name = model or Original.name
        return Original(name=name, params_source="not known", tokens_source="not known")
    main = world.world_facts()["family"][-1]
    return Original(
        name=model,
        params=float(main["parameters"]),
        params_non_embedding=float(main["non_embedding_parameters"]),
        tokens=float(main["tokens"]),
        params_source=COUNTED,
        tokens_source=COUNTED,
        vocabulary=world.vocabulary_size(),
    )
