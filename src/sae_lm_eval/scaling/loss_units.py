"""Whether two losses are in the same unit, and whether a loss is one that models of a size have on a text.

A loss in nats per token depends on how many bytes a token has: nats per byte times bytes per token.
"""

from __future__ import annotations

from dataclasses import replace

from sae_lm_eval.scaling.estimate import Draws
from sae_lm_eval.scaling.family import Family
from sae_lm_eval.scaling.ladder import ladder_law, ladder_texts
from sae_lm_eval.scaling.laws import Law
from sae_lm_eval.scaling.original_model import Original

# Tokenizers of 32,000 to 256,000 tokens and contexts of 1,024 or more move the loss of a text by less than this factor.
PLAUSIBLE = 1.25


def in_units_of(curve: Law | Family, original: Original, draws: Draws) -> tuple[Draws, tuple[str, ...]]:
    """The rise of the loss in nats per token of the curve's tokenizer, and what is to be said of it.

    Converted by bytes per token where both are known; as it is, with a flag, where the tokenizers may differ.
    """
    if original.tokenizer and original.tokenizer == curve.tokenizer:
        return draws, ()
    if original.bytes_per_token is not None and curve.bytes_per_token is not None:
        factor = curve.bytes_per_token / original.bytes_per_token
        delta = replace(draws.delta, value=draws.delta.value * factor)
        flag = (
            f"delta CE is converted to the curve's tokens of {curve.bytes_per_token:.3g} bytes from the model's of "
            f"{original.bytes_per_token:.3g}: times {factor:.3g}"
        )
        return replace(draws, delta=delta, deltas=draws.deltas * factor), (flag,)
    theirs, own = (source.tokenizer or "a tokenizer not named" for source in (curve, original))
    return draws, (
        f"losses are per token, here of {own} and on the curve of {theirs}: delta CE is not converted, for bytes per "
        "token are not known of both",
    )


def unusual_baseline(original: Original, baseline: float | None, text: str | None) -> tuple[str, ...]:
    """A flag where no model of that size has such a loss on the text, or on any text of the OLMo ladder.

    The ladder's fits say what models of a size have; the loss may be off theirs by `PLAUSIBLE`.
    """
    params = original.params_non_embedding or original.params
    if baseline is None or params is None or original.tokens is None:
        return ()
    losses = [float(ladder_law(name).loss(params, original.tokens)) for name in ((text,) if text else ladder_texts())]
    low, high = min(losses), max(losses)
    if low / PLAUSIBLE <= baseline <= high * PLAUSIBLE:
        return ()
    expected = f"{low:.3g}" if text else f"{low:.3g} to {high:.3g}"
    return (
        f"a baseline CE of {baseline:.4g} is not what a model of {params:.3g} parameters and {original.tokens:.3g} "
        f"tokens has on {text or 'any text of the OLMo ladder'}, about {expected} nats/token: check text, unit "
        "and context",
    )
