"""Speed of the sae_fidelity tasks beside sae_lens.evals, and the memory that they need.

    python benchmarks/fidelity.py speed              # a random GPT-2 of 6 blocks, both in turn, the ratio of each pair
    python benchmarks/fidelity.py memory 1000        # a document of 1000 tokens, a vocabulary of 256,000
    python benchmarks/fidelity.py memory 16000

`speed`: CPU seconds of one thread, in turn, on the same model, SAE and tokens. Both have cross-entropies, KL, L0 and
explained variance; ours has mean ablation, reverse KL, agreement and standard errors besides, theirs L2 norms and L1.
`memory`: the peak over what the process held once a short document had been scored; a process each, since it is the
process's peak.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from lm_eval.api.instance import Instance
from sae_lens import TopKSAE, TopKSAEConfig
from sae_lens.evals import get_downstream_reconstruction_metrics, get_sparsity_and_variance_metrics
from sae_lens.training.activation_scaler import ActivationScaler
from tokenizers import Tokenizer, models, pre_tokenizers

from sae_lm_eval import SaeHFLM
from sae_lm_eval.fidelity.metrics import metric_values
from sae_lm_eval.fidelity.source import TextSource

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from oracle import hooked_transformer

SPECIAL = ["<unk>", "<s>", "</s>"]
PROMPTS = 8  # of a batch of sae_lens.evals
KINDS = ("l2_norms", "sparsity_metrics", "variance_metrics", "featurewise_density_statistics")


def tokenizer(vocabulary: int) -> transformers.PreTrainedTokenizerFast:
    """Of words w3, w4, ..., a token each."""
    words = {name: i for i, name in enumerate([*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), vocabulary))])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )


def adapter(vocabulary: int, width: int, layers: int, d_sae: int, context: int) -> SaeHFLM:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=vocabulary,
        n_embd=width,
        n_layer=layers,
        n_head=4,
        n_positions=context,
        bos_token_id=1,
        eos_token_id=2,
    )
    model: Any = transformers.AutoModelForCausalLM.from_config(config).eval()
    sae = TopKSAE(TopKSAEConfig(d_in=width, d_sae=d_sae, k=32))
    sae.cfg.metadata.hook_name = f"blocks.{layers // 2}.hook_resid_post"
    return SaeHFLM(
        pretrained=model,
        tokenizer=tokenizer(vocabulary),
        sae=sae,
        batch_size=8,
        max_length=context,
        splice_tokens="all",
    )


def document(length: int, vocabulary: int, seed: int) -> str:
    ids = torch.randint(len(SPECIAL), vocabulary, (length,), generator=torch.Generator().manual_seed(seed))
    return " ".join(f"w{i}" for i in ids.tolist())


def ask(lm: SaeHFLM, texts: list[str], held_out: tuple[str, ...]) -> list[dict[str, Any]]:
    source = TextSource("benchmark", held_out)
    requests: Any = [Instance("sae_fidelity", {}, (t, None, source), 0, ("text", i, 1)) for i, t in enumerate(texts)]  # pyright: ignore[reportArgumentType]
    return lm.sae_fidelity(requests, disable_tqdm=True)


class Store:
    """What sae_lens.evals asks for its batches of tokens."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.batches = iter(rows.split(PROMPTS))

    def get_batch_tokens(self, _size: int) -> torch.Tensor:
        return next(self.batches)


def by_sae_lens(sae: Any, hooked: Any, rows: torch.Tensor) -> dict[str, float]:
    settings: dict[str, Any] = {"activation_scaler": ActivationScaler(), "eval_batch_size_prompts": PROMPTS}
    settings |= {"n_batches": len(rows.split(PROMPTS)), "model_kwargs": {}}
    with torch.no_grad():
        metrics = get_downstream_reconstruction_metrics(
            sae,
            hooked,
            Store(rows),
            compute_kl=True,
            compute_ce_loss=True,
            **settings,  # pyright: ignore[reportArgumentType]
        )
        kinds = {f"compute_{kind}": True for kind in KINDS}
        more, _ = get_sparsity_and_variance_metrics(sae, hooked, Store(rows), **kinds, **settings)  # pyright: ignore[reportArgumentType]
    return metrics | more


def speed(count: int, length: int, pairs: int) -> None:
    vocabulary = 8000
    lm = adapter(vocabulary, 256, 6, 4096, 256)
    texts = [document(length, vocabulary, seed) for seed in range(count)]
    held_out = tuple(document(length, vocabulary, seed) for seed in range(1000, 1000 + max(1, count // 10)))
    rows = torch.tensor([[1, *lm.tok_encode(text)] for text in texts])
    sae, hooked = lm.spliced.variant.splices[0].dictionary.module, hooked_transformer(lm.model, processed=False)
    ask(lm, texts[:2], held_out[:1])
    ask(lm, texts[:2], ())
    by_sae_lens(sae, hooked, rows[:2])
    ratios = []
    for _ in range(pairs):
        started = time.process_time()
        ours = metric_values(ask(lm, texts, held_out))
        with_mean = time.process_time()
        metric_values(ask(lm, texts, ()))
        without = time.process_time()
        theirs = by_sae_lens(sae, hooked, rows)
        ended = time.process_time()
        seconds = (with_mean - started, without - with_mean, ended - without)
        ratios.append([seconds[2] / own for own in seconds[:2]])
        print(
            "sae_fidelity {:.2f} s, without mean ablation {:.2f} s; sae_lens.evals {:.2f} s".format(*seconds),
            flush=True,
        )
    all_of_it, same = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"{count * length} tokens: {all_of_it:.2f} times as fast as sae_lens.evals, {same:.2f} without mean ablation")
    for name, other in (("ce_spliced", "ce_loss_with_sae"), ("kl", "kl_div_with_sae"), ("l0", "l0")):
        print(f"{name}: {ours[name]:.5f}; of sae_lens.evals {theirs[other]:.5f}")


def peak() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def memory(length: int) -> None:
    vocabulary = 256_000
    lm = adapter(vocabulary, 32, 2, 256, 1024)
    ask(lm, [document(8, vocabulary, 0)], (document(8, vocabulary, 1),))  # what is loaded and made once
    before = peak()
    (record,) = ask(lm, [document(length, vocabulary, 2)], (document(1024, vocabulary, 3),))
    print(f"{record['tokens']} tokens: {peak() - before:.0f} MiB over {before:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory"])
    parser.add_argument("length", type=int, nargs="?", default=250, help="tokens of a document")
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "memory":
        memory(options.length)
    else:
        speed(options.documents, options.length, options.pairs)


if __name__ == "__main__":
    main()
