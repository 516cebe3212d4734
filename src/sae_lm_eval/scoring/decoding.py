"""Texts of a model and its variants, written together: prompts' beginnings once, all sequences in one batch.

Every prompt goes through the forked model once. Then each step reads a token of every sequence of every model, so that
the weights are read once for all of them. Finished sequences leave the batch, and waiting ones enter.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from sae_lm_eval.files.logs import logger_of
from sae_lm_eval.runtime.devices import free_memory
from sae_lm_eval.scoring.attention_kernels import attention_without_plans
from sae_lm_eval.scoring.drafts import Arrival, Draft, Ending
from sae_lm_eval.scoring.lm_head import Head
from sae_lm_eval.scoring.prefill import LABELS, Prefill, Prefilled
from sae_lm_eval.scoring.prefix_attention import PrefixAttention
from sae_lm_eval.scoring.row_cache import KeysValues, RowCache
from sae_lm_eval.scoring.token_sampler import TokenSampler
from sae_lm_eval.splicing.attach import Attachment
from sae_lm_eval.splicing.prompt_labels import prompt_labels
from sae_lm_eval.splicing.splice import Context, Variant

logger = logger_of(__name__)

UNDEFINED = -1  # in place of a token where logits are nan
REFILL = 0.25  # of the rows that are free before others enter: entering copies the whole batch


class Decoder:
    """Writes what a model says behind prompts, untouched and as its variants.

    Args:
        model: a causal language model of transformers, which decodes with a cache.
        models: what writes, None being the untouched model; it comes first, or one variant is alone.
        rows: sequences in a batch, of all models together; halved where memory does not suffice.
        limit: the most tokens of a prompt and its text.
        dtype: of the logits that are compared.

    Raises:
        ValueError: where the model's head cannot be told from the rest, or its texts behind shared prompts are others.
    """

    def __init__(
        self,
        model: Any,
        models: Sequence[Variant | None],
        *,
        rows: int,
        limit: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model, self.models, self.rows, self.limit, self.dtype = model, tuple(models), rows, limit, dtype
        self.head = Head(model)
        self.device = next(model.parameters()).device
        self._prefills: dict[tuple[int, ...], Prefill] = {}
        self.prefill(range(len(self.models)))  # raises where this model cannot
        try:
            self.attention: PrefixAttention | None = PrefixAttention(model)
        except ValueError as error:
            self.copy_prefixes(error)

    def prefill(self, wanted: Iterable[int]) -> tuple[tuple[int, ...], Prefill]:
        """What runs prompts through the models that are wanted, by their numbers, and the numbers of its own."""
        numbers = tuple(sorted(wanted))
        if self.models[0] is None and len(numbers) > 1:
            numbers = (0, *(number for number in numbers if number))  # others are forked from the untouched model
        if numbers not in self._prefills:
            models = [self.models[number] for number in numbers]
            self._prefills[numbers] = Prefill(self.model, self.head.trunk, models, limit=self.limit)
        return numbers, self._prefills[numbers]

    def copy_prefixes(self, why: object) -> None:
        """Let each row that is decoded have its own copy of a shared beginning."""
        logger.debug("Rows that are decoded have copies of shared prefixes: %s.", why)
        self.attention = None

    @torch.no_grad()
    @attention_without_plans()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        ending: Ending,
        done: Callable[[int, int, list[int] | None], object],
        *,
        sampling: TokenSampler | None = None,
        keys: Sequence[bytes] | None = None,
        finished: Collection[tuple[int, int]] = (),
        wrote: Callable[[list[tuple[int, int, int]]], object] | None = None,
        headers: Sequence[int] = (),
    ) -> None:
        """Write a text behind each prompt by each model; `done` is told of prompt, model and tokens, in any order.

        It is told None in place of tokens where logits are nan. `keys` name the prompts where their texts are drawn.
        What is `finished`, by prompt and model, is not written. `wrote` is told of each step: prompt, model and token
        of every text that has grown. `headers` are the tokens of each prompt's few-shot header, none by default.

        Raises `ValueError` for an empty prompt or one that leaves no room for a token, and what torch raises where
        memory does not suffice for a single row.
        """
        for ids in prompts:
            if not 0 < len(ids) < self.limit:
                raise ValueError(f"A prompt of {len(ids)} tokens leaves no room for a text in {self.limit}")
        keys = keys or [b""] * len(prompts)
        writing = Writing(self, prompts, ending, sampling or TokenSampler(), keys, done, headers)
        writing.wrote = wrote
        writing.write({(i, model) for i in range(len(prompts)) for model in range(len(self.models))} - set(finished))


class Writing:
    """The texts that are being written behind some prompts, ordered by model."""

    def __init__(
        self,
        decoder: Decoder,
        prompts: Sequence[Sequence[int]],
        ending: Ending,
        sampling: TokenSampler,
        keys: Sequence[bytes],
        done: Callable[[int, int, list[int] | None], object],
        headers: Sequence[int] = (),
    ) -> None:
        self.decoder, self.prompts, self.keys, self.done = decoder, prompts, keys, done
        self.headers = headers or [0] * len(prompts)
        self.looks_at_prompt = any(variant.looks_at_prompt for variant in decoder.models if variant is not None)
        self.ending, self.sampling = ending, sampling
        self.wrote: Callable[[list[tuple[int, int, int]]], object] | None = None
        self.cache = RowCache()
        self.texts: list[Draft] = []  # by the row of the cache
        self.entering = 0  # texts that have arrived and have no row yet
        self.postponed: list[Draft] = []  # for which memory did not suffice
        self.ran_out = False  # whether it ever did not: a prompt's models may be more than the rows otherwise
        self.likelihoods: dict[tuple[int, int], list[float]] | None = None  # log-probabilities of what is written
        self.beginnings = itertools.count(1)  # numbers of shared ones, which no two have alike
        self.capacity: int | None = None  # tokens that a shared beginning has to spare
        self.longest = min(max(map(len, prompts), default=0) + ending.length, decoder.limit)
        attention = decoder.attention
        self.attention = attention if attention is not None and self.longest <= attention.longest else None

    def write(self, wanted: Collection[tuple[int, int]]) -> None:
        """Write the texts that are wanted, by prompt and model."""
        self._write({(number, model): [] for number, model in wanted})
        while self.postponed:
            begun, self.postponed = self.postponed, []
            self._write({(text.prompt, text.model): text.ids for text in begun})

    def _write(self, begun: Mapping[tuple[int, int], list[int]]) -> None:
        """Write texts of which some tokens are there already, and are read as a part of the prompt."""
        arriving = self._arriving(begun)
        while self._admit(arriving, begun) or self._live():
            self._decode()

    def _arriving(self, begun: Mapping[tuple[int, int], list[int]]) -> Iterator[list[Arrival]]:
        """The prompts, with the texts that are begun, each run through the models that go on from it."""
        models: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for (number, model), ids in begun.items():
            models[number, *ids].add(model)
        beginnings: dict[tuple[int, ...], list[tuple[int, ...]]] = defaultdict(list)
        for beginning in sorted(models):
            beginnings[tuple(sorted(models[beginning]))].append(beginning)
        for wanted, of_models in beginnings.items():
            numbers, prefill = self.decoder.prefill(wanted)
            read = [self._codes(number, [*self.prompts[number], *ids][:-1]) for number, *ids in of_models]

            def arrivals(batch: list[Prefilled], models: Any = of_models, numbers: Any = numbers) -> list[Arrival]:
                return [Arrival(models[prompt.number], numbers, prompt) for prompt in batch]

            # By map, so that nothing holds the states of a batch while its texts are written.
            yield from map(arrivals, prefill(read, self._free, self.capacity, self.beginnings))

    def _labels(self, number: int, tokens: range) -> list[int]:
        """Of tokens of a prompt and of what is written behind it."""
        return prompt_labels(tokens, header=self.headers[number], prompt=len(self.prompts[number])).tolist()

    def _codes(self, number: int, ids: list[int]) -> list[int]:
        """The ids, with their labels where a model depends on them."""
        if not self.looks_at_prompt:
            return ids
        labels = self._labels(number, range(len(ids)))
        return [token + label * LABELS for token, label in zip(ids, labels, strict=True)]

    def _live(self) -> list[Draft]:
        return [text for text in self.texts if not text.has_ended]

    def _free(self) -> int:
        """Prompts for which there are rows."""
        return (self.decoder.rows - len(self._live()) - self.entering) // len(self.decoder.models)

    def _admit(self, arriving: Iterator[list[Arrival]], begun: Mapping[tuple[int, int], list[int]]) -> bool:
        """Let prompts enter, as many as there are rows for; whether there were any."""
        new: list[tuple[Draft, Any]] = []
        live = len(self._live())
        while not live + len(new) or live + len(new) + len(self.decoder.models) <= self.decoder.rows:
            if (batch := next(arriving, None)) is None:
                break
            for (number, *ids), models, prompt in batch:
                whole = [*self.prompts[number], *ids]
                self._fit(prompt.states[0])
                new += [
                    (
                        Draft(number, model, len(whole) - 1, whole[-1], prompt.beginning, ids.copy()),
                        states if self.attention is not None else [layer.joined() for layer in states],
                    )
                    for model, states in zip(models, prompt.states, strict=True)
                    if begun.get((number, model)) == ids
                ]
            self.entering = len(new)
        self.entering = 0
        self._arrange(new)
        return bool(new)

    def _fit(self, layers: Sequence[KeysValues]) -> None:
        """Let no more texts be written at once than memory has room for: half of what is free, since they grow."""
        longest = self.longest
        if self.attention is not None and (prefix := layers[0].prefix) is not None:
            longest -= prefix.keys.shape[1]
        bytes_a_row = longest * sum(layer.bytes_a_token for layer in layers)
        if not self.texts:
            device = self.decoder.device
            free = free_memory(str(device))
            if device.type == "cuda":  # what torch keeps for later is free as well
                free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            self.decoder.rows = max(1, min(self.decoder.rows, free // (2 * bytes_a_row)))

    def _arrange(self, new: Sequence[tuple[Draft, Any]] = ()) -> None:
        """Give rows to new texts, and take them from those that have ended."""
        kept = [(text, row) for row, text in enumerate(self.texts) if not text.has_ended]
        both = [*kept, *new]
        if self.ran_out:
            self.postponed += [text for text, _ in both[self.decoder.rows :]]
            both = both[: self.decoder.rows]
        both = sorted(both, key=self._order)
        self.texts = [text for text, _ in both]
        try:
            self.cache.arrange([place for _, place in both])
        except Exception as error:
            if len(both) < 2 or not should_reduce_batch_size(error):
                raise
            self._halve()
            self.postponed += self.texts  # all of them: the layers are arranged one by one, and some have been
            self.texts, self.cache = [], RowCache()

    def _order(self, row: tuple[Draft, Any]) -> tuple[int, int, int]:
        """By model and shared beginning, the longest first."""
        text, place = row
        return text.model, text.beginning, -self.cache.length(place)

    def _halve(self) -> None:
        """Where memory does not suffice, no batch is as large again."""
        self.decoder.rows, self.ran_out = min(self.decoder.rows, len(self._live()) // 2), True
        logger.warning("Out of memory: continuing with %d texts at once.", self.decoder.rows)

    def _postpone_half(self) -> None:
        """Let one half of the texts go on, and begin the other anew later, behind what they have."""
        live = self._live()
        self._halve()
        late = live[len(live) // 2 :]
        self.postponed += [replace(text) for text in late]
        for text in late:
            text.has_ended = True

    def _decode(self) -> None:
        """Steps, until rows are free for others."""
        while self._live():
            with ExitStack() as scope:
                attachments = self._attachments(scope)
                if self.attention is not None:
                    scope.enter_context(self.attention.looking_at(self.cache.segments))
                while not self.cache.is_full:
                    try:
                        self._step(attachments)
                    except Exception as error:
                        if len(self._live()) < 2 or not should_reduce_batch_size(error):
                            raise
                        self.cache.forget_last()
                        self._postpone_half()
                        break
                    free = len(self.texts) - len(self._live())
                    if free >= max(1, REFILL * len(self.texts)):
                        return
            self._arrange()

    def _attachments(self, scope: ExitStack) -> list[tuple[slice, Attachment]]:
        """Those of the variants that write, with their rows."""
        models = [text.model for text in self.texts]
        out = []
        for model in sorted(set(models)):
            if (variant := self.decoder.models[model]) is not None:
                rows = slice(models.index(model), models.index(model) + models.count(model))
                out.append((rows, Attachment(self.decoder.model, variant, scope)))
        return out

    def _step(self, attachments: Sequence[tuple[slice, Attachment]]) -> None:
        device = self.decoder.device
        ids = torch.tensor([[text.reads] for text in self.texts], device=device)
        positions = torch.tensor([[text.position] for text in self.texts], device=device)
        labels = None
        if self.looks_at_prompt:
            each = [self._labels(text.prompt, range(text.position, text.position + 1)) for text in self.texts]
            labels = torch.tensor(each, device=device)
        for rows, attachment in attachments:
            attachment.begin(Context(ids[rows], positions[rows], None, None if labels is None else labels[rows]))
            attachment.rows = rows
        cache, mask = self.cache.begin()
        hidden = self.decoder.head.trunk(
            input_ids=ids,
            attention_mask=mask.to(device),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        self._extend(self.decoder.head(hidden).to(self.decoder.dtype))

    def _extend(self, logits: Tensor) -> None:
        """Write a token of each text, from logits (rows, vocabulary)."""
        keys, steps = [self.keys[text.prompt] for text in self.texts], [len(text.ids) for text in self.texts]
        chosen = self.sampling.choose(logits, keys, steps)
        if self.likelihoods is not None:
            logprobs = logits.log_softmax(-1).gather(-1, chosen[:, None])[:, 0].tolist()
            for text, logprob in zip(self.texts, logprobs, strict=True):
                if not text.has_ended:
                    self.likelihoods.setdefault((text.prompt, text.model), []).append(logprob)
        grown: list[tuple[int, int, int]] = []
        # The device is waited for once a step.
        for text, token in zip(self.texts, chosen.where(~logits.isnan().any(-1), UNDEFINED).tolist(), strict=True):
            if text.has_ended:
                continue
            if token == UNDEFINED:
                text.has_ended = True
                self.done(text.prompt, text.model, None)
                continue
            text.ids.append(token)
            text.reads, text.position = token, text.position + 1
            grown.append((text.prompt, text.model, token))
            if self.ending.reached(text.ids) or text.position + 1 >= self.decoder.limit:
                text.has_ended = True
                self.done(text.prompt, text.model, text.ids)
        if self.wrote is not None:
            self.wrote(grown)
