"""Which variants of a run compute the same, so that one of them is evaluated for all."""

from __future__ import annotations

import json
from typing import Any

from sae_lm_eval.catalog import lookup
from sae_lm_eval.catalog.hub_headers import with_headers
from sae_lm_eval.catalog.lookup import DictionaryFacts
from sae_lm_eval.dictionaries.spec import SaeSpec
from sae_lm_eval.dictionaries.untrained import rule_of
from sae_lm_eval.errors import UserError
from sae_lm_eval.runs.asked import VariantRequest
from sae_lm_eval.runs.object_names import is_object
from sae_lm_eval.splicing.layer_choice import layers_of
from sae_lm_eval.splicing.splice_arguments import OF_SITES


def variant_identity(request: VariantRequest, read: dict[str, DictionaryFacts]) -> str:
    """Equal for variants that compute the same: where a mode depends on the sites alone, its dictionaries do not.

    `read` holds what is known of dictionaries by their specs, and is added to.
    """
    arguments = dict(request.arguments)
    if arguments.get("splice", "reconstruction") in OF_SITES:
        specs = [source for source in request.sources if isinstance(source, str)]
        read |= {spec: _known_site(spec) for spec in specs if spec not in read}
        if len(specs) == len(request.sources) or arguments.get("hook") is not None:
            arguments = _by_sites(arguments, specs, read) or arguments
    return json.dumps(
        arguments, sort_keys=True, default=lambda value: f"{id(value)}" if is_object(value) else str(value)
    )


def _by_sites(arguments: dict[str, Any], specs: list[str], read: dict[str, DictionaryFacts]) -> dict[str, Any] | None:
    """What decides a mode that depends on the sites alone; None where they are not known."""
    own, layers = arguments.get("hook"), layers_of(arguments.get("splice_layers"))
    if layers is not None:
        if own is not None or layers.best is not None:
            return None
        specs = [spec for spec in specs if read[spec].layer in layers]
    sites = [read[spec].module_out or read[spec].hook_out for spec in specs]
    sites = sites if own is None else [each.rsplit(":", 1)[-1] for each in str(own).split("+")]
    if not sites or not all(sites):
        return None
    # At the first positions that one of them was not trained on, the modes do nothing.
    rules = [rule_of(parsed.source, parsed.id) for parsed in map(SaeSpec.parse, specs)]
    return {
        **{name: arguments.get(name) for name in ("splice", "splice_tokens", "mean_text", "mean_tokens", "peft")},
        "untrained": sorted({rule.first for rule in rules if rule}),
        "scale": float(arguments.get("scale", 1)) if arguments["splice"] != "none" else 1.0,
        "sites": sorted(map(str, sites)),
    }


def _known_site(spec: str) -> DictionaryFacts:
    """Where a dictionary writes, by names or by its configuration on the hub, as far as these tell."""
    facts = lookup.facts_of(spec)
    try:
        return facts if facts.hook_out else with_headers(facts)
    except UserError:
        return facts  # what is wrong with it is told when it is looked for
