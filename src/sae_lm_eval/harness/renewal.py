"""An adapter asked again: what changed since is made anew, and nothing is remembered longer than what it depends on."""

# pyright: reportAttributeAccessIssue=false
# (What is asked of the adapter is in `SaeHFLM`, which this is a part of.)

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from lm_eval.models.utils import configure_pad_token

from sae_lm_eval.dictionaries.loading import renewed
from sae_lm_eval.fidelity.measure import Fidelity
from sae_lm_eval.harness.cut_prompts import CutPrompts
from sae_lm_eval.harness.identity import Now, evaluating, text_content, tokenizer_content
from sae_lm_eval.harness.kl_at_answers import Divergence
from sae_lm_eval.runtime.content import contents
from sae_lm_eval.runtime.journal import Journal
from sae_lm_eval.runtime.model_lock import lock_of
from sae_lm_eval.scoring.shared_answers import SharedAnswers
from sae_lm_eval.splicing.arguments import Wanted


def asked_anew(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that is one evaluation call, or a part of one; see `Renewal.evaluation`."""

    @functools.wraps(method)
    def inside(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.evaluation():
            return method(self, *args, **kwargs)

    return inside


def copied(tokenizer: Any) -> Any:
    """A copy of a tokenizer that may be given other special tokens."""
    try:
        return copy.deepcopy(tokenizer)
    except Exception:  # of Rust, for a part that is written in Python: that one has to be shared
        made = copy.copy(tokenizer)
        for name, value in vars(made).items():
            if isinstance(value, dict | list):
                vars(made)[name] = copy.copy(value)
        return made


class Renewal:
    """Of an adapter: the evaluation call under way, and what was made before it.

    `_family` are the adapters that are answered in one pass, the baseline's first, where `join` has joined them.
    """

    _now: Now | None = None  # during an evaluation call
    _family: tuple[Any, ...] = ()
    _tokenizer_given: tuple[Any, str] | None = None  # the user's, and its content when it was copied
    computed_as_loaded: str | None = None  # buffers of a model that was loaded by its name

    def _take_tokenizer(self, kwargs: dict[str, Any]) -> None:
        """Let lm_eval have a copy, since it gives a tokenizer a padding token."""
        given = kwargs.get("tokenizer")
        if given is not None and not isinstance(given, str):
            self._tokenizer_given = given, tokenizer_content(given)
            kwargs["tokenizer"] = copied(given)

    def _start_with(self, wanted: Wanted) -> None:
        """Run as that variant, with nothing remembered."""
        self._now, self._family, self._index = None, (), 1  # among the models answered for, 0 being the baseline
        self._answers: SharedAnswers | None = None
        self._answers_of: list[str] | None = None  # the identities that `_answers` was made for
        self._journal: Journal | None = None
        self._identity_before: str | None = None
        self._wanted = wanted
        self._make()
        self._begin_measuring()

    def _begin_measuring(self) -> None:
        self.divergence, self.fidelity, self.cut_prompts = Divergence(), Fidelity(), CutPrompts()

    def _make(self) -> None:
        """Make the variant, and the means it may need, of the model and the dictionaries as they are."""
        with lock_of(self.innermost), evaluating(self.model):
            self._build(self._wanted)
        text = text_content(self._wanted.mean_text)
        self._made_of = contents({"": self.model})[""], tokenizer_content(self.tokenizer), text

    def _renew(self, now: Now) -> bool:
        """Whether the variant had to be made anew."""
        wanted = replace(self._wanted, dictionaries=renewed(self._wanted.dictionaries))
        text = text_content(self._wanted.mean_text) or self._made_of[2]
        made_of = now.model, now.tokenizer(self), text
        same = all(a is b for a, b in zip(wanted.dictionaries, self._wanted.dictionaries, strict=True))
        if same and made_of == self._made_of:
            return False
        self._wanted = wanted
        self._make()
        return True

    def _renew_tokenizer(self) -> None:
        if self._tokenizer_given is None:
            return
        given, before = self._tokenizer_given
        if (content := tokenizer_content(given)) != before:
            self._tokenizer_given, self._pad_is_lent = (given, content), given.pad_token_id is None
            self.tokenizer = configure_pad_token(copied(given), model_config=self.config)
            self._know_tokens()

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """An evaluation call, inside which the model is in eval mode, and taken to stay as it is at the beginning.

        Other threads that ask the same model wait, through whatever adapter they ask it.
        """
        with lock_of(self.innermost):
            if self._now is not None:
                yield
                return
            with self._evaluation():
                yield

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        family = self._family or (self,)
        with evaluating(self.model):
            for lm in family:
                lm._renew_tokenizer()
            now = Now(family)
            renewed_ones = [lm for lm in family if lm._renew(now)]
            if renewed_ones:
                now = Now(family)
            self._now = now
            try:
                if self._identity_before not in (None, self.identity()):
                    self._begin_measuring()
                self._identity_before = self.identity()
                yield
            finally:
                self._now = None

    def identity(self) -> str:
        """A hash of everything that an answer depends on besides the prompt, as it is now."""
        with self.evaluation():
            assert self._now is not None
            place = next((i for i, lm in enumerate(self._family) if lm is self), 0)
            return self._now.identities[place]

    def parts(self) -> dict[str, Any]:
        """What `identity` is made of, as plain values."""
        with self.evaluation():
            assert self._now is not None
            return self._now.parts(self)

    def _shared(self) -> SharedAnswers | None:
        """What answers for this variant as everything is now, unless it is run as lm_eval runs a model."""
        if self.choices.splice == "none" and not self._family:
            return None
        with self.evaluation():
            assert self._now is not None
            if self._now.identities != self._answers_of:
                family = self._family or (self,)
                variants = [lm.variant for lm in self._family[1:] or family]
                kept = self._journal or (None if self._answers is None else self._answers.journal)
                together = family[0].together(variants, kept, self._now.identities)
                for lm in family:
                    lm._answers, lm._answers_of = together, self._now.identities
            return self._answers

    def leave(self) -> None:
        """Be answered alone from here on, and hold nothing of the others."""
        self._family, self._answers, self._answers_of = (), None, None

    @contextmanager
    def in_its_table(self, table: Any) -> Iterator[None]:
        """An evaluation call inside which a `SqliteDict` is the table of this variant as it is now.

        The keys of `--use_cache` are the prompts alone.
        """
        from sqlitedict import SqliteDict

        with self.evaluation():
            name = self.identity()
            if table.tablename != name:
                SqliteDict(table.filename, tablename=name).close()
                table.tablename = name
            yield
