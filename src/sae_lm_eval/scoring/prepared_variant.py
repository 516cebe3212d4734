"""The variant that is wanted of a loaded model, made of what model, tokenizer, dictionaries and text are now."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple

from sae_lm_eval.runtime import text_files
from sae_lm_eval.runtime.content import Content, contents
from sae_lm_eval.runtime.model_lock import lock_of
from sae_lm_eval.scoring.attention_kernels import attention_without_plans
from sae_lm_eval.scoring.best_layers import best_layers
from sae_lm_eval.scoring.identity import evaluating, text_content, tokenizer_content
from sae_lm_eval.scoring.loaded_model import LoadedModel
from sae_lm_eval.scoring.tokenization import Tokenization
from sae_lm_eval.splicing.activations import mean_activations, record_of_windows
from sae_lm_eval.splicing.arguments import RequestedSplices
from sae_lm_eval.splicing.model_edits import edited_variant
from sae_lm_eval.splicing.special_tokens import ordinary
from sae_lm_eval.splicing.splice import Variant
from sae_lm_eval.splicing.variants import build_variant, place_dictionaries, untrained_positions, with_means


class PreparedVariant(NamedTuple):
    """A variant, where its means were taken from, what it was made of: the model, the tokenizer and texts; and what
    each of its layers costs alone, where the best were to be found.
    """

    variant: Variant
    mean_source: dict[str, Any] | None
    made_of: tuple[Content, str, tuple[str | None, ...]]
    best_layers: dict[str, Any] | None = None


@attention_without_plans()
def prepare_variant(
    loaded: LoadedModel, tokens: Tokenization, wanted: RequestedSplices, context: int
) -> PreparedVariant:
    """The variant, with the means it may need of windows of `context` tokens. Raises `UserError` as `build_variant`."""
    with lock_of(loaded.model), evaluating(loaded.wrapped), ExitStack() as scope:
        if wanted.edit is not None:
            return PreparedVariant(edited_variant(loaded.model, wanted.edit), None, _made_of(loaded, tokens, wanted))
        adapter = None if wanted.adapter is None else loaded.adapter(wanted.adapter)
        layers, chosen, layers_record = wanted.choices.layers, None, None
        if layers is not None and layers.best is not None and wanted.layers_text is not None:
            plain = _placed(loaded, tokens, wanted)  # in the model without the adapter, whose KL decides
            chosen, layers_record = best_layers(loaded, tokens, plain, layers.best, wanted.layers_text, context)
        if adapter is not None:  # whose weights decide what activation maps shift by
            scope.enter_context(adapter.put_on())
        variant = _placed(loaded, tokens, wanted)
        for sentence in _surprises(variant, tokens):
            loaded.say_once(sentence, sentence)
        if chosen is not None:
            variant = replace(variant, splices=tuple(variant.splices[place] for place in chosen))
        mean_source = None
        if wanted.choices.splice == "mean" and wanted.mean_text is not None:
            texts = tokens.windows(
                text_files.read_documents(wanted.mean_text, tokens=wanted.mean_tokens),
                length=context,
                tokens=wanted.mean_tokens,
            )
            variant = with_means(variant, mean_activations(loaded.model, variant, texts, tokens.special_ids))
            mean_source = {"text": wanted.mean_text, **record_of_windows(texts)}
        variant = variant if adapter is None else adapter.beside(variant)
    return PreparedVariant(variant, mean_source, _made_of(loaded, tokens, wanted), layers_record)


def _placed(loaded: LoadedModel, tokens: Tokenization, wanted: RequestedSplices) -> Variant:
    """The dictionaries in the model as it is now, on the devices of their sites."""
    variant = build_variant(
        loaded.model, wanted.dictionaries, wanted.choices, tokens.special_ids, tokens.declared_special
    )
    place_dictionaries(loaded.model, variant)
    return variant


def _made_of(
    loaded: LoadedModel, tokens: Tokenization, wanted: RequestedSplices
) -> tuple[Content, str, tuple[str | None, ...]]:
    texts = tuple(map(text_content, wanted.texts))
    return contents({"": loaded.wrapped})[""], tokenizer_content(tokens.tokenizer), texts


def _surprises(variant: Variant, tokens: Tokenization) -> list[str]:
    """A sentence for each reason why dictionaries are not spliced in where a user may think they are."""
    sentences = untrained_positions(variant)
    if variant.splices and (texts := ordinary(tokens.tokenizer, variant.special_ids)):
        named = ", ".join(f"{text!r} ({token})" for token, text in texts.items())
        sentences.append(
            f"Positions of the tokens {named} keep their activation, as bos, eos and pad do, though these are "
            f"ordinary text: the tokenizer's or the model's configuration says so. splice_tokens=all splices them."
        )
    return sentences
