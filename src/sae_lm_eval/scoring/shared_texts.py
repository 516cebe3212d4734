"""The variants of one model, whose texts are written in the same batches."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch

from sae_lm_eval.errors import UserError
from sae_lm_eval.files.logs import logger_of
from sae_lm_eval.runtime.journal import Journal
from sae_lm_eval.scoring import decoding_trial
from sae_lm_eval.scoring.decoding import Decoder
from sae_lm_eval.scoring.drafts import Ending
from sae_lm_eval.scoring.loaded_model import LoadedModel
from sae_lm_eval.scoring.token_sampler import TokenSampler
from sae_lm_eval.splicing.splice import Variant

logger = logger_of(__name__)


class UndefinedLogits(ArithmeticError):
    """The logits behind a prompt, by its number, are nan."""

    def __init__(self, number: int):
        super().__init__(f"The logits behind prompt {number} are nan")
        self.number = number


class SharedTexts:
    """Writes the texts of all models of a decoder at once; what was written before is not written again.

    Texts are kept in `journal`, each under the one of `identities` that is its model's.
    """

    def __init__(self, decoder: Decoder, journal: Journal | None, identities: Sequence[str]):
        self.decoder, self.journal, self.identities = decoder, journal or Journal(), tuple(identities)

    def place(self, identity: str) -> int | None:
        """Of a model among those that write together."""
        return self.identities.index(identity) if identity in self.identities else None

    def kept(self, prompts: Sequence[Sequence[int]], labels: Sequence[str], place: int) -> list[list[int] | None]:
        """The tokens that the model at `place` has written behind each prompt before, None where it has not."""
        texts = (self.journal.get(self.identities[place], key) for key in _keys(prompts, labels))
        return [None if text is None else json.loads(text) for text in texts]

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        ending: Ending,
        sampling: TokenSampler,
        labels: Sequence[str],
        place: int,
        done: Callable[[int, list[int]], object],
        recalled: Callable[[int], object] = lambda _number: None,
        wrote: Callable[[int], object] = lambda _tokens: None,
        headers: Sequence[int] = (),
    ) -> None:
        """Tell `done` of each prompt's number and the tokens that the model at `place` writes behind it, in any order.

        `labels` say of each prompt all that its text depends on besides the model; one that comes again under the same
        label is another draw. `recalled` is told before `done` of what was written before, and `wrote` how many tokens
        all models have written, step by step. `headers` are as `Decoder.generate` has them.

        Raises `UndefinedLogits` where the logits of the model at `place` are nan, and what `Decoder.generate` does.
        """
        keys = _keys(prompts, labels)
        texts = dict(enumerate(self.kept(prompts, labels, place)))
        for number, ids in texts.items():
            if ids is not None:
                recalled(number)
                done(number, ids)
        if None not in texts.values():
            return
        finished = {
            (number, model)
            for number, key in enumerate(keys)
            for model, identity in enumerate(self.identities)
            if (texts[number] if model == place else self.journal.get(identity, key)) is not None
        }
        undefined: list[int] = []

        def store(number: int, model: int, ids: list[int] | None) -> None:
            if ids is None:
                undefined.extend([number] if model == place else [])
                return
            self.journal.put(self.identities[model], {keys[number]: json.dumps(ids).encode()})
            if model == place:
                done(number, ids)

        self.decoder.generate(
            prompts,
            ending,
            store,
            sampling=sampling,
            keys=keys,
            finished=finished,
            wrote=lambda step: wrote(len(step)),
            headers=headers,
        )
        if undefined:
            raise UndefinedLogits(undefined[0])


def _keys(prompts: Sequence[Sequence[int]], labels: Sequence[str]) -> list[bytes]:
    """Of each prompt under its label, with how often both have come before."""
    before: Counter[bytes] = Counter()
    keys = []
    for prompt, label in zip(prompts, labels, strict=True):
        text = label.encode() + b"\0" + np.asarray(prompt, dtype=np.int64).tobytes()
        keys.append(hashlib.blake2b(b"%d %s" % (before[text], text), digest_size=16).digest())
        before[text] += 1
    return keys


def texts_of(
    loaded: LoadedModel, models: Sequence[Variant | None], identities: Sequence[str], journal: Journal | None
) -> SharedTexts | None:
    """Of the untouched model, None, and variants; None, which is said, where they cannot write in one batch."""
    decoder = decoder_of(loaded, models, loaded.settings.texts_at_once)
    return None if decoder is None else SharedTexts(decoder, journal, identities)


def decoder_of(loaded: LoadedModel, models: Sequence[Variant | None], prompts: int) -> Decoder | None:
    """What writes as the untouched model, None, and as variants behind up to so many prompts at once.

    None, which is said, where they cannot write in one batch.
    """
    settings = loaded.settings
    if not models:
        return None
    try:
        if loaded.is_prompt_tuned:
            raise ValueError("virtual tokens stand before the prompts of a prompt-tuned model")
        rows = prompts * len(models)
        dtype = settings.softmax_dtype or torch.float32
        decoder = Decoder(loaded.model, models, rows=rows, limit=settings.max_length, dtype=dtype)
        with loaded.autocast():
            decoding_trial.check_decoding(decoder)
    except UserError:
        raise
    except ValueError as error:
        logger.warning("Texts are generated for each variant by itself: %s.", error)
        return None
    return decoder
