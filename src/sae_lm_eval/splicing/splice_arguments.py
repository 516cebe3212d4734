"""The arguments that describe a variant: their names, defaults and meanings stand here and nowhere else. No torch.

`SaeHFLM` takes its defaults from here, sweep files their keys, and docs/splicing.md its tables
(scripts/argument_tables.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, no_type_check

# What stands at each position, by mode.
MODES = {
    "reconstruction": "the dictionary's output (default)",
    "with_error": "its output plus its error: must change nothing",
    "zero": "zeros",
    "mean": "the mean activation over `mean_text=FILE`",
    "random_error": "the activation plus a random vector of the norm of the dictionary's error (drawn by `seed=`)",
    "none": "the activation, untouched: the same bits as `--model hf`",
}
OF_SITES = ("none", "zero", "mean")  # what does not depend on the dictionaries, but for where they write
TOKENS = ("non_special", "all")  # the first also with a position, as in non_special:4
INPUTS = ("spliced", "clean")
OF_ENTRIES = ("peft",)  # of variants of a run alone: as an argument of the model it is the model's own
LATENT_EDITS = ("keep_top", "ablate", "clamp", "latent_positions", "latent_heads")


@no_type_check  # what is of a wrong type is refused in a sentence, where it is read
@dataclass(frozen=True, eq=False)
class SpliceArguments:
    """What a user says of a variant, as text or objects, not yet read: see `arguments.requested_splices`."""

    sae: Any = field(
        default=None,
        metadata={
            "meaning": "the dictionary: a [spec](specs.md), several joined by `+`; from Python also a SAELens "
            "SAE, a sparsify SparseCoder, a `Dictionary`, [a module or function of your own](decompositions.md), "
            "or a list"
        },
    )
    splice: str | None = field(
        default="reconstruction",
        metadata={"meaning": "what takes the place of the activations: the table above"},
    )
    splice_tokens: str = field(
        default="non_special",
        metadata={
            "meaning": "positions that hold the tokenizer's bos, eos or pad keep their activation, and those on which "
            "the release was not trained: the first four for Gemma Scope 2's `-it` transcoders (default); "
            "`non_special:N`: the first N, whatever the release says; `all` splices everything"
        },
    )
    splice_layers: str | int | None = field(
        default=None,
        metadata={
            "meaning": "of dictionaries at several layers those that are spliced in, as in `0-4+9`, or `best:3` for "
            "the three that cost least alone; at the others the model's own activations stay (default: all)"
        },
    )
    layers_text: str | None = field(
        default=None,
        metadata={
            "meaning": "the text for `splice_layers=best:COUNT`: .txt, .jsonl or .parquet; 4,096 tokens are read"
        },
    )
    splice_input: str = field(
        default="spliced",
        metadata={
            "meaning": "what dictionaries read: `spliced`, what earlier splices have left (default), or `clean`, what "
            "passes the untouched model on the same text"
        },
    )
    hook: str | None = field(
        default=None,
        metadata={
            "meaning": "another site than the release's: a TransformerLens hook, or a module path with `.input` or "
            "`.output`; `IN:OUT` for a transcoder; joined by `+`"
        },
    )
    hook_map: str | None = field(
        default=None,
        metadata={
            "meaning": "another activation map: `raw`, `centered`, `value_bias`, `folded_value_bias`; joined by `+`"
        },
    )
    norm_factor: float | str | None = field(
        default=None,
        metadata={
            "meaning": "what activations were multiplied by in training, where a release does not say it; `IN:OUT` for "
            "a transcoder"
        },
    )
    sae_dtype: str = field(
        default="float32",
        metadata={"meaning": "dtype of the dictionary, whatever the model's"},
    )
    seed: int = field(
        default=0,
        metadata={"meaning": "of `splice=random_error`"},
    )
    mean_text: str | None = field(
        default=None,
        metadata={"meaning": "the text for `splice=mean`: .txt, .jsonl or .parquet"},
    )
    mean_tokens: int = field(
        default=16384,
        metadata={"meaning": "how many tokens of it"},
    )
    scale: float = field(
        default=1.0,
        metadata={
            "meaning": "how much of the edit is made: y + scale (new - y) for each mode, from 0 (nothing) to 1, for a "
            "dose-response curve"
        },
    )

    keep_top: int | None = field(
        default=None,
        metadata={"meaning": "how many of the largest latents of a position are kept; the others become 0"},
    )
    ablate: int | str | None = field(
        default=None,
        metadata={
            "meaning": "latents that become 0, by number, joined by `+`: `ablate=12+57`; of several dictionaries with "
            "the layer that each reads at, `ablate=3/12`"
        },
    )
    clamp: str | None = field(
        default=None,
        metadata={"meaning": "latents that become a value, joined by `+`: `clamp=12:3.5+57:0`"},
    )
    latent_positions: str | None = field(
        default=None,
        metadata={
            "meaning": "where these edits of latents hold: `all` positions (default), the `last` of the prompt, "
            "`after_header`, behind the few-shot examples, or `first:N`, the first N of the text"
        },
    )
    latent_heads: int | str | None = field(
        default=None,
        metadata={
            "meaning": "of a dictionary at `attn.hook_z` the heads in which these edits hold, joined by `+`: "
            "`latent_heads=0+3` (default: all)"
        },
    )

    edit: Any = field(
        default=None,
        metadata={
            "meaning": "in place of a dictionary a change of the model itself: `quantize?bits=4`, `prune?share=0.3`, "
            "`lowrank?rank=64`, `skip?layers=3+4`, `noise?std=0.1`, or "
            "[a function of your own](decompositions.md#edits-of-the-model)"
        },
    )

    peft: Any = field(
        default=None,
        metadata={
            "meaning": "of a variant of a run: a LoRA or another adapter of PEFT's that the variant has and the "
            "baseline has not, by its folder or its repository: "
            "[what comes back with it](decompositions.md#recovery-by-an-adapter)"
        },
    )

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Of all arguments, the dictionary first."""
        return tuple(each.name for each in fields(cls))

    @classmethod
    def among(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Those of a splice among the arguments of a model."""
        return {name: arguments[name] for name in cls.names() if name in arguments and name not in OF_ENTRIES}

    @classmethod
    def meanings(cls) -> dict[str, str]:
        """What a reader is told of each argument, by `NAME=DEFAULT`."""
        return {f"{each.name}={_shown(each.default)}": each.metadata["meaning"] for each in fields(cls)}


def _shown(default: Any) -> str:
    return "" if default is None else f"{default:g}" if isinstance(default, float) else str(default)
