"""What an answer depends on besides the prompt: one value, looked at anew at each evaluation call.

Whatever remembers an answer, or what an answer is made of, keeps it under this value.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from sae_lm_eval.dictionaries.model_names import is_among
from sae_lm_eval.files.reading import at_home
from sae_lm_eval.runtime.content import Content, contents
from sae_lm_eval.splicing.hook_names import model_name
from sae_lm_eval.splicing.module_edits import Edited
from sae_lm_eval.splicing.splice import Variant
from sae_lm_eval.splicing.variants import provenance_of

PACKAGES = ("sae_lm_eval", "lm_eval", "torch", "transformers", "sae_lens", "transformer_lens")
OPTIONAL = {"peft": "peft", "sparsify": "eai-sparsify"}  # by the package whose modules are met
TOKENIZER_PARTS = ("model", "normalizer", "pre_tokenizer", "post_processor", "decoder")
TOKENIZER_FLAGS = (
    *("add_bos_token", "add_eos_token", "add_prefix_space", "legacy", "split_special_tokens"),
    *("clean_up_tokenization_spaces", "special_tokens_map", "bos_token_id", "eos_token_id", "pad_token_id"),
)
# Of what is recorded of splices and means, what they are called and what is said of them.
NAMES = ("dictionary", "revision", "trained_on", "stated", "remarks", "text", "kl_alone")


class Snapshot:
    """Spliced models of one load as they are at one moment; weights are looked at once, in one transfer per device."""

    def __init__(self, models: Sequence[Any]) -> None:
        spliced = [splice.dictionary for model in models for splice in model.variant.splices]
        edited = [model.variant for model in models if model.variant.edits]
        wrapped = models[0].loaded.wrapped
        content = contents(
            {"model": wrapped, **{str(id(d.module)): d.module for d in spliced}}
            | {f"edits {id(variant)}": Edited(variant.edits) for variant in edited},
            {str(id(d.module)): d.functions for d in spliced}
            | {f"edits {id(variant)}": Edited.functions(variant.edits) for variant in edited},
        )
        self.model = content["model"]
        self._dictionaries = content
        self._tokenizers = {id(m.tokens.tokenizer): tokenizer_content(m.tokens.tokenizer) for m in models}
        self.identities = [self._identity(model) for model in models]

    def tokenizer(self, model: Any) -> str:
        return self._tokenizers[id(model.tokens.tokenizer)]

    def parts(self, model: Any) -> dict[str, Any]:
        """What the answers of a spliced model depend on, as plain values."""
        dictionaries = [self._dictionaries[str(id(splice.dictionary.module))] for splice in model.variant.splices]
        splices = provenance_of(model.variant, [content.weights for content in dictionaries])
        facts = choice_facts(model)
        for name in {"mean", "best_layers"} & facts.keys():
            facts[name] = dict_without(NAMES, facts[name] or {})
        return {
            "model": model_parts(self.model, model.loaded.computed_as_loaded),
            "tokenizer": self.tokenizer(model),
            **({"edits": vars(self._dictionaries[f"edits {id(model.variant)}"])} if model.variant.edits else {}),
            "dictionaries": [vars(content) for content in dictionaries],
            "splices": [dict_without(NAMES, splice) for splice in splices],
            "how": {**facts, **model_arguments(model)},
            "packages": {name: series(version) for name, version in model.versions().items()},
        }

    def _identity(self, model: Any) -> str:
        return hashlib.sha256(json.dumps(self.parts(model), sort_keys=True).encode()).hexdigest()


def splices_of(model: Any) -> list[dict[str, Any]]:
    """As `provenance_of`, of a spliced model; `trained_here` is whether a dictionary names the model as its own."""
    name = model_name(model.loaded.model)
    return [{**splice, "trained_here": is_among(name, splice["trained_on"])} for splice in provenance_of(model.variant)]


def choice_facts(model: Any) -> dict[str, Any]:
    """How the dictionaries of a spliced model are used, or its edit, as plain values."""
    choices, variant = model.choices, model.variant
    return {
        **choices.record,
        **({} if variant.edit is None else {"edit": dict(variant.edit)}),
        **({} if variant.adapter is None else {"adapter": dict(variant.adapter)}),
        "splice": model.mode,
        "scale": choices.scale,
        "splice_tokens": choices.splice_tokens,
        "special_token_ids": sorted(variant.special_ids),
        "bos": model.tokens.bos_choice,
        "seed": choices.seed if choices.splice == "random_error" else None,
        "mean": model.prepared.mean_source,
        **({} if model.prepared.best_layers is None else {"best_layers": model.prepared.best_layers}),
        "model_dtype": str(model.loaded.wrapped.dtype).removeprefix("torch."),
        "max_length": model.max_length,
    }


def model_arguments(model: Any) -> dict[str, str]:
    """How the model is run, by lm_eval's names of arguments."""
    settings = model.loaded.settings
    own = {
        "max_length": settings.max_length,
        "prefix_token_id": model.tokens.prefix_token_id,
        "softmax_dtype": settings.softmax_dtype,
        "mixed_precision_dtype": settings.mixed_precision_dtype,
    }
    return {name: str(value) for name, value in own.items()} | dict(settings.further)


def dict_without(names: Collection[str], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def model_parts(content: Content, computed_as_loaded: str | None) -> dict[str, str | None]:
    """Buffers that are made anew wherever a model is loaded count where somebody has changed them since."""
    computed = None if content.computed == computed_as_loaded else content.computed
    return {"weights": content.weights, "computed": computed, "settings": content.settings}


def package_versions(model: nn.Module, variant: Variant) -> dict[str, str]:
    """Of the packages that took part, in full."""
    modules = [model, Edited(variant.edits), *(splice.dictionary.module for splice in variant.splices)]
    met = {type(part).__module__.partition(".")[0] for module in modules for part in module.modules()}
    return _versions(tuple(name for package, name in OPTIONAL.items() if package in met))


@functools.cache
def _versions(optional: tuple[str, ...]) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in (*PACKAGES, *optional)}


def series(version: str) -> str:
    """A version without what patches count up: 2.13 of 2.13.1+cu128."""
    return ".".join(version.split("+")[0].split(".")[:2])


def tokenizer_content(tokenizer: Any) -> str:
    """32 hexadecimal digits over what decides the ids of a text, and the text of ids."""
    digest = hashlib.blake2b(type(tokenizer).__name__.encode(), digest_size=16)
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        digest.update(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    else:
        for name in TOKENIZER_PARTS:
            digest.update(b"\0" + _state(getattr(inner, name)))
        added = sorted(inner.get_added_tokens_decoder().items())
        digest.update(repr([(number, token.content, repr(token)) for number, token in added]).encode())
    digest.update(repr([(name, getattr(tokenizer, name, None)) for name in TOKENIZER_FLAGS]).encode())
    return digest.hexdigest()


def _state(part: Any) -> bytes:
    if part is None:
        return b""
    try:
        return part.__getstate__()
    except Exception:  # of Rust, for a part that is written in Python: nothing is remembered then
        return uuid.uuid4().bytes


def text_content(file: str | Path | None) -> str | None:
    """A hash of a file, None where there is none now: what was read of it stands then."""
    path = None if file is None else at_home(file)
    if path is None or not path.is_file():
        return None
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside the scope, a model is in eval mode; after it each of its modules is in the mode it was in."""
    training = [part for part in model.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
