"""What each patched variant of `where` costs, in forward passes of the untouched model over the same requests.

    python benchmarks/where_cost.py OUT [--rounds 3] [--limit 10] [--variants 12] [--threads 2]

The model and its SAE are random and of the size of speed.py's: 8 blocks, with the SAE behind the fourth, so that half
of the blocks are left. The questions are real: MMLU with five shots, divided by segment and by kind. In turn the
untouched model scores them alone, and together with some patched variants in the same forked passes. A variant costs
the difference divided by their number; what is printed is its share of the time alone. OUT/where_cost.json has all
times. The exit code is 1 if the median is above 0.6.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["TQDM_DISABLE"] = "1"

import speed
import torch

from sae_lm_eval.attribution.patches import classes_of
from sae_lm_eval.runs.asked_tasks import asked_tasks
from sae_lm_eval.runs.inquiry import Inquiry
from sae_lm_eval.runs.model_pool import LoadedSweep
from sae_lm_eval.runs.settings import lm_eval_config
from sae_lm_eval.runs.sweep import sweep_of
from sae_lm_eval.runs.where_variant import VariantInquiry
from sae_lm_eval.runtime.journal import Journal
from sae_lm_eval.scoring.shared_answers import SharedAnswers

BAR = 0.6
SIZE = speed.SIZES["llama"]
LAYER = SIZE.layers // 2 - 1


def prepared(out: Path, limit: int, journal: Journal) -> VariantInquiry:
    """The model with its SAE and the questions, read and divided."""
    if not (out / "model").exists():
        speed.make(SIZE, out, "float32")
    speed.random_sae(SIZE, LAYER).save_model(str(out / "middle"))
    given = {"model_args": {"pretrained": str(out / "model")}, "tasks": speed.MMLU, "num_fewshot": 5, "limit": limit}
    sweep = sweep_of({**given, "variants": [{"sae": str(out / "middle"), "name": "middle"}], "device": "cpu"})
    loaded = LoadedSweep(sweep, lm_eval_config(sweep))
    models = loaded.joined({"middle": loaded.variant("middle")}, journal, loaded.look("middle").wants_bos)
    tasks = asked_tasks(loaded, models["baseline"])
    return VariantInquiry("middle", models["middle"].spliced, tasks, (), Inquiry(), journal, lambda _done, _of: None)


def patched_variants(inquiry: VariantInquiry, count: int) -> list[Any]:
    """Some patches of its classes, no two alike."""
    variant = inquiry.spliced.variant
    random = variant.in_mode("random_error")
    by_key = {}
    for token_class in classes_of(inquiry.requests.labels, variant):
        by_key |= dict(token_class.patches(variant, random).values())
    return list(by_key.values())[:count]


def seconds(inquiry: VariantInquiry, variants: Sequence[Any], journal: Journal) -> float:
    """To score all requests by the untouched model and the variants, in one forked pass each."""
    scorer = inquiry.spliced.scorer(variants)
    _ = scorer.layout  # found by trying, once a run
    shared = SharedAnswers(scorer, journal, [f"{time.perf_counter()}"])
    with inquiry.spliced.evaluation():
        started = time.perf_counter()
        shared.answers(list(inquiry.requests.queries), lambda _number, _answer: None)
        return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=10)
    parser.add_argument("--variants", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rounds = []
    with TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "answers")
        inquiry = prepared(arguments.out, arguments.limit, journal)
        variants = patched_variants(inquiry, arguments.variants)
        tokens = sum(len(query.ids) for query in inquiry.requests.queries)
        print(
            f"{len(inquiry.requests.queries)} requests, {tokens:,} tokens, {len(variants)} patched variants", flush=True
        )
        for number in range(arguments.rounds):
            alone, together = seconds(inquiry, [], journal), seconds(inquiry, variants, journal)
            cost = (together - alone) / len(variants) / alone
            rounds.append({"alone": alone, "together": together, "cost": cost})
            print(
                f"round {number + 1}: alone {alone:.2f} s, together {together:.2f} s; {cost:.3f} a variant", flush=True
            )
        journal.close()
    median = statistics.median(entry["cost"] for entry in rounds)
    facts = {"variants": len(variants), "requests": len(inquiry.requests.queries), "tokens": tokens, "bar": BAR}
    (arguments.out / "where_cost.json").write_text(json.dumps({**facts, "median": median, "rounds": rounds}, indent=1))
    print(f"A patched variant costs {median:.3f} of a forward pass (median of {len(rounds)}); the bar is {BAR}.")
    return int(median > BAR)


if __name__ == "__main__":
    raise SystemExit(main())
