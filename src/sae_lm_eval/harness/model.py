"""`lm_eval --model sae_hf`: lm_eval's own Hugging Face model, run with dictionaries spliced in."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from sae_lm_eval import schema
from sae_lm_eval.errors import UserError, explain_without_traceback, shortened
from sae_lm_eval.fidelity.measure import Fidelity
from sae_lm_eval.fidelity.source import TextRequest
from sae_lm_eval.harness import lm_eval_patches as lm_eval_patches  # which are in force from here on
from sae_lm_eval.harness.cut_prompts import (
    CutPrompts,
    generated_from,
    scored,
    tell_of_context,
    tell_of_cut,
    without_a_line_each,
)
from sae_lm_eval.harness.few_shot_headers import header_lengths
from sae_lm_eval.harness.generation import written
from sae_lm_eval.harness.kl_at_answers import Divergence
from sae_lm_eval.harness.loading import CausalHFLM, batch_rows
from sae_lm_eval.harness.parted_texts import PartedTexts
from sae_lm_eval.scaling.original_model import OriginalNumbers
from sae_lm_eval.scaling.which_original import original_of
from sae_lm_eval.scoring.answers import Answers
from sae_lm_eval.scoring.spliced_model import SplicedModel
from sae_lm_eval.splicing.arguments import RequestedSplices, requested_splices
from sae_lm_eval.splicing.choices import finite_number, refuse_misspelt
from sae_lm_eval.splicing.splice_arguments import SpliceArguments


def evaluation_call(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that is one evaluation call, or a part of one; see `SaeHFLM.evaluation`."""

    @functools.wraps(method)
    def inside(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.evaluation():
            return method(self, *args, **kwargs)

    return inside


class SaeHFLM(CausalHFLM):
    """A Hugging Face causal language model with sparse autoencoders or transcoders spliced in.

    Every argument of lm_eval's `HFLM` passes through. `pretrained` may be a model object, with `tokenizer=`.

    Args:
        sae: one or more dictionaries: spec text (`[loader:]source[#id][@revision]`, several joined by `+`),
            a SAELens SAE, a sparsify SparseCoder, a `Dictionary`, any other module or callable of activations, or a
            list of these; with `splice="none"` an empty list, for the untouched model, of which `as_variant` makes
            variants.
        splice: what takes the place of the activations: `reconstruction`, `with_error`, `zero`, `mean`,
            `random_error` or `none`.
        splice_tokens: `non_special` keeps the original activation where the token is the tokenizer's bos, eos or pad,
            or where the release says that the dictionary was not trained; `non_special:N` at the first N positions
            in place of what the release says of these; `all` nowhere.
        splice_layers: of dictionaries at several layers those that are spliced in: `0-4+9`, or `best:3`.
        layers_text: a .txt, .jsonl or .parquet file on which the best layers are those that cost least alone.
        splice_input: what dictionaries read: `spliced`, what earlier splices have left, or `clean`, what passes the
            untouched model on the same text.
        hook: the site, where the release's own is not wanted; `IN:OUT` for a transcoder; joined by `+`.
        hook_map: the activation map: `raw`, `centered`, `value_bias`, `folded_value_bias`; joined by `+`.
        norm_factor: what activations were multiplied by in training, where the release does not say; `IN:OUT` for a
            transcoder.
        sae_dtype: dtype of the dictionaries' weights and arithmetic, whatever the model's is.
        seed: of `random_error`.
        mean_text, mean_tokens: a file whose activations `splice=mean` averages, and how many tokens of it.
        scale: how much of the edit is made, y + scale (new - y): 0 changes nothing, 1 is the splice itself.
        keep_top: how many of the largest latents of a position are kept.
        ablate: latents that become 0: `12+57`.
        clamp: latents that become a value: `12:3.5+57:0`.
        latent_positions, latent_heads: where these edits hold: `all`, `last`, `after_header` or `first:N`; `0+3`.
        edit: in place of `sae` a change of the model itself: `quantize?bits=4`, or a function of the model that gives
            new modules or parameters by their names.
        params, tokens: the model's parameters and training tokens, for effective compute, where they are not known.

    Raises:
        UserError: for whatever the user can mend, before anything is evaluated.
    """

    def __init__(
        self,
        pretrained: Any = None,
        sae: Any = None,
        splice: str | None = SpliceArguments.splice,
        splice_tokens: str = SpliceArguments.splice_tokens,
        splice_layers: str | int | None = None,
        layers_text: str | None = None,
        splice_input: str = SpliceArguments.splice_input,
        hook: str | None = None,
        hook_map: str | None = None,
        norm_factor: float | str | None = None,
        sae_dtype: str = SpliceArguments.sae_dtype,
        seed: int = SpliceArguments.seed,
        mean_text: str | None = None,
        mean_tokens: int = SpliceArguments.mean_tokens,
        scale: float = SpliceArguments.scale,
        keep_top: int | None = None,
        ablate: int | str | None = None,
        clamp: str | None = None,
        latent_positions: str | None = None,
        latent_heads: int | str | None = None,
        edit: Any = None,
        params: float | None = None,
        tokens: float | None = None,
        **kwargs: Any,
    ) -> None:
        given = dict(locals())  # by name, whatever the order
        refuse_misspelt(kwargs, KNOWN)
        if pretrained is None:
            raise UserError("pretrained= is missing: name a model, as in pretrained=gpt2.")
        wanted = requested_splices(**SpliceArguments.among(given))
        numbers = OriginalNumbers(
            params=None if params is None else finite_number(params, "params"),
            tokens=None if tokens is None else finite_number(tokens, "tokens"),
        )
        original_of("", "main", **numbers)  # before anything is loaded, for what it refuses
        super().__init__(pretrained, own_arguments=OWN, **kwargs)
        self.original = self.original_model(**numbers)
        self._answer_as(SplicedModel(self.loaded, wanted))

    # -- variants of the loaded model ---------------------------------------------------------------------

    def _answer_as(self, spliced: SplicedModel) -> None:
        """Answer as that model, with nothing measured yet."""
        self.spliced = spliced
        self._begin_measuring()

    def _begin_measuring(self) -> None:
        self._measured: str | None = None  # the identity of what was measured
        self.divergence, self.parted_texts = Divergence(), PartedTexts()
        self.fidelity, self.cut_prompts = Fidelity(), CutPrompts()

    def _copy(self, **attributes: Any) -> SaeHFLM:
        """Of the adapter, not of the model."""
        adapter = copy.copy(self)
        adapter.__dict__.update(attributes)
        return adapter

    def answering_as(self, spliced: SplicedModel, **attributes: Any) -> SaeHFLM:
        """An adapter for another variant of the model that this one loaded; `attributes` are its own."""
        adapter = self._copy(**attributes)
        adapter._answer_as(spliced)
        return adapter

    def as_variant(self, wanted: RequestedSplices) -> SaeHFLM:
        """The same model, loaded once, as another variant. Raises `UserError` as the constructor does."""
        return self.answering_as(self.spliced.as_variant(wanted))

    def untouched(self, *, bos: bool, batch_size: int) -> SaeHFLM:
        """The model by itself, in batches of another size; `bos` is whether it is asked with a BOS token."""
        loaded = self.loaded.with_rows(batch_rows(batch_size, self.device.type))
        spliced = SplicedModel(loaded, requested_splices([], splice="none"), wants_bos=bos)
        return self.answering_as(spliced, loaded=loaded, batch_size_per_gpu=batch_size)

    # -- evaluation ---------------------------------------------------------------------------------------

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """An evaluation call: inside, everything is taken to stay as it is at the beginning; see `Group.evaluation`."""
        with self.spliced.evaluation():
            self.tokenizer = self.spliced.tokens.tokenizer
            if self._measured not in (None, self.spliced.identity()):
                self._begin_measuring()
            self._measured = self.spliced.identity()
            yield

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **_: Any,
    ) -> list[int]:
        ids = self.spliced.tokens.encode(string, add_special_tokens)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        if not self.spliced.tokens.adds_bos:
            return super().tok_batch_encode(strings, padding_side, left_truncate_len, truncation)
        rows = [self.tok_encode(string, left_truncate_len=left_truncate_len) for string in strings]
        padded = self.tokenizer.pad({"input_ids": rows}, padding=True, padding_side=padding_side, return_tensors="pt")
        return padded["input_ids"], padded["attention_mask"]

    @evaluation_call
    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        with self.spliced.attached():
            return super()._model_call(inps, attn_mask, labels)

    @evaluation_call
    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any) -> Tensor:
        with self.spliced.generating(context):
            return super()._model_generate(context, max_length, stop, **generation_kwargs)

    @evaluation_call
    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        if self.enable_thinking:
            raise UserError("enable_thinking=True is for tasks that generate, and these ask for loglikelihoods.")
        pairs = [tuple[Any, ...](request.args) for request in requests]
        ids = self.spliced.group.pairs(pairs)
        tell_of_context(self.spliced, (len(context) + len(continuation) for context, continuation in ids))
        lengths = [scored(len(context), len(continuation), self.max_length) for context, continuation in ids]
        tell_of_cut(self.spliced, lengths, "scored")
        headers = header_lengths(self.spliced, requests, pairs, ([*before, *behind] for before, behind in ids))
        texts = [(pair, *of_pair, header) for pair, of_pair, header in zip(pairs, ids, headers, strict=True)]
        answers = self._answers(texts, [request.task_name for request in requests], disable_tqdm=disable_tqdm)
        self.divergence.note(requests, answers.divergences)
        self.cut_prompts.keep(requests, lengths)
        return answers.pairs

    @evaluation_call
    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        most, tokens = self.max_length, self.spliced.tokens
        tell_of_context(self.spliced, (min(len(tokens.encode(r.args[0])), most) for r in requests))
        # A document's first token is given the prefix token, which is the BOS token already.
        if not self.spliced.is_scored:
            documents = self._copy(tok_encode=tokens.plain_ids)
            return super(SaeHFLM, documents).loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        # All at once, where lm_eval hands over `batch_size` windows at a time. It scores the BOS and EOS tokens that a
        # tokenizer adds.
        windows = [list(tokens.disjoint_windows(tokens.plain_ids(r.args[0]), most)) for r in requests]
        owners = np.repeat(np.arange(len(requests)), [len(of_document) for of_document in windows])
        texts = [(None, *window) for window in itertools.chain.from_iterable(windows)]
        tasks = [requests[owner].task_name for owner in owners]
        answers = self._answers(texts, tasks, disable_tqdm=disable_tqdm)
        sums = np.zeros((len(requests), 3))
        np.add.at(sums, owners, np.column_stack([answers.logprob, np.asarray(answers.kl), answers.targets]))
        self.divergence.note(requests, [(kl, int(count)) for _, kl, count in sums.tolist()])
        for request, total in zip(requests, sums[:, 0].tolist(), strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums[:, 0].tolist()

    @evaluation_call
    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        return self._answers(requests, (), **kwargs).pairs

    def _answers(self, texts: Sequence[Any], tasks: Sequence[str | None], **kwargs: Any) -> Answers:
        """To (context and continuation, None of a window; ids of the one and the other; how many are a header's)."""
        if self.spliced.is_scored:

            def answered(number: int, answer: tuple[float, bool]) -> None:
                if (pair := texts[number][0]) is not None:
                    self.cache_hook.add_partial("loglikelihood", pair, answer)

            queries = [self.spliced.query(*ids) for _, *ids in texts]
            show = not kwargs.get("disable_tqdm") and self.rank == 0
            answers = self.spliced.score(queries, tasks, show=show, answered=answered)
        else:
            with without_a_line_each():
                plain = [tuple(text[:3]) for text in texts]
                answers = Answers.plain(super()._loglikelihood_tokens(plain, **kwargs), [len(ids) for *_, ids in plain])
        for (pair, *_), logprob in zip(texts, answers.logprob.tolist(), strict=True):
            if math.isnan(logprob) or logprob == math.inf:
                what = "a window of a document" if pair is None else f"{shortened(pair[0])} -> {shortened(pair[1])}"
                raise UserError(f"The log-probability of {what} is {logprob} with '{self.spliced.name}'.")
        return answers

    @evaluation_call
    def sae_fidelity(self, requests: list[Instance], disable_tqdm: bool = False) -> list[dict[str, Any]]:
        """A document's sums for each request ((document, category, source), ...); see `fidelity`."""
        most, tokens = self.max_length, self.spliced.tokens
        tell_of_context(self.spliced, (min(len(tokens.text_ids(r.args[0])), most) for r in requests))
        show, journal = not disable_tqdm and self.rank == 0, self.spliced.group.journal
        with self.loaded.autocast():
            texts = [TextRequest(str(r.task_name), r.doc_id, *r.args) for r in requests]
            return self.fidelity.answer(self.spliced, texts, self.original, journal, show=show)

    @evaluation_call
    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        pairs = [tuple[Any, ...](request.args) for request in requests]
        counts = [len(self.tok_encode(prompt)) for prompt, _ in pairs]
        tell_of_context(self.spliced, counts)
        most, default = self.max_length, self.max_gen_toks
        lengths = [generated_from(n, settings, most, default) for n, (_, settings) in zip(counts, pairs, strict=True)]
        tell_of_cut(self.spliced, lengths, "generated from")
        self.cut_prompts.keep(requests, lengths)
        with without_a_line_each():
            return written(self, requests, counts, functools.partial(super().generate_until, disable_tqdm=disable_tqdm))

    # -- what the results carry ---------------------------------------------------------------------------

    def get_model_info(self) -> dict[str, Any]:
        own = {
            schema.KEY: schema.VERSION,
            **self.spliced.provenance(),
            "kl_at_answers": self.divergence.by_task(),
            "parted_texts": self.parted_texts.by_task(),
            "fidelity": self.fidelity.by_task,
            "effective_compute": self.fidelity.effective_compute,
            "cut_prompts": self.cut_prompts.by_task(),
        }
        return {**super().get_model_info(), "sae_lm_eval": own}

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Give this variant a table of its own in the file of `--use_cache`."""
        if cache_hook.dbdict is not None:
            with self.in_its_table(cache_hook.dbdict):
                super().set_cache_hook(cache_hook)
        else:
            super().set_cache_hook(cache_hook)

    @contextmanager
    def in_its_table(self, table: Any) -> Iterator[None]:
        """An evaluation call inside which a `SqliteDict` is the table of this variant as it is now.

        The keys of `--use_cache` are the prompts alone.
        """
        from sqlitedict import SqliteDict

        with self.evaluation():
            name = self.spliced.identity()
            if table.tablename != name:
                SqliteDict(table.filename, tablename=name).close()
                table.tablename = name
            yield


register_model("sae_hf")(SaeHFLM)

OWN = tuple(
    name
    for name, parameter in inspect.signature(SaeHFLM.__init__).parameters.items()
    if name not in ("self", "pretrained") and parameter.kind is not parameter.VAR_KEYWORD
)
KNOWN = ("pretrained", *inspect.signature(HFLM.__init__).parameters, *OWN)

explain_without_traceback("lm_eval", "lm-eval")
