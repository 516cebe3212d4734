"""What it costs that the decoders of a cross-layer transcoder stay in their files.

    python benchmarks/decoders_in_files.py OUT       # about 1.5 GB in OUT, under 3 minutes

A random Llama (12 blocks, width 768) scores random texts with every MLP replaced by a random cross-layer transcoder of
4,096 latents a layer, of which about 0.5% are active. In turn: its decoders in memory; in files that the machine has in
its page cache; in files that have been dropped from it, where the system can do so. Seconds of the wall, the ratio of
each to the first in the same round, and the largest difference of a log-probability.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from sae_lm_eval import SaeHFLM
from sae_lm_eval.dictionaries import cross_layer_loader
from sae_lm_eval.scoring.request import Query, ScoreRequest
from sae_lm_eval.scoring.scorer import Layout

LAYERS, WIDTH, LATENTS, VOCABULARY, CONTEXT = 12, 768, 4096, 1000, 256
ACTIVE = 0.005
MEMORY, CACHED, DROPPED = "in memory", "in files, cached", "in files, dropped"


def saved(folder: Path) -> Path:
    """The files of a random transcoder in circuit-tracer's layout; what is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for layer in range(LAYERS):
        if (folder / f"W_dec_{layer}.safetensors").is_file():
            continue
        rng = torch.Generator().manual_seed(layer)
        # What is read is normalised, so that a latent before its bias has a standard deviation of 1.
        encoder = torch.randn(LATENTS, WIDTH, generator=rng) / WIDTH**0.5
        bias = torch.full((LATENTS,), -float(torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - ACTIVE))))
        decoder = torch.randn(LATENTS, LAYERS - layer, WIDTH, generator=rng) / WIDTH
        own = {"W_enc": encoder, "b_enc": bias, "b_dec": torch.zeros(WIDTH)}
        save_file({f"{name}_{layer}": tensor for name, tensor in own.items()}, folder / f"W_enc_{layer}.safetensors")
        save_file({f"W_dec_{layer}": decoder}, folder / f"W_dec_{layer}.safetensors")
    (folder / "config.yaml").write_text("feature_input_hook: ln2.hook_normalized\nfeature_output_hook: hook_mlp_out\n")
    return folder


def adapter(folder: Path, in_memory: float) -> SaeHFLM:
    """With decoders in their files where they take more than `in_memory` of the machine's memory."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=12,
        max_position_embeddings=CONTEXT,
        bos_token_id=1,
        eos_token_id=2,
    )
    model: Any = transformers.AutoModelForCausalLM.from_config(config).eval()
    usual, cross_layer_loader.IN_MEMORY = cross_layer_loader.IN_MEMORY, in_memory
    try:
        spec = f"clt:{folder}"
        return SaeHFLM(pretrained=model, tokenizer=tokenizer(), sae=spec, splice_tokens="all", batch_size=2)
    finally:
        cross_layer_loader.IN_MEMORY = usual


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Of words w3, w4, ..., a token each."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {name: i for i, name in enumerate(["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(3, VOCABULARY))])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )


def drop_from_cache(folder: Path) -> None:
    """Let the system forget the decoders' files; their pages are clean."""
    for file in folder.glob("W_dec_*.safetensors"):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(lm: SaeHFLM, queries: list[Query]) -> tuple[float, torch.Tensor]:
    """Wall seconds, and log-probabilities of the texts."""
    scorer, logprobs = lm.spliced.scorer([lm.spliced.variant], layout=Layout()), dict[int, float]()
    request = ScoreRequest(queries, measures=(), greedy=False)
    started = time.perf_counter()
    scorer.score(
        request, lambda scores: logprobs.update({n: float(scored.logprob[1].sum()) for n, scored in scores.items()})
    )
    return time.perf_counter() - started, torch.tensor([logprobs[number] for number in range(len(queries))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="where the transcoder's files are kept")
    parser.add_argument("--texts", type=int, default=8, help="of 256 tokens")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folder = saved(options.out / "transcoder")
    rng = torch.Generator().manual_seed(0)
    rows = torch.randint(3, VOCABULARY, (options.texts, CONTEXT), generator=rng).tolist()
    queries = [Query(ids[:-1], ids[1:]) for ids in rows]
    resident, kept = adapter(folder, 1.0), adapter(folder, 0.0)
    can_drop = hasattr(os, "posix_fadvise")
    seconds: dict[str, list[float]] = {MEMORY: [], CACHED: [], **({DROPPED: []} if can_drop else {})}
    apart = 0.0
    for lm in (resident, kept):
        timed(lm, queries[:1])
    for number in range(options.rounds):
        expected = None
        for name, times in seconds.items():
            if name == DROPPED:
                drop_from_cache(folder)
            took, answers = timed(resident if name == MEMORY else kept, queries)
            times.append(took)
            expected = answers if expected is None else expected
            apart = max(apart, float((answers - expected).abs().max()))
        summary = ", ".join(f"{name} {times[-1]:.2f} s" for name, times in seconds.items())
        print(f"round {number + 1}: {summary}", flush=True)
    for name, times in seconds.items():
        ratios = [own / first for own, first in zip(times, seconds[MEMORY], strict=True)]
        print(f"{name}: {statistics.median(times):.2f} s, {statistics.median(ratios):.2f} of the time in memory")
    print(f"The largest difference of a text's log-probability is {apart:.2g} nats.")


if __name__ == "__main__":
    main()
