"""Time and memory of the forked evaluation beside plain runs of the same requests.

    python benchmarks/speed.py OUT [--rounds 5] [--suites mmlu mmlu8 blimp] [--threads 2] [--device cpu]

Each run is a process of its own; the runs of a suite take turns, and medians over the rounds are compared. The model
is a random Llama (8 blocks, width 512, vocabulary 32,000), the SAE a random top-k one (32 of 4,096 elements); the
questions are real. OUT keeps the model and what was measured; docs/performance.md is what is printed.

The plain runs are lm_eval's `hf`, and `hf` with one forward hook in which the SAE's own forward is called.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LAYERS, WIDTH, HIDDEN, VOCABULARY, LAYER = 8, 512, 1376, 32_000, 4
ELEMENTS, ACTIVE = 4096, 32
TOKENIZER = "stories3M"
MMLU = ["mmlu_abstract_algebra", "mmlu_anatomy", "mmlu_astronomy", "mmlu_business_ethics"]
BLIMP = ["blimp_adjunct_island", "blimp_anaphor_gender_agreement", "blimp_causative", "blimp_wh_island"]
SUITES = {
    "mmlu": {"tasks": MMLU, "num_fewshot": 5, "limit": 50, "layers": [LAYER], "batch_size": 8},
    "mmlu8": {"tasks": MMLU, "num_fewshot": 5, "limit": 50, "layers": list(range(LAYERS)), "batch_size": 8},
    "blimp": {"tasks": BLIMP, "num_fewshot": 0, "limit": 250, "layers": [LAYER], "batch_size": 32},
}


def make(out: Path) -> None:
    """The model with a tokenizer, and an SAE for each block."""
    import torch
    import transformers
    from sae_lens import TopKSAE, TopKSAEConfig

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(out / "model")
    transformers.AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(out / "model")
    for layer in range(LAYERS):
        sae = TopKSAE(TopKSAEConfig(d_in=WIDTH, d_sae=ELEMENTS, k=ACTIVE))
        with torch.no_grad():
            # As a trained one has them: elements of unit norm, read along the directions in which they are written.
            sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn_like(sae.W_dec), dim=-1))
            sae.W_enc.copy_(sae.W_dec.T)
        sae.cfg.metadata.hook_name = f"blocks.{layer}.hook_resid_post"
        sae.save_model(str(out / f"sae{layer}"))


def evaluate(suite: str, run: str, out: Path, device: str) -> dict[str, Any]:
    """One run: `hf`, `hookN` or `forked`."""
    import lm_eval
    import sae_lens  # noqa: F401  (its import takes seconds, which are no part of an evaluation)
    import torch
    from lm_eval.tasks import TaskManager

    settings = dict(SUITES[suite])
    layers, batch_size = settings.pop("layers"), settings.pop("batch_size")
    common = {"pretrained": str(out / "model"), "batch_size": batch_size, "device": device, "dtype": "float32"}
    started = time.perf_counter()
    task_manager = TaskManager()
    models = forked_models(common, layers, out) if run == "forked" else [plain_model(common, run, out)]
    scoring = [0.0]
    for lm in models:
        lm.loglikelihood = timed(lm.loglikelihood, scoring)
    queries: list[Any] = []
    if run == "forked":
        answers = models[0]._answers.answers
        models[0]._answers.answers = lambda asked, *told: (queries.extend(asked), answers(asked, *told))
    tasks = [*task_manager.load(settings.pop("tasks"))["tasks"].values()]  # once for all models, as `run` has it
    samples = [
        lm_eval.simple_evaluate(
            model=lm, tasks=tasks, task_manager=task_manager, **settings, bootstrap_iters=0, log_samples=True
        )
        for lm in models
    ]
    seconds = time.perf_counter() - started
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": seconds,
        "scoring": scoring[0],
        "memory": torch.cuda.max_memory_allocated() if device == "cuda" else resident,
        "answers": [answers_of(result["samples"]) for result in samples],
        "operations": fewest_operations(queries, layers) if run == "forked" else None,
    }


def forked_models(common: dict[str, Any], layers: list[int], out: Path) -> list[Any]:
    from sae_lm_eval.adapter import SaeHFLM, join
    from sae_lm_eval.arguments import wanted_of

    baseline: Any = SaeHFLM(sae=[], splice="none", **common)
    # As the plain hook has it, which does not know what a special token is.
    everywhere = {"splice_tokens": "all"}
    variants = [baseline.as_variant(wanted_of(str(out / f"sae{layer}"), **everywhere)) for layer in layers]
    join(baseline, variants)
    return [baseline, *variants]


def plain_model(common: dict[str, Any], run: str, out: Path) -> Any:
    import torch
    from lm_eval.models.huggingface import HFLM
    from sae_lens import SAE

    lm: Any = HFLM(**common)
    if run != "hf":
        layer = run.removeprefix("hook")
        sae: Any = SAE.load_from_disk(str(out / f"sae{layer}"), device=common["device"])
        lm.model.model.layers[int(layer)].register_forward_hook(
            lambda _m, _a, x: sae(x) if isinstance(x, torch.Tensor) else (sae(x[0]), *x[1:])
        )
    return lm


def timed(function: Any, seconds: list[float]) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[0] += time.perf_counter() - started

    return call


def answers_of(samples: dict[str, list[dict[str, Any]]]) -> list[list[float]]:
    """For each document the loglikelihoods of its choices, and its accuracy."""
    documents = [s for task in sorted(samples) for s in sorted(samples[task], key=lambda s: s["doc_id"])]
    return [[logprob for ((logprob, _),) in s["resps"]] + [s["acc"]] for s in documents]


def fewest_operations(queries: list[Any], layers: list[int]) -> float:
    """Multiplications of the weights that the answers cannot do without, as a share of those of one plain run.

    Each distinct beginning once through the blocks, from its fork on for each variant, with the encoder and the
    active elements of the decoder; of the last block keys and values, and the rest where a distinct beginning is
    asked, as the head. Attention scores are not counted.
    """
    from sae_lm_eval.packing import plan

    inputs = {tuple(query.ids): query for query in queries}
    (row,) = plan(list(inputs), capacity=2**40, limit=2**40, prefixes=False, trees=True).rows
    asked = {
        slot
        for path, query in zip(row.paths.values(), inputs.values(), strict=True)
        for slot in path[-len(query.targets) :]
    }
    keys, rest, head = 2 * WIDTH**2, 2 * WIDTH**2 + 3 * WIDTH * HIDDEN, WIDTH * VOCABULARY
    dictionary = WIDTH * ELEMENTS + WIDTH * ACTIVE
    blocks = [LAYERS, *(LAYERS - 1 - layer for layer in layers)]  # that the baseline and each variant run
    everywhere = sum(max(0, n - 1) * (keys + rest) + min(1, n) * keys for n in blocks)
    where_asked = sum(min(1, n) * rest + head for n in blocks)
    dictionaries = sum(len(asked) if layer == LAYERS - 1 else len(row.ids) for layer in layers) * dictionary
    fewest = len(row.ids) * everywhere + len(asked) * where_asked + dictionaries
    return fewest / (sum(map(len, inputs)) * (LAYERS * (keys + rest) + head))


def measured(suite: str, run: str, out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The same in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "TQDM_DISABLE": "1"}
    command = [sys.executable, __file__, str(out), "--device", arguments.device, "--one", suite, run]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return json.loads((out / "one.json").read_text())


def compare(suite: str, out: Path, arguments: argparse.Namespace) -> str:
    layers = SUITES[suite]["layers"]
    plain = ["hf", *(f"hook{layer}" for layer in layers)]
    found: dict[str, list[dict[str, Any]]] = {run: [] for run in [*plain, "forked"]}
    for _ in range(arguments.rounds):
        for run, measures in found.items():
            measures.append(measured(suite, run, out, arguments))
            print(suite, run, *(f"{measures[-1][kind]:.1f} s" for kind in KINDS), file=sys.stderr)
    median = {kind: {run: statistics.median(m[kind] for m in found[run]) for run in found} for kind in KINDS}
    last = {run: measures[-1] for run, measures in found.items()}
    floor = last["forked"]["operations"] * median["scoring"]["hf"]
    lines = [
        f"## {suite}: baseline and {len(layers)} variant{'s' if len(layers) > 1 else ''}",
        "",
        f"Medians of {arguments.rounds}; from the first to the last.",
        "",
        "| run | whole, s | requests alone, s | peak memory, MB |",
        "|---|---:|---:|---:|",
    ]
    for run, measures in found.items():
        cells = []
        for kind in KINDS:
            times = sorted(m[kind] for m in measures)
            cells.append(f"{median[kind][run]:.1f} ({times[0]:.1f} to {times[-1]:.1f})")
        lines.append(f"| {run} | {' | '.join(cells)} | {last[run]['memory'] / 1e6:.0f} |")
    lines += ["", "| | whole | requests alone | floor |", "|---|---:|---:|---:|"]
    for label, runs in ((f"{len(plain)} plain runs / forked", plain), ("`hf` alone / forked", ["hf"])):
        ratios = [sum(median[kind][run] for run in runs) / median[kind]["forked"] for kind in KINDS]
        least = sum(median["scoring"][run] for run in runs) / floor
        lines.append(f"| {label} | {ratios[0]:.1f}x | {ratios[1]:.1f}x | {least:.1f}x |")
    worst, other = differences(plain, last)
    lines += [
        "",
        f"Largest difference of a loglikelihood: {worst:.1e} nats; documents with another accuracy: {other}. "
        f"Peak memory is {last['forked']['memory'] / last['hf']['memory']:.2f} of the `hf` run's.",
        "",
    ]
    return "\n".join(lines)


KINDS = ("seconds", "scoring")


def differences(plain: list[str], last: dict[str, dict[str, Any]]) -> tuple[float, int]:
    """The largest difference of a loglikelihood, and how many documents have another accuracy."""
    worst, other = 0.0, 0
    for run, answers in zip(plain, last["forked"]["answers"], strict=True):
        for plainly, forked in zip(last[run]["answers"][0], answers, strict=True):
            worst = max(worst, *(abs(a - b) for a, b in zip(plainly[:-1], forked[:-1], strict=True)))
            other += plainly[-1] != forked[-1]
    return worst, other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=list(SUITES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", nargs=2, metavar=("SUITE", "RUN"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    if arguments.one:
        (out / "one.json").write_text(json.dumps(evaluate(*arguments.one, out, arguments.device)))
        return
    if not (out / "model").exists():
        make(out)
    for suite in arguments.suites:
        print(compare(suite, out, arguments), flush=True)


if __name__ == "__main__":
    main()
