"""How texts become token ids: by a tokenizer, with its special tokens, the prefix token, and a BOS token of prompts."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sae_lm_eval.runtime import text_files
from sae_lm_eval.scoring.encoding_ahead import EncodingAhead, texts_of_pairs

Ids = list[int]


@dataclass(frozen=True)
class Tokenization:
    """How a model's prompts and documents become ids, as lm_eval has them but for a BOS token that it leaves out.

    Args:
        tokenizer: of transformers.
        special_ids: bos, eos and pad; positions that hold them are not spliced unless the user wants it.
        add_bos_token: the user's choice, None where there is none; lm_eval's argument of that name.
        custom_prefix: an id the user wants before texts in place of bos or eos.
        wants_bos: whether a dictionary was trained behind a BOS token, so that a prompt gets one unless lm_eval's
            default gives it one or the user chose.
    """

    tokenizer: Any
    special_ids: frozenset[int]
    add_bos_token: bool | None = None
    custom_prefix: int | None = None
    wants_bos: bool = False
    adds_bos: bool = field(init=False)
    bos_choice: str = field(init=False)  # in words, for the results

    def __post_init__(self) -> None:
        bos = self.tokenizer.bos_token_id
        given = bos is not None and self.plain_ids("a")[:1] == [bos]
        adds = self.wants_bos and not given and bos is not None and self.add_bos_token is None
        if self.add_bos_token is not None:
            words = f"add_bos_token={self.add_bos_token}, as asked"
        elif adds:
            words = (
                "one BOS token is added to every prompt: the dictionary was trained behind one, and lm_eval adds none"
            )
        elif self.wants_bos and bos is None:
            words = "none is added: the dictionary was trained behind a BOS token, and the tokenizer has none"
        else:
            words = f"lm_eval's default, which adds {'one' if given else 'none'}"
        object.__setattr__(self, "adds_bos", adds)
        object.__setattr__(self, "bos_choice", words)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text whose first token is to be predicted."""
        if self.custom_prefix is not None:
            return self.custom_prefix
        bos = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if bos is None else bos

    @property
    def declared_special(self) -> frozenset[int]:
        """The ids that the tokenizer declares special, besides bos, eos and pad the markers of chats and the like."""
        return frozenset(self.tokenizer.all_special_ids)

    def plain_ids(self, text: str, add_special_tokens: bool | None = None, **_: Any) -> Ids:
        """The ids that lm_eval gives a text."""
        if add_special_tokens is None and text.startswith(self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        return self.tokenizer.encode(text, **self._flags(add_special_tokens))

    def encode(self, text: str, add_special_tokens: bool | None = None) -> Ids:
        """The ids of a prompt, or of a piece of one where `add_special_tokens` says what is added."""
        ids = self.plain_ids(text, add_special_tokens)
        return self._behind_bos(ids) if add_special_tokens is None else ids

    def _behind_bos(self, ids: Ids) -> Ids:
        bos = self.tokenizer.bos_token_id
        return [bos, *ids] if self.adds_bos and ids[:1] != [bos] else ids

    def _flags(self, add_special_tokens: bool | None) -> dict[str, bool]:
        chosen = self.add_bos_token if add_special_tokens is None else add_special_tokens
        return {} if chosen is None else {"add_special_tokens": chosen}

    def encode_several(self, texts: Sequence[str]) -> list[Ids]:
        """The plain ids of each text, as `plain_ids` gives them one by one."""
        prefix = self.tokenizer.decode(self.prefix_token_id)
        out: dict[str, Ids] = {}
        for has_bos in (False, True):
            some = [text for text in texts if text.startswith(prefix) == has_bos]
            if some:
                flags = self._flags(False if has_bos else None)
                out.update(zip(some, self.tokenizer(some, **flags)["input_ids"], strict=True))
        return [out[text] for text in texts]

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[Ids, Ids]]:
        """The ids of contexts and of what continues them, cut where lm_eval cuts them.

        Spaces at the end of a context belong to what follows, and an empty one is the prefix token.
        """
        ahead = EncodingAhead(texts_of_pairs(pairs), self.encode_several)

        @functools.lru_cache(maxsize=2)  # a question with several choices is wanted before each of them
        def encoded(text: str) -> Ids:
            ids = ahead.get(text)
            return self.encode(text) if ids is None else self._behind_bos(ids)

        return [self._pair(context, continuation, encoded) for context, continuation in pairs]

    def _pair(self, context: str, continuation: str, encoded: Callable[[str], Ids]) -> tuple[Ids, Ids]:
        if context == "":
            ids = self.encode(continuation, add_special_tokens=False)
            return (ids[:1], ids[1:]) if ids[0] == self.prefix_token_id else ([self.prefix_token_id], ids)
        stem = context.rstrip()
        ids, before = encoded(context + continuation), encoded(stem)
        return list(before), ids[len(before) :]

    def spans(self, texts: Sequence[str], ids: Iterable[Ids]) -> list[list[tuple[int, int]] | None]:
        """Where each of a text's ids stands in it, (0, 0) for those that are added before it; None where that is not
        known.
        """
        if not self.tokenizer.is_fast:
            return [None] * len(texts)
        read = self.tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
        out: list[list[tuple[int, int]] | None] = []
        for own, spans, all_ids in zip(read["input_ids"], read["offset_mapping"], ids, strict=True):
            added = len(all_ids) - len(own)
            agrees = added >= 0 and list(all_ids[added:]) == own
            out.append([*[(0, 0)] * added, *map(tuple, spans)] if agrees else None)
        return out

    def text_ids(self, document: str) -> Ids:
        """The ids of running text alone, behind which no EOS stands and before which the prefix token is to stand."""
        ids = self.encode(document, add_special_tokens=False)
        # Where the text itself begins with it; a prefix token of the user's may be a word as well.
        prefixes: tuple[Any, ...] = (self.tokenizer.bos_token_id, self.prefix_token_id)
        twice = self.special_ids.intersection(prefixes)
        return list(itertools.dropwhile(lambda token: token in twice, ids))

    def disjoint_windows(self, ids: Ids, length: int) -> Iterator[tuple[Ids, Ids]]:
        """The (context, continuation) pairs of ids in which every one of them is a continuation once.

        A window reads `length` tokens: the first begins with the prefix token, and the last reaches back as far as it
        may. They are those of lm_eval's rolling loglikelihood.
        """
        ids = [self.prefix_token_id, *ids]
        for start in range(1, len(ids), length):
            end = min(start + length, len(ids))
            yield ids[max(0, end - 1 - length) : start], ids[start:end]

    def windows(self, documents: Iterable[str], *, length: int, tokens: int) -> list[Ids]:
        """The first `tokens` ids of a text, in windows of up to `length` that begin with the prefix token."""
        return text_files.windows(documents, self.text_ids, prefix=self.prefix_token_id, length=length, tokens=tokens)


def copied(tokenizer: Any) -> Any:
    """A copy of a tokenizer that may be given other special tokens."""
    try:
        return copy.deepcopy(tokenizer)
    except Exception:  # of Rust, for a part that is written in Python: that one has to be shared
        shallow = copy.copy(tokenizer)
        for name, value in vars(shallow).items():
            if isinstance(value, dict | list):
                vars(shallow)[name] = copy.copy(value)
        return shallow
