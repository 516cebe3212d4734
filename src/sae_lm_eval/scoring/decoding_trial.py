"""Whether several models that write in one batch are as they are by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from jaxtyping import Float

from sae_lm_eval.errors import UserError
from sae_lm_eval.scoring.attention_kernels import attention_without_plans
from sae_lm_eval.scoring.decoding import Decoder, Ending, Writing
from sae_lm_eval.scoring.rounding import SPREADS, rounded_otherwise, typical
from sae_lm_eval.scoring.token_sampler import TokenSampler
from sae_lm_eval.splicing.attach import attached

# Between log-probabilities, in nats: the largest, whatever the model. Beyond it, most may be `SPREADS` times as far
# apart as rounding moves them.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
LENGTH = 4  # of the texts that are written


@attention_without_plans()
def check_decoding(decoder: Decoder) -> None:
    """Raise `ValueError` where texts behind shared prompts are not as likely as behind each by itself.

    Where they are with a copy of the shared beginning for each row, `decoder` makes copies from now on.
    """
    if decoder.attention is not None:
        try:
            _compare(decoder)
            if not decoder.attention.layers:
                raise ValueError("no layer looks up how attention is implemented")
            return
        except ValueError as error:
            decoder.copy_prefixes(error)
    _compare(decoder)


def _compare(decoder: Decoder) -> None:
    model = decoder.model
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    stem, *ends = (torch.randint(vocabulary, (n,), generator=generator).tolist() for n in (20, 9, 1, 14, 5))
    prompts = [stem + end for end in ends]
    texts: dict[tuple[int, int], list[int]] = {}
    scores: dict[tuple[int, int], list[float]] = {}

    def done(number: int, place: int, ids: list[int] | None) -> None:
        if ids is not None:  # else the one who asks for that model is told
            texts[number, place] = ids

    writing = Writing(decoder, prompts, Ending(LENGTH), TokenSampler(), [b""] * len(prompts), done)
    writing.likelihoods, writing.capacity = scores, 1
    try:
        with torch.no_grad():
            writing.write({(i, place) for i in range(len(prompts)) for place in range(len(decoder.models))})
            asked = [(prompts[i], ids, place) for (i, place), ids in texts.items()]
            alone = _table(texts, [_plainly(decoder, *each) for each in asked])
            off = np.abs(_table(texts, [scores[key] for key in texts]) - alone)
            if off.max(initial=0) <= TOLERANCE[model.dtype]:
                return
            with rounded_otherwise(model):
                spread = np.abs(_table(texts, [_plainly(decoder, *each) for each in asked]) - alone)
    except UserError:
        raise
    except Exception as error:  # whatever an architecture does not bear
        raise ValueError(f"{type(model).__name__} cannot decode several models at once: {error!r}") from error
    if not (typical(off) <= SPREADS * typical(spread)).all():
        raise ValueError(f"{type(model).__name__} is {off.max():.2g} nats off where several models decode at once")


def _table(
    texts: Mapping[tuple[int, int], Sequence[int]], logprobs: Sequence[Sequence[float]]
) -> Float[np.ndarray, "prompts models tokens"]:
    """Log-probabilities of texts by prompt and model; 0 where none was written."""
    numbers, places = zip(*texts, strict=True)
    table = np.zeros((max(numbers) + 1, max(places) + 1, LENGTH))
    for (number, place), of_text in zip(texts, logprobs, strict=True):
        table[number, place, : len(of_text)] = of_text
    return table


def _plainly(decoder: Decoder, prompt: Sequence[int], ids: Sequence[int], place: int) -> list[float]:
    """Log-probabilities of a text behind a prompt, by one model by itself and without a cache."""
    whole = torch.tensor([[*prompt, *ids]], device=decoder.device)
    with ExitStack() as scope:
        if (variant := decoder.models[place]) is not None:
            scope.enter_context(attached(decoder.model, variant))
        logits = decoder.model(input_ids=whole, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.to(decoder.dtype).log_softmax(-1)[range(len(ids)), list(ids)].tolist()
