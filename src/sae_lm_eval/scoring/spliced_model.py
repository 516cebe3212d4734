"""A loaded model with a variant on it, and those of one load that are answered in the same forked passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sae_lm_eval.dictionaries.loading import renewed
from sae_lm_eval.errors import UserError, shortened
from sae_lm_eval.files.logs import logger_of
from sae_lm_eval.results.variant_names import ADAPTER, EDIT, variant_name
from sae_lm_eval.runtime.journal import Journal
from sae_lm_eval.runtime.model_lock import lock_of
from sae_lm_eval.runtime.progress import Progress
from sae_lm_eval.scoring.answers import Answers, portions
from sae_lm_eval.scoring.generation import NanWatch, uncached
from sae_lm_eval.scoring.identity import Snapshot, choice_facts, evaluating, package_versions, splices_of, text_content
from sae_lm_eval.scoring.loaded_model import LoadedModel
from sae_lm_eval.scoring.prepared_variant import PreparedVariant, prepare_variant
from sae_lm_eval.scoring.request import Query
from sae_lm_eval.scoring.scorer import Layout, Scorer
from sae_lm_eval.scoring.shared_answers import SharedAnswers, answers_of
from sae_lm_eval.scoring.shared_texts import SharedTexts, texts_of
from sae_lm_eval.splicing.arguments import RequestedSplices
from sae_lm_eval.splicing.attach import attached
from sae_lm_eval.splicing.splice import Variant
from sae_lm_eval.splicing.variants import Choices

logger = logger_of(__name__)


class SplicedModel:
    """A loaded Hugging Face model with a variant on it: what it says, how it reads, and what its answers depend on.

    Several of one load share its weights; those of a `group` are answered in the same forked passes.

    Args:
        loaded: the model.
        wanted: the variant.
        group: those it is answered with; none where it is answered by itself.
        wants_bos: whether prompts begin with a BOS token where lm_eval adds none; by default as the dictionaries were
            trained.
        prepared: the variant, where it is made already.

    Raises:
        UserError: for a variant that cannot be made of this model.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        wanted: RequestedSplices,
        group: Group | None = None,
        *,
        wants_bos: bool | None = None,
        prepared: PreparedVariant | None = None,
    ) -> None:
        self.loaded, self.wanted = loaded, wanted
        trained_behind_bos = any(dictionary.prepend_bos for dictionary in wanted.dictionaries)
        self.tokens = loaded.tokenization(wants_bos=trained_behind_bos if wants_bos is None else wants_bos)
        logger.info("BOS token: %s", self.tokens.bos_choice)
        for dictionary in wanted.dictionaries:
            for remark in dictionary.remarks:
                loaded.say_once(sentence := f"{dictionary.name}: {remark}", sentence)
        self._prepared = prepared or prepare_variant(loaded, self.tokens, wanted, self.context_size)
        self.group = Group() if group is None else group
        self.group.add(self)

    def as_variant(self, wanted: RequestedSplices, *, wants_bos: bool | None = None) -> SplicedModel:
        """The same model as another variant, answered by itself. Raises `UserError` as the constructor does."""
        return SplicedModel(self.loaded, wanted, wants_bos=wants_bos)

    def in_group(self, group: Group, *, wants_bos: bool) -> SplicedModel:
        """The same variant, answered together with the others of `group`."""
        return SplicedModel(self.loaded, self.wanted, group, wants_bos=wants_bos, prepared=self._prepared)

    # -- the variant --------------------------------------------------------------------------------------

    @property
    def model(self) -> Any:
        """What dictionaries are spliced into."""
        return self.loaded.model

    @property
    def variant(self) -> Variant:
        return self._prepared.variant

    @property
    def prepared(self) -> PreparedVariant:
        return self._prepared

    @property
    def choices(self) -> Choices:
        return self.wanted.choices

    @property
    def name(self) -> str:
        names = [splice.dictionary.name for splice in self.variant.splices]
        names += [] if self.wanted.edit is None else [self.wanted.edit.name]
        names += [] if self.wanted.adapter is None else [f"peft={self.wanted.adapter}"]
        return variant_name(names, self.mode, self.choices.scale)

    @property
    def mode(self) -> str:
        """What takes the place of the activations; `EDIT` or `ADAPTER` where the model itself is changed alone."""
        if self.wanted.edit is not None:
            return EDIT
        return ADAPTER if self.wanted.adapter and not self.variant.splices else str(self.choices.splice)

    def renew(self, snapshot: Snapshot) -> bool:
        """Make the variant anew where something that it is made of has changed, and say whether it had to be."""
        wanted, made_of = replace(self.wanted, dictionaries=renewed(self.wanted.dictionaries)), self._prepared.made_of
        text = tuple(text_content(file) or old for file, old in zip(wanted.texts, made_of[2], strict=True))
        same = all(a is b for a, b in zip(wanted.dictionaries, self.wanted.dictionaries, strict=True))
        if same and (snapshot.model, snapshot.tokenizer(self), text) == made_of:
            return False
        self.wanted = wanted
        self._prepared = prepare_variant(self.loaded, self.tokens, wanted, self.context_size)
        return True

    def renew_tokens(self) -> None:
        """Read with the tokenizer that the loaded model has now."""
        if self.tokens.tokenizer is not self.loaded.tokenizer:
            self.tokens = self.loaded.tokenization(wants_bos=self.tokens.wants_bos)

    # -- texts --------------------------------------------------------------------------------------------

    @property
    def max_length(self) -> int:
        """The most tokens that the model reads."""
        return self.loaded.settings.max_length

    @property
    def trained_context(self) -> int | None:
        """The shortest context that a dictionary was trained on, None where none says."""
        return min((d.context_size for d in self.wanted.dictionaries if d.context_size), default=None)

    @property
    def context_size(self) -> int:
        """The longest prompt, in tokens, that no dictionary has to stretch for."""
        return min(self.max_length, self.trained_context or self.max_length)

    def windows(self, documents: Iterable[str], tokens: int) -> list[list[int]]:
        """The first `tokens` ids of a text, in windows that no dictionary has to stretch for."""
        return self.tokens.windows(documents, length=self.context_size, tokens=tokens)

    def query(self, context: Sequence[int], continuation: Sequence[int], header: int = 0) -> Query:
        """What scores a continuation behind what is read of its context: `Query.from_context`. Raises `UserError`."""
        if not 0 < len(continuation) <= self.max_length:
            raise UserError(
                f"A continuation of {len(continuation)} tokens cannot be scored, only one of 1 to {self.max_length}: "
                f"that of {shortened(self.tokens.tokenizer.decode(context, skip_special_tokens=True))}."
            )
        labelled = any(member.variant.looks_at_prompt for member in self.group.members)
        return Query.from_context(context, continuation, self.max_length, header if labelled else None)

    def rolling(self, document: str) -> list[Query]:
        """The windows in which every token of a document is scored once, and the prefix token before it never: those
        of lm_eval's rolling loglikelihood, but for what the tokenizer itself adds to a text.
        """
        pairs = self.tokens.disjoint_windows(self.tokens.text_ids(document), self.max_length)
        return [self.query(*pair) for pair in pairs]

    # -- running ------------------------------------------------------------------------------------------

    def attached(self) -> Any:
        """A scope in which the model runs as the variant. Raises `UserError` where it depends on what the prompt is."""
        if self.variant.looks_at_prompt:
            raise UserError(f"{self.choices.edits} needs to know where a prompt ends, which a call does not say.")
        return attached(self.model, self.variant)

    @contextmanager
    def generating(self, prompts: Tensor) -> Iterator[None]:
        """Inside the scope, the model's `generate` writes as the variant, behind `prompts` (batch, positions).

        Raises `UserError` at its end where the logits of a token were nan.
        """
        attachment = attached(self.model, self.variant, prompts.shape[1])
        with attachment, uncached(self.model, self.variant.needs_whole_text), NanWatch(self.model) as watch:
            yield
        if watch.any_nan:
            prompt = self.tokens.tokenizer.decode(prompts[0].tolist(), skip_special_tokens=True)
            raise UserError(f"The logits are nan while '{self.name}' generates from {shortened(prompt)} and others.")

    def scorer(self, variants: Sequence[Variant], layout: Layout | None = None) -> Scorer:
        """Of the model and `variants`. Raises `ValueError` where the model's head cannot be told from the rest."""
        s = self.loaded.settings
        dtype = s.softmax_dtype or torch.float32
        return Scorer(self.model, variants, rows=s.rows, limit=s.max_length, dtype=dtype, layout=layout)

    @property
    def is_scored(self) -> bool:
        """Whether `score` can be asked; else lm_eval's own way is left, without KL."""
        return self.group.shared() is not None

    def score(
        self,
        queries: Sequence[Query],
        tasks: Sequence[str | None] = (),
        *,
        show: bool = False,
        counted: bool = True,
        answered: Callable[[int, tuple[float, bool]], object] = lambda _number, _answer: None,
    ) -> Answers:
        """What the variant answers to `queries`, and its KL from the baseline; a task's queries are run together.

        `tasks` names the task of each query, so that answers are the same to the bit whatever other tasks there are.
        `answered` is told of each answer as it comes in, in any order; so is the progress of the group, if `counted`.
        """
        shared = self.group.shared()
        assert shared is not None, "is_scored says so"
        progress = (self.group.progress if counted else None) or Progress()
        place = self.group.members.index(self) + (not self.group.baseline_first)  # 0 is the baseline
        table = np.full((len(queries), 3), np.nan)
        progress.begin([len(query.ids) for query in queries], tasks)
        hidden = not show or self.group.progress is not None
        bar = tqdm(total=len(queries), disable=hidden, desc="Running loglikelihood requests")

        def done(number: int, of_models: np.ndarray) -> None:
            table[number] = of_models[place]
            answered(number, (float(table[number, 0]), bool(table[number, 1])))
            bar.update()
            progress.answered(number)

        with bar, self.loaded.autocast():
            for numbers in portions(queries, tasks):
                shared.answers(
                    [queries[number] for number in numbers],
                    lambda i, of_models, numbers=numbers: done(numbers[i], of_models),
                    lambda i, numbers=numbers: progress.recalled(numbers[i]),
                )
        logprob, greedy, kl = table.T
        return Answers(logprob, greedy, kl, np.array([len(query.targets) for query in queries], dtype=np.float64))

    # -- what answers depend on ---------------------------------------------------------------------------

    def evaluation(self) -> Any:
        """A scope in which everything is taken to stay as it is at the beginning; see `Group.evaluation`."""
        return self.group.evaluation()

    def identity(self) -> str:
        """A hash of everything that an answer depends on besides the prompt, as it is now."""
        with self.evaluation() as snapshot:
            return snapshot.identities[self.group.members.index(self)]

    def parts(self) -> dict[str, Any]:
        """What `identity` is made of, as plain values."""
        with self.evaluation() as snapshot:
            return snapshot.parts(self)

    def versions(self) -> dict[str, str]:
        """Of the packages that take part."""
        return package_versions(self.loaded.wrapped, self.variant)

    def provenance(self) -> dict[str, Any]:
        """Everything besides the model itself that the numbers depend on, as plain values."""
        return {"splices": splices_of(self), **choice_facts(self), "packages": self.versions()}


class Group:
    """Spliced models of one load that are answered in the same forked passes.

    Args:
        baseline_first: whether the first is the baseline; a single variant is answered beside one nobody asks.
        journal: keeps answers, from which the same models answer in another process.
        progress: is told of each answer.
    """

    def __init__(
        self, *, baseline_first: bool = False, journal: Journal | None = None, progress: Progress | None = None
    ) -> None:
        self.members: list[SplicedModel] = []
        self.baseline_first, self.journal, self.progress = baseline_first, journal, progress
        self._snapshot: Snapshot | None = None  # during an evaluation call
        self._together: dict[str, tuple[list[str], Any]] = {}  # what answers for all, with the identities of then
        self._pairs: tuple[list[str], Sequence[Any], list[Any]] | None = None

    def add(self, member: SplicedModel) -> None:
        self.members.append(member)

    @contextmanager
    def evaluation(self) -> Iterator[Snapshot]:
        """An evaluation call, inside which the model is in eval mode, and taken to stay as it is at the beginning.

        What has changed since the last is made anew. Other threads that ask the same model wait, in whatever group.
        """
        loaded = self.members[0].loaded
        with lock_of(loaded.model):
            if self._snapshot is not None:
                yield self._snapshot
                return
            with self._evaluation(loaded) as snapshot:
                yield snapshot

    @contextmanager
    def _evaluation(self, loaded: LoadedModel) -> Iterator[Snapshot]:
        with evaluating(loaded.wrapped):
            loaded.renew_tokenizer()
            for member in self.members:
                member.renew_tokens()
            snapshot = Snapshot(self.members)
            if sum(member.renew(snapshot) for member in self.members):  # of each, not up to the first
                snapshot = Snapshot(self.members)
            self._snapshot = snapshot
            try:
                yield snapshot
            finally:
                self._snapshot = None

    def shared(self) -> SharedAnswers | None:
        """What scores for all of them as everything is now; None where each is to be run as lm_eval runs a model."""
        variants = [member.variant for member in self.members[self.baseline_first :]]
        scorer = partial(self.members[0].scorer, variants)
        return self._shared_now("answers", partial(answers_of, self.members[0].loaded, scorer))

    def texts(self) -> SharedTexts | None:
        """What writes for those that can, from keys and values alone; None where nobody can."""
        numbers = [i for i, member in enumerate(self.members) if not member.variant.needs_whole_text]
        models = [None if self.baseline_first and not i else self.members[i].variant for i in numbers]

        def make(identities: list[str], journal: Journal | None) -> SharedTexts | None:
            return texts_of(self.members[0].loaded, models, [identities[i] for i in numbers], journal)

        return self._shared_now("texts", make)

    def _shared_now(self, kind: str, make: Callable[[list[str], Journal | None], Any]) -> Any:
        """What `make` gives for the identities and the journal, made once as long as everything stays as it is."""
        if not self.baseline_first and self.members[0].choices.splice == "none":
            return None
        with self.evaluation() as snapshot:
            identities, shared = self._together.get(kind, (None, None))
            if identities != snapshot.identities:
                shared = make(snapshot.identities, self.journal or (None if shared is None else shared.journal))
                self._together[kind] = snapshot.identities, shared
            return shared

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """`Tokenization.pairs`; what another member was asked just before is not tokenised again."""
        with self.evaluation() as snapshot:
            if self._pairs is None or self._pairs[:2] != (snapshot.identities, pairs):
                self._pairs = snapshot.identities, pairs, self.members[0].tokens.pairs(pairs)
            return self._pairs[2]
