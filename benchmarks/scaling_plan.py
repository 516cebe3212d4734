"""What all of Gemma Scope on Gemma-2-9B and MMLU would take: dictionaries, memory, tokens, passes, operations.

    python benchmarks/scaling_plan.py [--tokenizer gpt2-tokenizer] [--memory 30]

Nothing is loaded but MMLU and a tokenizer (Gemma's own is google/gemma-2-9b): the model is its configuration, the
dictionaries are what SAELens' registry says of them. The tokens are counted as the engine would run them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import transformers
from lm_eval.tasks import TaskManager

from sae_lm_eval.runs import plan as planning
from sae_lm_eval.runs.sweep import sweep_of
from sae_lm_eval.scoring.packing import Prefix, pack
from sae_lm_eval.scoring.scorer import CAPACITY

KINDS = ("res", "att", "mlp")
CONTEXT = 4096  # what Gemma-2's sliding window sees
SHOTS = 5


def config() -> transformers.Gemma2Config:
    """As google/gemma-2-9b has it."""
    return transformers.Gemma2Config(
        vocab_size=256_000,
        hidden_size=3584,
        intermediate_size=14_336,
        num_hidden_layers=42,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=256,
        architectures=["Gemma2ForCausalLM"],
        dtype="bfloat16",
    )


def prompts(tokenizer: Any) -> list[list[int]]:
    """The inputs of MMLU's questions, each once: the four answers are asked of the same one."""
    out = []
    for task in TaskManager().load(["mmlu"])["tasks"].values():
        task.set_config(key="num_fewshot", value=SHOTS)
        task.set_fewshot_seed(seed=1234)
        task.build_all_requests()
        texts = dict.fromkeys(request.args[0] for request in task.instances)
        out += tokenizer(list(texts))["input_ids"]
    return out


def tokens_of(node: Prefix) -> int:
    return len(node.ids) + sum(len(row.ids) for row in node.rows) + sum(tokens_of(longer) for longer in node.longer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="google/gemma-2-9b")
    parser.add_argument("--memory", type=float, default=30, help="gigabytes for the dictionaries of a pass")
    arguments = parser.parse_args()
    ids = prompts(transformers.AutoTokenizer.from_pretrained(arguments.tokenizer))
    run = tokens_of(pack(ids, capacity=CAPACITY, limit=CONTEXT, prefixes=True, trees=True))
    prompt_tokens = sum(map(len, ids))
    print(f"MMLU, {SHOTS} shots: {len(ids):,} questions, {prompt_tokens:,} tokens, of which {run:,} are run.\n")
    print("| dictionaries | number | parameters | passes apart | passes together | groups | PFLOP per variant |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        config().save_pretrained(folder)
        for kinds in (*((kind,) for kind in KINDS), KINDS):
            print(line(kinds, Path(folder), arguments.memory, run))


def line(kinds: tuple[str, ...], folder: Path, memory: float, tokens: int) -> str:
    content = {
        "model_args": {"pretrained": str(folder), "sae_dtype": "bfloat16"},
        "tasks": ["mmlu"],
        "device": "cpu",
        "memory": memory,
        "variants": [{"pattern": f"gemma-scope-9b-pt-{kind}#*"} for kind in kinds],
    }
    plan = planning.plan_sweep(sweep_of(content), None)
    costs = [plan.cost(group) for group in plan.groups]
    passes = sum(cost for cost in costs if cost is not None)
    if None in costs:
        raise SystemExit(f"The cost of some variant of {kinds} is not known.")
    of_dictionaries = sum(sum(variant.sizes.values()) for variant in plan.variants) / 2
    # A multiplication and an addition for each weight that a token meets: of the blocks in a pass, of each dictionary.
    blocks = plan.parameters - config().vocab_size * config().hidden_size
    operations = 2 * tokens * (passes * blocks + of_dictionaries)
    number = len(plan.variants)
    return (
        f"| {', '.join(kinds)} | {number:,} | {of_dictionaries / 1e9:,.0f} G | {number + 1:,} | {passes:,.0f} | "
        f"{len(plan.groups):,} | {operations / number / 1e15:,.0f} |"
    )


if __name__ == "__main__":
    main()
