"""The variants of one model, whose texts are written in the same batches."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from sae_lm_eval.runtime.journal import Journal
from sae_lm_eval.scoring.decoding import Decoder, Ending, Sampling


class SharedTexts:
    """Writes the texts of all models of a decoder at once; what was written before is not written again.

    Texts are kept in `journal`, each under the one of `identities` that is its model's.
    """

    def __init__(self, decoder: Decoder, journal: Journal | None, identities: Sequence[str]):
        self.decoder, self.journal, self.identities = decoder, journal or Journal(), tuple(identities)

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        ending: Ending,
        sampling: Sampling,
        settings: str,
        place: int,
        done: Callable[[int, list[int]], object],
        recalled: Callable[[int], object] = lambda _number: None,
    ) -> None:
        """Tell `done` of each prompt's number and the tokens that the model at `place` writes behind it, in any order.

        A prompt that comes again is another draw. `settings` says all of the ending and the sampling that texts depend
        on. `recalled` is told before `done` of what was written before.

        Raises what `Decoder.generate` does.
        """
        keys = _keys(prompts, settings)
        known: set[tuple[int, int]] = set()
        for number, key in enumerate(keys):
            for model, identity in enumerate(self.identities):
                if (text := self.journal.get(identity, key)) is None:
                    continue
                known.add((number, model))
                if model == place:
                    recalled(number)
                    done(number, json.loads(text))

        def store(number: int, model: int, ids: list[int]) -> None:
            self.journal.put(self.identities[model], {keys[number]: json.dumps(ids).encode()})
            if model == place:
                done(number, ids)

        if any((number, place) not in known for number in range(len(prompts))):
            self.decoder.generate(prompts, ending, store, sampling=sampling, keys=keys, known=known)


def _keys(prompts: Sequence[Sequence[int]], settings: str) -> list[bytes]:
    """Of each prompt, with how often it has come before."""
    before: Counter[bytes] = Counter()
    keys = []
    for prompt in prompts:
        text = np.asarray(prompt, dtype=np.int64).tobytes()
        keys.append(hashlib.blake2b(b"%d %s %s" % (before[text], settings.encode(), text), digest_size=16).digest())
        before[text] += 1
    return keys
