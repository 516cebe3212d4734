"""What is known of how registered releases were trained where no file of theirs says it, with the source of each fact.

SAELens' converters fill such gaps with constants, which are not taken for statements here.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

# TransformerLens' `from_pretrained` does all of this unless told otherwise.
DEFAULT_PROCESSING = {"fold_ln": True, "center_writing_weights": True, "fold_value_biases": True}
NO_PROCESSING: dict[str, Any] = {}
BY_DICTIONARY_LEARNING = "github.com/saprmarks/dictionary_learning, buffer.py"


class Fact(NamedTuple):
    """What is known of the releases whose name matches the glob `releases`, and where its authors say so.

    `processing` are TransformerLens' options on loading the model, {} where it was loaded as it is; `prepend_bos` is
    whether a BOS token stood before each text. None is not known.
    """

    releases: str
    processing: Mapping[str, Any] | None
    source: str
    prepend_bos: bool | None = None


FACTS = (
    # HookedTransformer.from_pretrained(cfg["model_name"]); the first token of every row is set to BOS.
    Fact(
        "gpt2-small-hook-z-kk",
        DEFAULT_PROCESSING,
        "github.com/ckkissane/attention-output-saes, train.py and common/utils.py",
        prepend_bos=True,
    ),
    # HookedTransformer.from_pretrained(tlens_model_name)
    Fact("gpt2-small-res_*-ajt", DEFAULT_PROCESSING, "github.com/ApolloResearch/e2e_sae, e2e_sae/loader.py"),
    # HookedTransformer.from_pretrained("gpt2", center_writing_weights=False); what else it does, no stream shows.
    Fact(
        "gpt2-small-*-v5-*",
        {"center_writing_weights": False},
        "github.com/openai/sparse_autoencoder, README.md",
    ),
    # dictionary_learning reads Hugging Face's own modules, through nnsight.
    Fact("pythia-70m-deduped-*-sm", NO_PROCESSING, BY_DICTIONARY_LEARNING),
    Fact("sae_bench_*", NO_PROCESSING, BY_DICTIONARY_LEARNING),
    Fact("saebench_*", NO_PROCESSING, BY_DICTIONARY_LEARNING),
)


def fact_of(release: str) -> Fact | None:
    """What is known of a registered release, None where nothing is."""
    return next((fact for fact in FACTS if fnmatchcase(release, fact.releases)), None)
