"""What each dictionary and each checkpoint costs: held-out loss, accuracy and drop by category."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import world_dictionaries as dictionaries
import world_training as training
from sae_lens import SAE
from scipy.stats import chi2
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from sae_lm_eval.comparison.paired_statistics import tango_interval

EQUAL_LOSS_TO = ("blocks.2.hook_resid_post.k4", "blocks.2.hook_resid_post.k8")


@contextmanager
def spliced(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, dictionary: SAE) -> Iterator[None]:
    """The dictionary's output takes the place of the activation wherever the token is not <s> or </s>."""
    meta = dictionary.cfg.metadata
    module, _ = dictionaries.hooked_module(model, meta.hook_name_out or meta.hook_name)
    special = torch.tensor([tokenizer.bos_token_id, tokenizer.eos_token_id])
    words: list[torch.Tensor] = [torch.empty(0)]

    def note(_module: torch.nn.Module, args: tuple) -> None:
        words[0] = ~torch.isin(args[0], special).unsqueeze(-1)

    def replace(_module: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        source = args[0] if meta.hook_name_out else output
        return torch.where(words[0], dictionary(source), output)

    handles = [model.register_forward_pre_hook(note), module.register_forward_hook(replace)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def score(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict:
    return {**training.held_out_loss(model, tokenizer), "answers": training.answers(model, tokenizer)}


def drops(baseline: dict, variant: dict) -> dict[str, dict[str, float]]:
    """By category: accuracy, drop in pp with Tango's interval, lost and gained questions, and the paired standard error
    of the drop in pp.

    With b questions lost and c won of n, SE = sqrt((b + c + 1)/(n + 2) - d^2)/sqrt(n), d = (b - c)/n; the
    added counts keep it above zero where nothing changed.
    """
    table = {}
    for name, before in baseline["answers"].items():
        after = variant["answers"][name]
        n = len(before)
        lost = sum(x and not y for x, y in zip(before, after, strict=True))
        won = sum(y and not x for x, y in zip(before, after, strict=True))
        d = (lost - won) / n
        spread = max((lost + won + 1) / (n + 2) - d * d, 1 / n)
        low, high = tango_interval(lost, won, n)
        table[name] = {
            "accuracy": sum(after) / n,
            "drop": 100 * d,
            "standard_error": 100 * math.sqrt(spread / n),
            "questions": n,
            "lost": lost,
            "gained": won,
            "low": 100 * low,
            "high": 100 * high,
        }
    return table


def heterogeneity(values: list[float], errors: list[float]) -> dict[str, float]:
    """Cochran's Q of the values about their weighted mean, and its p under chi^2 with one degree less."""
    weights = [e**-2 for e in errors]
    mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    q = sum(w * (v - mean) ** 2 for w, v in zip(weights, values, strict=True))
    return {"q": q, "degrees": len(values) - 1, "p": float(chi2.sf(q, len(values) - 1))}


def profile_difference(first: dict, second: dict) -> dict[str, float]:
    """Whether two tables of drops differ by more than a constant: heterogeneity of their differences."""
    difference = [first[name]["drop"] - second[name]["drop"] for name in first]
    errors = [math.hypot(first[name]["standard_error"], second[name]["standard_error"]) for name in first]
    return heterogeneity(difference, errors)


def summary(baseline: dict, variant: dict) -> dict:
    table = drops(baseline, variant)
    spread = heterogeneity([row["drop"] for row in table.values()], [row["standard_error"] for row in table.values()])
    accuracy = sum(row["accuracy"] for row in table.values()) / len(table)
    return {
        "loss": variant["loss"],
        "loss_standard_error": variant["standard_error"],
        "accuracy": accuracy,
        "categories": table,
        "heterogeneity": spread,
    }


def nearest(checkpoints: dict[str, dict], loss: float, taken: list[str]) -> str:
    return min((name for name in checkpoints if name not in taken), key=lambda n: abs(checkpoints[n]["loss"] - loss))


@torch.no_grad()
def measure(build: Path, checkpoint_table: list[dict], trained: list[dict]) -> dict:
    tokenizer = training.make_tokenizer()
    model = LlamaForCausalLM.from_pretrained(build / "main" / "final", dtype=torch.float32).eval()
    scores: dict[str, dict] = {"baseline": score(model, tokenizer)}
    for row in trained:
        dictionary = SAE.load_from_disk(build / "dictionaries" / row["id"])
        with spliced(model, tokenizer, dictionary):
            scores[row["id"]] = score(model, tokenizer)
        print(row["id"], scores[row["id"]]["loss"], flush=True)
    checkpoints = {}
    for row in checkpoint_table:
        other = LlamaForCausalLM.from_pretrained(build / "main" / row["name"], dtype=torch.float32).eval()
        checkpoints[row["name"]] = score(other, tokenizer)
    baseline = scores.pop("baseline")
    tables = {name: summary(baseline, variant) for name, variant in scores.items()}
    checkpoint_tables = {name: summary(baseline, variant) for name, variant in checkpoints.items()}
    kept: list[str] = []
    pairs = []
    for name in EQUAL_LOSS_TO:
        kept.append(nearest(checkpoints, tables[name]["loss"], kept))
        difference = profile_difference(tables[name]["categories"], checkpoint_tables[kept[-1]]["categories"])
        pairs.append({"dictionary": name, "checkpoint": kept[-1], **difference})
    return {
        "baseline": summary(baseline, baseline),
        "variants": tables,
        "checkpoints": checkpoint_tables,
        "kept_checkpoints": kept,
        "equal_loss": pairs,
    }
