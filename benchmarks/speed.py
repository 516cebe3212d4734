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

LAYERS, WIDTH, VOCABULARY, LAYER = 8, 512, 32_000, 4
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
        intermediate_size=1376,
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
        sae = TopKSAE(TopKSAEConfig(d_in=WIDTH, d_sae=4096, k=32))
        with torch.no_grad():
            # As a trained one has them: elements of unit norm, read along the directions in which they are written.
            sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn_like(sae.W_dec), dim=-1))
            sae.W_enc.copy_(sae.W_dec.T)
        sae.cfg.metadata.hook_name = f"blocks.{layer}.hook_resid_post"
        sae.save_model(str(out / f"sae{layer}"))


def evaluate(suite: str, run: str, out: Path, device: str) -> dict[str, Any]:
    """One run: `hf`, `hookN` or `forked`."""
    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM

    from sae_lm_eval.adapter import SaeHFLM, join
    from sae_lm_eval.arguments import wanted_of

    settings = dict(SUITES[suite])
    layers, batch_size = settings.pop("layers"), settings.pop("batch_size")
    common = {"pretrained": str(out / "model"), "batch_size": batch_size, "device": device, "dtype": "float32"}
    import sae_lens  # noqa: F401  (its import takes seconds, which are no part of an evaluation)
    from lm_eval.tasks import TaskManager

    started = time.perf_counter()
    task_manager = TaskManager()
    if run == "forked":
        baseline: Any = SaeHFLM(sae=[], splice="none", **common)
        variants = [baseline.as_variant(wanted_of(str(out / f"sae{layer}"))) for layer in layers]
        join(baseline, variants)
        models = [baseline, *variants]
    else:
        models = [HFLM(**common)]
        if run != "hf":
            from sae_lens import SAE

            sae: Any = SAE.load_from_disk(str(out / f"sae{run.removeprefix('hook')}"), device=device)
            block = models[0].model.model.layers[int(run.removeprefix("hook"))]
            block.register_forward_hook(
                lambda _m, _a, x: sae(x) if isinstance(x, torch.Tensor) else (sae(x[0]), *x[1:])
            )
    samples = [
        lm_eval.simple_evaluate(model=lm, task_manager=task_manager, **settings, bootstrap_iters=0, log_samples=True)[
            "samples"
        ]
        for lm in models
    ]
    seconds = time.perf_counter() - started
    memory = (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    answers = [
        [
            [ll for ((ll, _),) in s["resps"]] + [s["acc"]]
            for task in sorted(of)
            for s in sorted(of[task], key=lambda s: s["doc_id"])
        ]
        for of in samples
    ]
    return {"seconds": seconds, "memory": memory, "answers": answers}


def measured(suite: str, run: str, out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The same in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "TQDM_DISABLE": "1"}
    command = [sys.executable, __file__, str(out), "--device", arguments.device, "--one", suite, run]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return json.loads((out / "one.json").read_text())


def compare(suite: str, out: Path, arguments: argparse.Namespace) -> str:
    layers = SUITES[suite]["layers"]
    plain = ["hf", *(f"hook{layer}" for layer in layers)]
    seconds: dict[str, list[float]] = {run: [] for run in [*plain, "forked"]}
    last: dict[str, dict[str, Any]] = {}
    for _ in range(arguments.rounds):
        for run in seconds:
            last[run] = measured(suite, run, out, arguments)
            seconds[run].append(last[run]["seconds"])
            print(suite, run, f"{seconds[run][-1]:.1f} s", file=sys.stderr)
    median = {run: statistics.median(times) for run, times in seconds.items()}
    pairs = list(zip(plain, last["forked"]["answers"], strict=True))
    worst = max(
        abs(a - b)
        for run, answers in pairs
        for plainly, forked in zip(last[run]["answers"][0], answers, strict=True)
        for a, b in zip(plainly[:-1], forked[:-1], strict=True)
    )
    other = sum(
        plainly[-1] != forked[-1]
        for run, answers in pairs
        for plainly, forked in zip(last[run]["answers"][0], answers, strict=True)
    )
    together = sum(median[run] for run in plain)
    return "\n".join(
        [
            f"## {suite}: baseline and {len(layers)} variant{'s' if len(layers) > 1 else ''}",
            "",
            "| run | seconds, median | of | peak memory, MB |",
            "|---|---:|---|---:|",
            *(
                f"| {run} | {median[run]:.1f} | {', '.join(f'{t:.1f}' for t in times)} | {last[run]['memory'] / 1e6:.0f} |"
                for run, times in seconds.items()
            ),
            "",
            f"- {len(plain)} plain runs / forked: **{together / median['forked']:.1f}x**",
            f"- `hf` alone / forked: **{median['hf'] / median['forked']:.1f}x**",
            f"- largest difference of a loglikelihood: {worst:.1e} nats; documents with another accuracy: {other}",
            f"- peak memory: {last['forked']['memory'] / last['hf']['memory']:.2f} of the `hf` run's",
            "",
        ]
    )


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
