"""A model, its variants, and what they answer to a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sae_lm_eval.dictionaries.dictionary import Dictionary
from sae_lm_eval.errors import UserError, one_of
from sae_lm_eval.harness.model import SaeHFLM
from sae_lm_eval.scoring.detokenize import decoder, namer, pieces
from sae_lm_eval.scoring.identity import choice_facts
from sae_lm_eval.scoring.parting import parting
from sae_lm_eval.scoring.spliced_model import Group
from sae_lm_eval.scoring.tokenization import Tokenization
from sae_lm_eval.splicing.arguments import dictionaries_of, dtype_of
from sae_lm_eval.splicing.splice_arguments import MODES
from sae_lm_eval.splicing.variants import provenance_of
from sae_lm_eval.talk.chosen import Sampling, check_columns, check_system, prompt_format_of
from sae_lm_eval.talk.sampling import BASELINE, AnswerColumn, Continuation, Writers


@dataclass(frozen=True)
class Answer:
    """What a column wrote after `prompt`; `parted` is the index in `ids` of its first token that is not the baseline's.

    `text` is without special tokens; `ended` is None where writing was interrupted.
    """

    column: AnswerColumn
    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    text: str
    ended: str | None
    parted: int | None


@dataclass(frozen=True)
class Exchange:
    """A prompt of the user's and the answers to it, the baseline's first.

    `beyond` is how many tokens of the longest lie past the context that a dictionary was trained on.
    """

    prompt: str
    system: str | None
    sampling: Sampling
    answers: tuple[Answer, ...]
    beyond: int
    provenance: Mapping[str, Any]


class Model:
    """A loaded model with its columns: the baseline, and a variant for each `sae=` of `model_args` and `saes`, or for
    the `edit=` of `model_args`.

    Raises `UserError` for all that `lm_eval --model sae_hf` would refuse.
    """

    def __init__(self, model_args: Mapping[str, Any], saes: Sequence[str] = (), prompt_format: str | None = None):
        self.model_args = {name: value for name, value in model_args.items() if name != "sae"}
        own = [model_args["sae"]] if model_args.get("sae") is not None else []
        specs = [*own, *saes]
        check_columns(specs, model_args.get("edit"))
        self.lm = SaeHFLM(**self.model_args, sae=specs[0] if specs else None)
        first = self.lm.spliced
        wanted = [first.wanted, *(replace(first.wanted, dictionaries=self._load(spec)) for spec in specs[1:])]
        bos = any(dictionary.prepend_bos for choice in wanted for dictionary in choice.dictionaries)
        others = [first.as_variant(choice, wants_bos=bos) for choice in wanted[1:]]
        self.variants = [first.in_group(Group(), wants_bos=bos), *others]
        self._provenance: dict[str, Any] | None = None
        self._writers: Writers | None = None
        self.format = prompt_format_of(prompt_format, self.name, has_template=bool(self.tokens.tokenizer.chat_template))
        self.decode = decoder(self.tokens.tokenizer)
        self.name_token = namer(self.tokens.tokenizer, self.tokens.encode("a", add_special_tokens=False)[-1])

    # -- variants -----------------------------------------------------------------------------------------

    @property
    def model(self) -> Any:
        """What dictionaries are spliced into."""
        return self.lm.loaded.model

    @property
    def tokens(self) -> Tokenization:
        """How all columns read."""
        return self.variants[0].tokens

    @property
    def columns(self) -> list[AnswerColumn]:
        return [AnswerColumn(BASELINE), *self.variant_columns]

    @property
    def variant_columns(self) -> list[AnswerColumn]:
        return [AnswerColumn(spliced.name, spliced.variant) for spliced in self.variants]

    def set_splice(self, mode: str) -> None:
        """Let another mode take the place of the activations. Raises `UserError` and changes nothing if it cannot."""
        one_of(mode, MODES, "splice")
        if (edit := self.variants[0].wanted.edit) is not None:
            raise UserError(f"edit={edit} has no splice to change: it has no dictionary.")
        if mode == "mean" and self.variants[0].wanted.mean_text is None:
            raise UserError("splice=mean needs the text it averages: start with splice=mean,mean_text=FILE.")
        self.variants = [
            spliced.as_variant(
                replace(spliced.wanted, choices=replace(spliced.choices, splice=mode)),
                wants_bos=spliced.tokens.wants_bos,
            )
            for spliced in self.variants
        ]
        self._provenance = self._writers = None

    @property
    def writers(self) -> Writers:
        """What writes as the columns; whether they can in one batch is tried before the first answer."""
        if self._writers is None:
            self._writers = Writers(self.lm.loaded, self.columns)
        return self._writers

    def _load(self, spec: str) -> tuple[Dictionary, ...]:
        dtype = dtype_of(self.model_args.get("sae_dtype", "float32"))
        return dictionaries_of(spec, dtype, self.model_args.get("norm_factor"))

    # -- prompts ------------------------------------------------------------------------------------------

    def check_system(self, system: str | None) -> None:
        """Raise `UserError` where there is no chat template to put a system prompt in."""
        check_system(system, self.format, self.name)

    def encode(self, prompt: str, messages: Sequence[dict[str, str]]) -> list[int]:
        """The ids of `messages` by the chat template, or of `prompt` alone, with BOS as the adapter has it."""
        text = self.lm.apply_chat_template(list(messages)) if self.format == "chat" else prompt
        return self.tokens.encode(text) or [self.tokens.prefix_token_id]

    def text_of(self, written: Continuation) -> str:
        """What was written, without special tokens."""
        special = self.tokens.declared_special | self.tokens.special_ids
        added = pieces(self.decode, [*written.prompt, *written.ids], len(written.prompt))
        return "".join(piece for piece, token in zip(added, written.ids, strict=True) if token not in special)

    @property
    def context_size(self) -> int:
        """The longest text, in tokens, that no dictionary has to stretch for."""
        return min(spliced.context_size for spliced in self.variants)

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids of eos that the tokenizer, the model's configuration and its generation defaults have."""
        eos_ids: set[int] = set()
        for source in (self.tokens.tokenizer, self.model.config, getattr(self.model, "generation_config", None)):
            ids = getattr(source, "eos_token_id", None)
            eos_ids.update(ids if isinstance(ids, (list, tuple)) else [] if ids is None else [ids])
        return frozenset(eos_ids)

    # -- what the numbers carry ---------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return str(self.model.config._name_or_path)

    @property
    def provenance(self) -> dict[str, Any]:
        """Everything besides prompt and sampling that answers and KL depend on, as plain values."""
        if self._provenance is None:  # it hashes the dictionaries' weights
            first = self.variants[0]
            self._provenance = {
                "model": self.name,
                "revision": getattr(self.model.config, "_commit_hash", None) or self.lm.revision,
                **choice_facts(first),
                "packages": first.versions(),
                "prompt_format": self.format,
                "trained_context": self.context_size,
                "variants": {spliced.name: provenance_of(spliced.variant) for spliced in self.variants},
            }
        return self._provenance


class Conversation:
    """Prompts and answers; in the chat format each column goes on from its own answers."""

    def __init__(self, model: Model, sampling: Sampling, system: str | None = None) -> None:
        model.check_system(system)
        self.model, self.sampling, self.system = model, sampling, system
        first = [] if system is None else [{"role": "system", "content": system}]
        self.messages: list[list[dict[str, str]]] = [list(first) for _ in model.columns]

    def answer(self, prompt: str, watch: Callable[[list[Continuation]], bool] = lambda _texts: True) -> Exchange:
        """The answers to `prompt`, which the conversation then goes on from; `watch` is as in `Writers.write`."""
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"The prompt {prompt!r} is not text in UTF-8: {error.reason}.") from error
        model, message = self.model, {"role": "user", "content": prompt}
        prompts = [model.encode(prompt, [*before, message]) for before in self.messages]
        texts = model.writers.write(prompts, self.sampling, stop_ids=model.stop_ids, watch=watch)
        baseline = texts[0].ids
        answers = tuple(
            Answer(
                written.column,
                tuple(written.prompt),
                tuple(written.ids),
                model.text_of(written),
                written.ended,
                None if written.column.variant is None else parting(baseline, written.ids),
            )
            for written in texts
        )
        for messages, answer in zip(self.messages, answers, strict=True):
            if answer.ids:  # else it was interrupted before its first token
                messages += [message, {"role": "assistant", "content": answer.text}]
        longest = max(len(answer.prompt) + len(answer.ids) for answer in answers)
        beyond = max(0, longest - model.context_size)
        return Exchange(prompt, self.system, self.sampling, answers, beyond, model.provenance)


def exchange_record(exchange: Exchange) -> dict[str, Any]:
    """An exchange as plain values, with all that it depends on: a line of jsonl."""
    return {
        "prompt": exchange.prompt,
        "system": exchange.system,
        **vars(exchange.sampling),
        "answers": [
            {
                "column": answer.column.name,
                "text": answer.text,
                "tokens": list(answer.ids),
                "ended": answer.ended,
                "parted": answer.parted,
            }
            for answer in exchange.answers
        ],
        "tokens_beyond_trained_context": exchange.beyond,
        "provenance": dict(exchange.provenance),
    }
