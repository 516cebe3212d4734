"""Rewrite the tables of docs/bfloat16.md: how far answers in bfloat16 are from those in float32.

    python scripts/bfloat16.py

Small random models of each architecture, with the dictionaries of the tests. The weights are rounded to bfloat16 in
both runs, so that what differs is the arithmetic of the model and of the dictionary.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
from generated_parts import rewritten, split
from torch import Tensor

from sae_lm_eval.dictionaries.loading import load_dictionary
from sae_lm_eval.scoring.request import Query, ScoreRequest
from sae_lm_eval.scoring.scorer import Scorer
from sae_lm_eval.splicing.attach import attached
from sae_lm_eval.splicing.splice import Variant
from sae_lm_eval.splicing.variants import Choices, build_variant, place_dictionaries

HERE = Path(__file__).resolve().parent
DOC = HERE.parent / "docs" / "bfloat16.md"
sys.path.insert(0, str(HERE.parent / "tests"))
from models import ARCHITECTURES, VOCABULARY, WIDTH, random_model, random_sae  # noqa: E402

SEQUENCES, LENGTH = 64, 24
SITE = "blocks.1.hook_resid_post"
SPECIAL = frozenset({0, 1, 2})
MODELS = {"untouched": None, "ReLU": "standard", "top-k": "topk"}
HEADER = (
    "| model | variant | loglikelihood, median | loglikelihood, 99% | likeliest token differs "
    "| L0 in float32 | L0 in bfloat16 | latents that differ | engine, median |"
)


def token_ids() -> Tensor:
    """(sequences, positions)"""
    return torch.randint(3, VOCABULARY, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(0))


def variant_of(model, architecture: str, dtype: torch.dtype) -> Variant:
    dictionary = load_dictionary(random_sae(WIDTH, SITE, architecture), dtype=dtype)
    variant = build_variant(model, [dictionary], Choices(), SPECIAL)
    place_dictionaries(model, variant)
    return variant


@torch.no_grad()
def answers(model, variant: Variant | None) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities (sequences, positions, vocabulary) in float32, and which latents fire (positions, latents)."""
    if variant is None:
        return model(input_ids=token_ids(), use_cache=False).logits.float().log_softmax(-1), None
    read: list[Tensor] = []
    (splice,) = variant.splices
    encode = splice.dictionary.module.encode
    splice.dictionary.module.encode = lambda x: read.append(encode(x)) or read[-1]
    try:
        with attached(model, variant):
            logits = model(input_ids=token_ids(), use_cache=False).logits
    finally:
        del splice.dictionary.module.encode
    (latents,) = read
    return logits.float().log_softmax(-1), (latents != 0).flatten(0, -2)


def measured(architecture: str, name: str, dtype: torch.dtype = torch.float32) -> list[float | None]:
    """The row of an architecture and a variant, whose dictionary in the bfloat16 model is in `dtype`.

    Differences of loglikelihoods are in nats a token.
    """
    half = random_model(architecture).to(torch.bfloat16)
    full = copy.deepcopy(half).float()
    kind = MODELS[name]
    pairs = [
        answers(model, None if kind is None else variant_of(model, kind, of_dictionary))
        for model, of_dictionary in ((full, torch.float32), (half, dtype))
    ]
    (wide, fires_wide), (narrow, fires_narrow) = pairs
    targets = token_ids()[:, 1:, None]
    off = (wide - narrow)[:, :-1].gather(-1, targets).abs().flatten()
    row = [float(off.median()), float(off.quantile(0.99))]
    row.append(float((wide.argmax(-1) != narrow.argmax(-1)).float().mean()))
    if fires_wide is None or fires_narrow is None:
        return [*row, None, None, None, None]
    l0 = [float(fires.sum(-1).float().mean()) for fires in (fires_wide, fires_narrow)]
    differ = float((fires_wide ^ fires_narrow).sum() / fires_wide.sum())
    return [*row, *l0, differ, engine_off(half, variant_of(half, kind, dtype), narrow)]


def engine_off(model, variant: Variant, plain: Tensor) -> float:
    """The median difference between the engine's loglikelihoods and the plain spliced model's, both in bfloat16."""
    queries = [Query(ids[:-1].tolist(), ids[1:].tolist()) for ids in token_ids()]
    scores = {}
    Scorer(model, [variant], rows=4, limit=64).score(ScoreRequest(queries), scores.update)
    shared = torch.stack([torch.as_tensor(scores[i].logprob[1]) for i in range(len(queries))])
    return float((shared - plain[:, :-1].gather(-1, token_ids()[:, 1:, None])[..., 0]).abs().median())


def cells(row: list[float | None]) -> str:
    formats = (".4f", ".3f", ".2%", ".2f", ".2f", ".2%", ".1e")
    return " | ".join("n/a" if x is None else format(x, f) for x, f in zip(row, formats, strict=True))


def table(dtype: torch.dtype) -> str:
    rows = [HEADER, "|---|---|" + "---:|" * 7]
    for architecture in ARCHITECTURES:
        for name, kind in MODELS.items():
            if kind is not None or dtype is torch.float32:
                rows.append(f"| {architecture} | {name} | {cells(measured(architecture, name, dtype))} |")
    return "\n".join(rows)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def stated(dtype: torch.dtype) -> dict[tuple[str, str], list[float | None]]:
    """The rows of a table of the page by architecture and variant; shares as numbers."""
    _, table, _ = split(DOC.read_text(), name_of(dtype))
    rows = {}
    for line in table.splitlines()[2:]:
        architecture, variant, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows[architecture, variant] = [
            None if cell == "n/a" else float(cell.rstrip("%")) / (100 if cell.endswith("%") else 1) for cell in cells
        ]
    return rows


def main() -> None:
    tables = {name_of(dtype): table(dtype) for dtype in (torch.float32, torch.bfloat16)}
    DOC.write_text(rewritten(DOC.read_text(), tables))


if __name__ == "__main__":
    main()
