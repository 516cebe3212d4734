"""`lm_eval --model sae_hf`: lm_eval's own Hugging Face model, run with dictionaries spliced in."""

# pyright: reportAttributeAccessIssue=false, reportCallIssue=false
# (lm_eval's @register_model hides what it decorates from type checkers.)

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import hashlib
import inspect
import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import _add_special_kwargs, has_bos_prefix
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from tqdm import tqdm

from sae_lm_eval import schema, world
from sae_lm_eval.errors import UserError, explain_without_traceback, first_line
from sae_lm_eval.fidelity.measure import TOKENS_AT_ONCE
from sae_lm_eval.harness import lm_eval_patches as lm_eval_patches  # which are in force from here on
from sae_lm_eval.harness.cut_prompts import Length, generated_from, scored, sentence, without_a_line_each
from sae_lm_eval.harness.encoding_ahead import EncodingAhead, texts_of_pairs
from sae_lm_eval.harness.generation import in_batches, uncached
from sae_lm_eval.harness.identity import evaluating, versions
from sae_lm_eval.harness.renewal import Renewal, asked_anew
from sae_lm_eval.runtime import text_files
from sae_lm_eval.runtime.content import contents
from sae_lm_eval.runtime.journal import Journal
from sae_lm_eval.runtime.progress import Progress
from sae_lm_eval.scaling import Original
from sae_lm_eval.scaling.of_documents import original_of
from sae_lm_eval.scoring.request import Query
from sae_lm_eval.scoring.scorer import Scorer
from sae_lm_eval.scoring.shared_answers import SharedAnswers
from sae_lm_eval.splicing.activations import mean_activations
from sae_lm_eval.splicing.arguments import Wanted, finite, refuse_misspelt, wanted_of, whole
from sae_lm_eval.splicing.attach import attached
from sae_lm_eval.splicing.special_tokens import ordinary, special_ids
from sae_lm_eval.splicing.splice import Variant
from sae_lm_eval.splicing.splice_arguments import SpliceArguments
from sae_lm_eval.splicing.variants import build_variant, describe, place, untrained_positions, with_means

# Below lm_eval's own logger, whose verbosity the user sets.
logger = logging.getLogger(f"lm_eval.{__name__}")

# Rows to run at once. On a GPU it is what `batch_size=auto` begins with, and is halved where memory does not suffice;
# on a CPU there are never more, since more do not stay in its cache.
ROWS_ON_GPU, ROWS_ON_CPU = 64, 2


@register_model("sae_hf")
class SaeHFLM(Renewal, HFLM):
    """A Hugging Face causal language model with sparse autoencoders or transcoders spliced in.

    Every argument of lm_eval's `HFLM` passes through. `pretrained` may be a model object, with `tokenizer=`.

    Args:
        sae: one or more dictionaries: spec text (`[loader:]source[#id][@revision]`, several joined by `+`),
            a SAELens SAE, a sparsify SparseCoder, a `Dictionary`, or a list of these; with `splice="none"` an empty
            list, for the untouched model, of which `as_variant` makes variants.
        splice: what takes the place of the activations: `reconstruction`, `with_error`, `zero`, `mean`,
            `random_error` or `none`.
        splice_tokens: `non_special` keeps the original activation where the token is the tokenizer's bos, eos or pad,
            or where the release says that the dictionary was not trained; `non_special:N` at the first N positions
            in place of what the release says of these; `all` nowhere.
        hook: the site, where the release's own is not wanted; `IN:OUT` for a transcoder; joined by `+`.
        hook_map: the activation map: `raw`, `centered`, `value_bias`, `folded_value_bias`; joined by `+`.
        norm_factor: what activations were multiplied by in training, where the release does not say; `IN:OUT` for a
            transcoder.
        sae_dtype: dtype of the dictionaries' weights and arithmetic, whatever the model's is.
        seed: of `random_error`.
        mean_text: a .txt, .jsonl or .parquet file whose activations `splice=mean` averages.
        mean_tokens: how many tokens of it.
        scale: how much of the edit is made, y + scale (new - y): 0 changes nothing, 1 is the splice itself.
        params: parameters of the model, for effective compute; by default what is known of it, or counted.
        tokens: how many it was trained on, where that is not known.

    Raises:
        UserError: for whatever the user can mend, before anything is evaluated.
    """

    _ahead: EncodingAhead | None = None  # while requests are encoded

    def __init__(
        self,
        pretrained: Any = None,
        sae: Any = None,
        splice: str | None = SpliceArguments.splice,
        splice_tokens: str = SpliceArguments.splice_tokens,
        hook: str | None = None,
        hook_map: str | None = None,
        norm_factor: float | str | None = None,
        sae_dtype: str = SpliceArguments.sae_dtype,
        seed: int = SpliceArguments.seed,
        mean_text: str | None = None,
        mean_tokens: int = SpliceArguments.mean_tokens,
        scale: float = SpliceArguments.scale,
        params: float | None = None,
        tokens: float | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_misspelt(kwargs, KNOWN)
        if pretrained is None:
            raise UserError("pretrained= is missing: name a model, as in pretrained=gpt2.")
        wanted = wanted_of(
            sae, splice, splice_tokens, hook, hook_map, norm_factor, sae_dtype, seed, mean_text, mean_tokens, scale
        )
        numbers = {
            name: None if value is None else finite(value, name)
            for name, value in (("params", params), ("tokens", tokens))
        }
        original_of("", "main", **numbers)  # before anything is loaded, for what it refuses
        if kwargs.get("max_length") is not None:
            whole(kwargs["max_length"], "max_length", least=1)  # lm_eval takes 0 for the model's own
        if kwargs.get("device") is None:
            # lm_eval's default is "cuda" on every machine.
            kwargs["device"] = "cuda" if torch.cuda.is_available() else "cpu"
        embedded = world.is_meant_by(pretrained)
        self._take_tokenizer(kwargs)
        with evaluating(pretrained) if isinstance(pretrained, torch.nn.Module) else contextlib.nullcontext():
            super().__init__(str(world.model_path()) if embedded else pretrained, **kwargs)
        if embedded:
            self.model.config._name_or_path = world.NAME
        if isinstance(pretrained, str):
            self.computed_as_loaded = contents({"": self.model})[""].computed
        name = pretrained if isinstance(pretrained, str) else innermost(self.model).name_or_path
        tuned = bool(kwargs.get("peft") or kwargs.get("delta"))
        self.original = self._original(f"{name}, tuned" if tuned else name, **numbers)
        self._join_other_processes()
        self._bos_wanted = any(dictionary.prepend_bos for dictionary in wanted.dictionaries)
        self._know_tokens()
        self._told_of_context = False
        self._told: set[str] = set()  # what is said once, for the variants made of this one as well
        self.progress: Progress | None = None
        self._tasks: list[str | None] = []
        self._max_length = self.max_length  # which lm_eval finds anew each time it is asked: for every request
        self._become(wanted)

    def _know_tokens(self) -> None:
        """What of the tokenizer is asked for once: special ids, and whether prompts get a BOS token."""
        self.special_ids = special_ids(self.tokenizer, self.model)
        tokenizer: Any = self.tokenizer
        if self._pad_is_lent:
            self.special_ids -= {tokenizer.pad_token_id} - {tokenizer.bos_token_id, tokenizer.eos_token_id}
        self._set_bos(self._bos_wanted)

    def _become(self, wanted: Wanted) -> None:
        """Run as that variant of the loaded model from here on."""
        for dictionary in wanted.dictionaries:
            for remark in dictionary.remarks:
                logger.warning("%s: %s", dictionary.name, remark)
        self.choices = wanted.choices
        self._start_with(wanted)

    def _build(self, wanted: Wanted) -> None:
        self.variant = build_variant(
            innermost(self.model), wanted.dictionaries, wanted.choices, self.special_ids, self.declared_special
        )
        self._tell_of_positions()
        place(innermost(self.model), self.variant)
        self._take_means(wanted)

    def as_variant(self, wanted: Wanted) -> Any:
        """The same model, loaded once, as another variant. Raises `UserError` as the constructor does."""
        other = copy.copy(self)
        other._become(wanted)
        return other

    def _become_untouched(self) -> None:
        """Run as the baseline, with nothing of what was measured or shared before."""
        self._become(wanted_of([], "none"))

    # -- loading ------------------------------------------------------------------------------------------

    def _get_config(self, pretrained: str, **kwargs: Any) -> None:
        try:
            super()._get_config(pretrained, **kwargs)
        except (OSError, ValueError) as error:
            raise UserError(f"There is no model '{pretrained}' to load: {first_line(error)}") from error

    def _get_backend(self, *args: Any, **kwargs: Any) -> None:
        super()._get_backend(*args, **kwargs)
        if self.backend != "causal":
            raise UserError(
                f"{kwargs['config'].model_type} is a sequence-to-sequence model; "
                f"sae_hf splices into causal language models."
            )

    def _create_model(self, pretrained: str, **kwargs: Any) -> None:
        try:
            super()._create_model(pretrained, **kwargs)
        except AttributeError as error:
            if "module 'torch' has no attribute" not in str(error):
                raise
            raise UserError(f"dtype={kwargs.get('dtype')} is none of torch's: {error}.") from error
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            raise UserError(
                f"The model does not take that argument: {error}. sae_hf's own are {', '.join(OWN)}."
            ) from error
        except OSError as error:
            raise UserError(f"The weights of '{pretrained}' cannot be loaded: {first_line(error)}") from error

    def _create_tokenizer(self, pretrained: Any, tokenizer: Any, **kwargs: Any) -> None:
        super()._create_tokenizer(pretrained, tokenizer, **kwargs)
        self._pad_is_lent = self.tokenizer.pad_token_id is None

    @property
    def declared_special(self) -> frozenset[int]:
        """The ids that the tokenizer declares special, besides bos, eos and pad the markers of chats and the like."""
        return frozenset(self.tokenizer.all_special_ids)

    def _tell_of_positions(self) -> None:
        """Where the dictionaries are not spliced in, as far as that may surprise; each sentence once."""
        told = untrained_positions(self.variant)
        if self.variant.splices and (texts := ordinary(self.tokenizer, self.variant.special_ids)):
            named = ", ".join(f"{text!r} ({token})" for token, text in texts.items())
            told.append(
                f"Positions of the tokens {named} keep their activation, as bos, eos and pad do, though these are "
                f"ordinary text: the tokenizer's or the model's configuration says so. splice_tokens=all splices them."
            )
        for words in told:
            self._say_once(words, words)

    def _say_once(self, what: str, words: str) -> None:
        if what not in self._told:
            self._told.add(what)
            logger.warning("%s", words)

    def _original(self, name: str, **numbers: float | None) -> Original:
        """What is known of the model of that name; parameters that are not known are counted.

        The size of the vocabulary is that of the configuration.
        """
        original = original_of(name, str(self.revision or "main"), **numbers)
        if original.vocabulary is None:
            vocabulary = getattr(innermost(self.model).config, "vocab_size", None)
            original = dataclasses.replace(original, vocabulary=vocabulary)
        if original.params is not None:
            return original
        count = sum(weights.numel() for weights in innermost(self.model).parameters())
        return dataclasses.replace(original, params=float(count), params_source="counted in the loaded model")

    def _join_other_processes(self) -> None:
        # lm_eval divides the work of `accelerate launch` over GPUs of one machine only.
        accelerator = getattr(self, "accelerator", None)
        if accelerator is not None:
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes

    def _set_bos(self, wanted: bool) -> None:
        """A dictionary trained behind a BOS token gets one where lm_eval's default gives none."""
        bos = self.tokenizer.bos_token_id
        given = bos is not None and super().tok_encode("a")[:1] == [bos]
        self._adds_bos = bool(wanted and not given and bos is not None and self.add_bos_token is None)
        if self.add_bos_token is not None:
            self.bos_choice = f"add_bos_token={self.add_bos_token}, as asked"
        elif self._adds_bos:
            self.bos_choice = (
                "one BOS token is added to every prompt: the dictionary was trained behind one, and lm_eval adds none"
            )
        elif wanted and bos is None:
            self.bos_choice = "none is added: the dictionary was trained behind a BOS token, and the tokenizer has none"
        else:
            self.bos_choice = f"lm_eval's default, which adds {'one' if given else 'none'}"
        logger.info("BOS token: %s", self.bos_choice)

    def windows(self, documents: Iterable[str], tokens: int) -> list[list[int]]:
        """The first `tokens` ids of a text, in windows that no dictionary has to stretch for."""
        return text_files.windows(
            documents,
            self.text_ids,
            prefix=self.prefix_token_id,
            length=self.context_size,
            tokens=tokens,
        )

    def _take_means(self, wanted: Wanted) -> None:
        self.mean_source: dict[str, Any] | None = None
        self.mean_tokens = wanted.mean_tokens
        if wanted.mean_text is None:
            return
        texts = self.windows(text_files.read_documents(wanted.mean_text, tokens=wanted.mean_tokens), wanted.mean_tokens)
        means = mean_activations(innermost(self.model), self.variant, texts, self.special_ids)
        self.variant = with_means(self.variant, means)
        ids = np.concatenate([np.asarray(window, dtype=np.int64) for window in texts])
        self.mean_source = {
            "text": wanted.mean_text,
            "tokens": len(ids) - len(texts),
            "sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
        }

    @property
    def innermost(self) -> Any:
        """The model that dictionaries are spliced into; see `innermost`."""
        return innermost(self.model)

    @property
    def context_size(self) -> int:
        """The longest prompt, in tokens, that no dictionary has to stretch for."""
        return min(self.max_length, self._trained_context or self.max_length)

    @property
    def _trained_context(self) -> int | None:
        """The shortest context that a dictionary was trained on, None where none says."""
        return min((s.dictionary.context_size for s in self.variant.splices if s.dictionary.context_size), default=None)

    # -- tokens -------------------------------------------------------------------------------------------

    def text_ids(self, document: str) -> list[int]:
        """The ids of running text alone, behind which no EOS stands and before which the prefix token is to stand."""
        ids = self.tok_encode(document, add_special_tokens=False)
        # Where the text itself begins with it; a prefix token of the user's may be a word as well.
        prefixes: tuple[Any, ...] = (self.tokenizer.bos_token_id, self.prefix_token_id)
        twice = self.special_ids.intersection(prefixes)
        return list(itertools.dropwhile(lambda token: token in twice, ids))

    @property
    def _encoded(self) -> Any:
        """lm_eval's ids of a text. A question with several choices is asked for behind each of them."""
        if self._now is None:
            return super().tok_encode
        if self._now.encoded is None:
            self._now.encoded = functools.lru_cache(maxsize=2)(super().tok_encode)
        return self._now.encoded

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        ids = None
        if kwargs:
            ids = super().tok_encode(string, add_special_tokens=add_special_tokens, **kwargs)
        elif self._ahead is not None and add_special_tokens is None:
            ids = self._ahead.get(string)
        if ids is None:
            ids = list(self._encoded(string, add_special_tokens))
        bos = self.tokenizer.bos_token_id
        if getattr(self, "_adds_bos", False) and add_special_tokens is None and ids[:1] != [bos]:
            ids = [bos, *ids]
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def _encode_several(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, as lm_eval's `tok_encode` gives them one by one."""
        prefix = self.tokenizer.decode(self.prefix_token_id)
        out: dict[str, list[int]] = {}
        for has_bos in (False, True):
            some = [text for text in texts if has_bos_prefix(text, prefix) == has_bos]
            adds_bos: Any = {"add_special_tokens": False} if has_bos else _add_special_kwargs(None, self.add_bos_token)
            if some:
                out.update(zip(some, self.tokenizer(some, **adds_bos)["input_ids"], strict=True))
        return [out[text] for text in texts]

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        if not self._adds_bos:
            return super().tok_batch_encode(strings, padding_side, left_truncate_len, truncation)
        rows = [self.tok_encode(string) for string in strings]
        if left_truncate_len:
            rows = [ids[-left_truncate_len:] for ids in rows]
        padded = self.tokenizer.pad({"input_ids": rows}, padding=True, padding_side=padding_side, return_tensors="pt")
        return padded["input_ids"], padded["attention_mask"]

    # -- evaluation ---------------------------------------------------------------------------------------

    @asked_anew
    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        with attached(innermost(self.model), self.variant):
            return super()._model_call(inps, attn_mask, labels)

    @asked_anew
    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any) -> Tensor:
        model, finite = innermost(self.model), []
        with (
            attached(model, self.variant),
            contextlib.ExitStack() as scope,
            uncached(model, self.variant.sequential),
        ):
            watch = model.register_forward_hook(lambda _m, _a, out: finite.append(out.logits[:, -1].isnan().any()))
            scope.callback(watch.remove)
            out = super()._model_generate(context, max_length, stop, **generation_kwargs)
        if finite and bool(torch.stack(finite).any()):
            prompt = self.tok_decode(context[0].tolist())
            raise UserError(
                f"The logits are nan while '{self.variant_name}' generates from {_shorten(prompt)} and others."
            )
        return out

    @asked_anew
    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        self._tell_of_context(min(len(self.tok_encode(r.args[0])), self.max_length) for r in requests)
        if self._shared() is None:
            with self._as_documents():
                return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        # All at once, where lm_eval hands over `batch_size` windows at a time.
        documents = [self._windows_of(request.args[0]) for request in requests]
        owners = np.repeat(np.arange(len(documents)), [len(windows) for windows in documents])
        asked = [(None, *window) for windows in documents for window in windows]
        with self._of_tasks([requests[owner] for owner in owners]):
            answers = self._loglikelihood_tokens(asked, disable_tqdm=disable_tqdm)
        kl_of: Any = self._kl
        windows = np.array([(logprob, *kl) for (logprob, _), kl in zip(answers, kl_of, strict=True)]).reshape(-1, 3)
        sums = np.zeros((len(documents), 3))
        np.add.at(sums, owners, windows)
        self.divergence.note(requests, [(kl, int(tokens)) for _, kl, tokens in sums.tolist()])
        for request, total in zip(requests, sums[:, 0].tolist(), strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums[:, 0].tolist()

    @contextlib.contextmanager
    def _as_documents(self) -> Iterator[None]:
        # A document's first token is given the prefix token, which is the BOS token already.
        adds_bos, self._adds_bos = self._adds_bos, False
        try:
            yield
        finally:
            self._adds_bos = adds_bos

    def rolling(self, document: str) -> list[Query]:
        """The windows in which every token of a document is scored once, and the prefix token before it never.

        They are those of lm_eval's rolling loglikelihood, but for what the tokenizer itself adds to a text.
        """
        return [self._query(*window) for window in self.disjoint_windows(self.text_ids(document))]

    def _windows_of(self, document: str) -> list[tuple[list[int], list[int]]]:
        """As lm_eval has them, which scores the BOS and EOS tokens that a tokenizer adds."""
        with self._as_documents():
            return self.disjoint_windows(self.tok_encode(document))

    def disjoint_windows(self, ids: list[int]) -> list[tuple[list[int], list[int]]]:
        """The (context, continuation) pairs of ids in which every one of them is a continuation once."""
        windows = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
        return [make_disjoint_window(window) for window in windows]

    @asked_anew
    def sae_fidelity(self, requests: list[Instance], disable_tqdm: bool = False) -> list[dict[str, Any]]:
        """A document's sums for each request ((document, category, source), ...); see `fidelity`."""
        self._tell_of_context(min(len(self.text_ids(r.args[0])), self.max_length) for r in requests)
        with self._autocast():
            return self.fidelity.answer(self, requests, self._journal, show=not disable_tqdm and self.rank == 0)

    @asked_anew
    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        # What another variant was asked before is not tokenised again.
        shared = self._shared()
        known = [] if shared is None else shared.tokenised
        with self._of_tasks(requests):
            if [asked for asked, *_ in known] == [request.args for request in requests]:
                answers = self._loglikelihood_tokens(known, disable_tqdm=disable_tqdm)
            else:
                self._ahead = EncodingAhead(
                    texts_of_pairs(tuple[Any, ...](r.args) for r in requests), self._encode_several
                )
                answers = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        self.divergence.note(requests, self._kl)
        self.cut_prompts.note(requests, self._lengths)
        return answers

    @contextlib.contextmanager
    def _of_tasks(self, requests: Iterable[Instance]) -> Iterator[None]:
        """Inside the scope, the tokens asked for belong to the tasks of these requests, one for one."""
        self._tasks = [request.task_name for request in requests]
        try:
            yield
        finally:
            self._tasks, self._ahead = [], None

    @asked_anew
    def _loglikelihood_tokens(self, requests: list, **kwargs: Any) -> list[tuple[float, bool]]:
        self._tell_of_context(len(context) + len(continuation) for _, context, continuation in requests)
        self._lengths = [scored(len(asked), len(behind), self.max_length) for _, asked, behind in requests]
        self._tell_of_cut(self._lengths, "scored")
        if (shared := self._shared()) is None:
            with without_a_line_each():
                answers, self._kl = super()._loglikelihood_tokens(requests, **kwargs), None
        else:
            answers = self._from(shared, requests, disable_tqdm=bool(kwargs.get("disable_tqdm")))
        for (asked, *_), (logprob, _) in zip(requests, answers, strict=True):
            if math.isnan(logprob) or logprob == math.inf:
                what = "a window of a document" if asked is None else f"{_shorten(asked[0])} -> {_shorten(asked[1])}"
                raise UserError(f"The log-probability of {what} is {logprob} with '{self.variant_name}'.")
        return answers

    def together(
        self, variants: Sequence[Variant], journal: Journal | None = None, identities: Sequence[str] = ()
    ) -> SharedAnswers | None:
        """What answers for the baseline and `variants` in one pass; None where each must run as lm_eval runs it."""
        model = innermost(self.model)
        if getattr(getattr(self.model, "active_peft_config", None), "is_prompt_learning", False):
            logger.warning(
                "A prompt-tuned model is run once for each variant: its virtual tokens are not in the batch."
            )
            return None
        try:
            scorer = self.scorer(variants)
            with self._autocast():
                logger.debug("%s: sharing %s", type(model).__name__, scorer.layout)
        except ValueError as error:
            logger.warning("Each variant is run by itself, and no KL is taken: %s.", error)
            return None
        return SharedAnswers(scorer, journal, identities)

    def scorer(self, variants: Sequence[Variant]) -> Scorer:
        """Raises `ValueError` where the model's head cannot be told from the rest."""
        rows = self.batch_size if isinstance(self.batch_size, int) else ROWS_ON_GPU
        if self.device.type == "cpu":
            rows = min(rows, ROWS_ON_CPU)
        dtype = self.softmax_dtype or torch.float32
        return Scorer(innermost(self.model), variants, rows=rows, limit=self.max_length, dtype=dtype)

    def _autocast(self) -> Any:
        dtype = self.mixed_precision_dtype
        return torch.autocast(device_type=self.device.type, dtype=dtype, enabled=dtype is not None)

    def _from(self, together: SharedAnswers, requests: list, *, disable_tqdm: bool) -> list[tuple[float, bool]]:
        """The answers to requests ((context, continuation), context ids, continuation ids), and KL at them."""
        queries = [self._query(context, continuation) for _, context, continuation in requests]
        if requests and requests[0][0] is not None:  # no windows of documents
            together.tokenised = requests
        answers: list[Any] = [None] * len(requests)
        kl = [math.nan] * len(requests)
        disable_tqdm = disable_tqdm or self.rank != 0 or self.progress is not None
        bar = tqdm(total=len(requests), disable=disable_tqdm, desc="Running loglikelihood requests")
        progress = self.progress or Progress()
        progress.begin([len(query.ids) for query in queries], self._tasks)

        def done(number: int, of_models: np.ndarray) -> None:
            logprob, greedy, kl[number] = of_models[self._index].tolist()
            answers[number] = (logprob, bool(greedy))
            if (asked := requests[number][0]) is not None:
                self.cache_hook.add_partial("loglikelihood", asked, answers[number])
            bar.update()
            progress.answered(number)

        def ask(numbers: list[int]) -> None:
            some = [queries[number] for number in numbers]
            together.answers(some, lambda i, of: done(numbers[i], of), lambda i: progress.recalled(numbers[i]))

        # A task at a time, so that answers are the same to the bit whatever other tasks there are.
        by_task: dict[str | None, list[int]] = defaultdict(list)
        for number, task in enumerate(self._tasks or [None] * len(queries)):
            by_task[task].append(number)
        with bar, self._autocast():
            for numbers in by_task.values():
                targets = np.cumsum([len(queries[number].targets) for number in numbers])
                pieces = np.flatnonzero(np.diff(targets // TOKENS_AT_ONCE)) + 1
                for some in np.split(np.asarray(numbers), pieces):
                    ask(some.tolist())
        self._kl = [(of, len(query.targets)) for of, query in zip(kl, queries, strict=True)]
        return answers

    def _query(self, context: list[int], continuation: list[int]) -> Query:
        if not 0 < len(continuation) <= self.max_length:
            raise UserError(
                f"A continuation of {len(continuation)} tokens cannot be scored, only one of 1 to {self.max_length}: "
                f"that of {_shorten(self.tok_decode(context))}."
            )
        return Query((context + continuation)[-(self.max_length + 1) :][:-1], continuation)

    @asked_anew
    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        asked = [tuple[Any, ...](request.args) for request in requests]
        counts = [len(self.tok_encode(prompt)) for prompt, _ in asked]
        self._tell_of_context(counts)
        most, default = self.max_length, self.max_gen_toks
        lengths = [generated_from(n, settings, most, default) for n, (_, settings) in zip(counts, asked, strict=True)]
        self._tell_of_cut(lengths, "generated from")
        self.cut_prompts.note(requests, lengths)
        with without_a_line_each():
            if self._journal is None:
                return super().generate_until(requests, disable_tqdm=disable_tqdm)
            return in_batches(
                requests,
                counts,
                self.batch_size if isinstance(self.batch_size, int) else ROWS_ON_GPU,
                functools.partial(super().generate_until, disable_tqdm=True),
                self._journal,
                self.identity(),
                self.device.type,
                self.progress or Progress(),
            )

    def _tell_of_cut(self, lengths: Sequence[Length], what: str) -> None:
        """Told once of the prompts that are scored, and once of those that are generated from."""
        words = sentence(lengths, self.max_length)
        if words is not None and self.rank == 0:
            self._say_once(f"prompts {what} are cut", words)

    def _tell_of_context(self, lengths: Iterable[int]) -> None:
        """Told once; `lengths` are not looked at, nor tokenised for, where there is nothing to tell."""
        trained = self._trained_context
        if self._told_of_context or trained is None:
            return
        longer = [length > trained for length in lengths]
        if any(longer):
            self._told_of_context = True
            logger.warning(
                "%d of %d prompts (%.0f%%) are longer than the %d tokens that the dictionary was trained on.",
                sum(longer),
                len(longer),
                100 * sum(longer) / len(longer),
                trained,
            )

    # -- what the results carry ---------------------------------------------------------------------------

    @property
    def variant_name(self) -> str:
        if not self.variant.splices:
            return "baseline"
        names = "+".join(splice.dictionary.name for splice in self.variant.splices)
        how = [] if self.choices.splice == "reconstruction" else [str(self.choices.splice)]
        how += [] if self.choices.scale == 1 else [f"scale {self.choices.scale:g}"]
        return f"{names} ({', '.join(how)})" if how else names

    def choice_facts(self) -> dict[str, Any]:
        """How the dictionaries are used, as plain values."""
        return {
            "splice": self.choices.splice,
            "scale": self.choices.scale,
            "splice_tokens": self.choices.splice_tokens,
            "special_token_ids": sorted(self.variant.special_ids),
            "bos": self.bos_choice,
            "seed": self.choices.seed if self.choices.splice == "random_error" else None,
            "mean": self.mean_source,
            "model_dtype": str(self.model.dtype).removeprefix("torch."),
            "max_length": self.max_length,
        }

    def provenance(self) -> dict[str, Any]:
        """Everything besides the model itself that the numbers depend on, as plain values."""
        return {"splices": describe(self.variant), **self.choice_facts(), "packages": versions(self)}

    def get_model_info(self) -> dict[str, Any]:
        own = {
            schema.KEY: schema.VERSION,
            **self.provenance(),
            "kl_at_answers": self.divergence.by_task(),
            "fidelity": self.fidelity.by_task,
        }
        own["effective_compute"] = self.fidelity.effective_compute
        own["cut_prompts"] = self.cut_prompts.by_task()
        return {**super().get_model_info(), "sae_lm_eval": own}

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Give this variant a table of its own in the file of `--use_cache`."""
        if cache_hook.dbdict is not None:
            with self.in_its_table(cache_hook.dbdict):
                super().set_cache_hook(cache_hook)
        else:
            super().set_cache_hook(cache_hook)


def join(baseline: Any, variants: Sequence[Any], journal: Journal | None = None, *, bos: bool | None = None) -> None:
    """Let a `SaeHFLM` without dictionaries and variants made of it answer from the same forked passes.

    All are asked with a BOS token where one of the dictionaries was trained behind one, or as `bos` says. Answers are
    kept in `journal`, from which the same models answer in another process.
    """
    if bos is None:
        bos = any(splice.dictionary.prepend_bos for lm in variants for splice in lm.variant.splices)
    baseline._set_bos(bos)
    family = (baseline, *variants)
    for index, lm in enumerate(family):
        lm._bos_wanted, lm._adds_bos, lm.bos_choice = bos, baseline._adds_bos, baseline.bos_choice
        lm._index, lm._journal, lm._family = index, journal, family
    baseline._shared()


OWN = tuple(
    name
    for name, parameter in inspect.signature(SaeHFLM.__init__).parameters.items()
    if name not in ("self", "pretrained") and parameter.kind is not parameter.VAR_KEYWORD
)
KNOWN = ("pretrained", *inspect.signature(HFLM.__init__).parameters, *OWN)


def innermost(model: Any) -> Any:
    """The model itself where adapters (LoRA) are wrapped around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _shorten(prompt: str, most: int = 60) -> str:
    prompt = " ".join(prompt.split())
    return repr(prompt if len(prompt) <= most else f"...{prompt[-most:]}")


explain_without_traceback("lm_eval", "lm-eval")
