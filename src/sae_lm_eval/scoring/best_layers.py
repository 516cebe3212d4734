"""Which layers of a variant cost least: each is spliced in alone, in forked passes over a text."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sae_lm_eval.errors import UserError
from sae_lm_eval.runtime import text_files
from sae_lm_eval.runtime.content import contents
from sae_lm_eval.scoring.loaded_model import LoadedModel
from sae_lm_eval.scoring.request import Query, ScoreRequest, Scores
from sae_lm_eval.scoring.scorer import Scorer
from sae_lm_eval.scoring.tokenization import Tokenization
from sae_lm_eval.splicing.activations import record_of_windows
from sae_lm_eval.splicing.splice import Splice, Variant
from sae_lm_eval.splicing.variants import provenance_of

TOKENS = 4096
AT_ONCE = 12  # layers that are scored in one forked pass


def best_layers(
    loaded: LoadedModel, tokens: Tokenization, variant: Variant, count: int, text: str, context: int
) -> tuple[list[int], dict[str, Any]]:
    """Which splices of the variant, by number, are in its `count` cheapest layers; and a record.

    The cheapest are those whose reconstructions cost least where no other layer has any.

    A cost is the mean KL from the untouched model over the tokens of `text` that are predicted, in nats; of equal ones
    the earlier layer counts as cheaper. Windows have up to `context` tokens.

    Raises `UserError` where there are fewer layers, the model cannot be scored in shared passes, or a cost is nan.
    """
    layers: dict[str, list[Splice]] = defaultdict(list)
    for splice in variant.in_order():
        layers[splice.site_out.hook if splice.site_out.layer is None else str(splice.site_out.layer)].append(splice)
    if count > len(layers):
        raise UserError(f"splice_layers=best:{count}: there are {len(layers)} layers to choose from.")
    windows = tokens.windows(text_files.read_documents(text, tokens=TOKENS), length=context, tokens=TOKENS)
    key = _key(loaded, variant, windows)
    if key not in loaded.layer_costs:
        alone = [replace(variant, splices=tuple(some)).in_mode("reconstruction") for some in layers.values()]
        loaded.layer_costs[key] = _costs(loaded, alone, windows)
    costs = dict(zip(layers, loaded.layer_costs[key], strict=True))
    if undefined := [layer for layer, cost in costs.items() if not math.isfinite(cost)]:
        raise UserError(f"The KL of layer {undefined[0]} alone is nan on '{text}', so that no layers are the best.")
    chosen = {
        id(splice) for layer in sorted(layers, key=lambda layer: costs[layer])[:count] for splice in layers[layer]
    }
    record = {"text": text, **record_of_windows(windows), "kl_alone": costs}
    return [place for place, splice in enumerate(variant.splices) if id(splice) in chosen], record


def _costs(loaded: LoadedModel, alone: Sequence[Variant], windows: Sequence[Sequence[int]]) -> list[float]:
    """Mean KL of each variant, in nats a token."""
    settings, layout = loaded.settings, None
    request = ScoreRequest([Query(ids[:-1], ids[1:]) for ids in windows if len(ids) > 1], greedy=False)
    targets = sum(len(query.targets) for query in request.queries)
    costs: list[float] = []
    for start in range(0, len(alone), AT_ONCE):
        some = alone[start : start + AT_ONCE]
        sums = np.zeros(len(some))

        def add(by_number: Mapping[int, Scores], sums: np.ndarray = sums) -> None:
            for scores in by_number.values():
                sums += scores.measures["kl"].sum(1, dtype=np.float64)

        try:
            dtype = settings.softmax_dtype or torch.float32
            how = {"rows": settings.rows, "limit": settings.max_length, "dtype": dtype, "layout": layout}
            scorer = Scorer(loaded.model, some, **how)
            with loaded.autocast():
                layout = scorer.layout
                scorer.score(request, add)
        except ValueError as error:
            raise UserError(f"splice_layers=best: scores layers in shared passes, and here {error}.") from error
        costs += (sums / targets).tolist()
    return costs


def _key(loaded: LoadedModel, variant: Variant, windows: Sequence[Sequence[int]]) -> str:
    """Of all that the costs depend on."""
    modules = {str(number): splice.dictionary.module for number, splice in enumerate(variant.splices)}
    functions = {str(number): splice.dictionary.functions for number, splice in enumerate(variant.splices)}
    content = contents({"model": loaded.wrapped, **modules}, functions)
    reconstruction = variant.in_mode("reconstruction")
    what = [
        {name: vars(part) for name, part in content.items()},
        provenance_of(reconstruction, [content[name].weights for name in modules]),
        [splice.scale for splice in variant.splices],
        [str(splice.edits) for splice in variant.splices],
        [sorted(variant.special_ids), variant.reads_clean],
        record_of_windows(windows),
    ]
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()
