"""The embedded world's facts: world.json for programs, README.md (the model card) for readers."""

import json
import platform
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

from sae_lm_eval.world import text, vocabulary
from sae_lm_eval.world.categories import mixture, world_categories

RUN_KEYS = (
    "name", "width", "layers", "heads", "non_embedding_parameters", "parameters", "tokens", "compute", "loss",
    "standard_error", "documents", "learning_rate", "batch", "seed", "seconds",
)  # fmt: skip
PACKAGES = ("torch", "transformers", "tokenizers", "sae_lens")

CARD = """# The embedded world

A Llama-type language model trained on the text of a small invented world, a family of smaller ones (their
losses only), and dictionaries trained on its activations. The figures are measured on the files beside this
card, whose weights are stored in float16 and computed with in float32. `make world` makes everything anew.

## Text
Exact entropy {nats_per_token:.6f} nats/token: {nats:.4f} nats and {tokens:.4f} tokens a document, in
expectation. Tokens are words and punctuation marks; the leading `<s>` is given and the closing `</s>` has
probability one: neither is counted. Per category, its name given:

{kinds}

## Family
Held-out loss in nats/token on {documents} documents of another seed, ± its standard error. Compute is 6ND,
with N all parameters (both embeddings included) and D the tokens that were scored in training. The smaller
models' weights are not shipped.

{family}

Checkpoints of the main run (the learning rate is not annealed at them; shipped: {kept}):

{checkpoints}

## Dictionaries
Trained by SAELens' SAETrainer at the words of documents that begin with `<s>`; `<s>` and `</s>` were left
out. Explained variance 1 - E|y - y^|^2 / (E|y|^2 - |E y|^2), L0 and dead latents are of 50,000 held-out
words. The cross-layer transcoder `clt:world` was trained at all layers at once, on what passes the untouched model; its
rows are of that too.

{dictionaries}

## Drops
Accuracy of the baseline on 200 held-out four-choice questions a category (chance .25), then the drop in pp
with each dictionary spliced in at all words (`<s>` keeps its activation) and its 95% interval (Tango's), paired
by question. In `order` one wrong answer is another person in the line and two are persons not in it: who only
knows the line's members is right half of the time.

{drops}

{findings}

## Run
Seconds by stage, one thread: {seconds}.
{packages}, Python {python}, {machine}. Seeds: {seeds}.
"""


def write(files: Path, runs: list[dict], trained: list[dict], of_layers: list[dict], measured: dict) -> None:
    facts = gather(runs, trained, of_layers, measured)
    (files / "world.json").write_text(json.dumps(facts, indent=1) + "\n")
    (files / "README.md").write_text(card(facts))


def gather(runs: list[dict], trained: list[dict], of_layers: list[dict], measured: dict) -> dict:
    family = sorted(({key: run[key] for key in RUN_KEYS} for run in runs), key=lambda run: run["compute"])
    shares = dict(mixture().probabilities())
    seconds = {run["name"]: run["seconds"] for run in runs}
    seconds |= {row["id"]: row["stage_seconds"] for row in trained}
    seconds |= {"measure": measured["stage_seconds"]}
    return {
        "entropy": text.entropy(),
        "categories": {
            name: {"group": kind.group, "share": shares[name], **text.category_entropy(kind)}
            for name, kind in world_categories().items()
        },
        "seeds": {
            "facts": vocabulary.FACTS_SEED,
            "questions": text.QUESTIONS_SEED,
            "held_out_text": runs[0]["held_out_seed"],
        },
        "family": family,
        "checkpoints": runs[0]["checkpoint_table"],
        "dictionaries": [{k: v for k, v in row.items() if k != "stage_seconds"} for row in trained],
        "cross_layer": of_layers,
        "measured": measured,
        "log": {
            "seconds": {name: round(value) for name, value in seconds.items()},
            "packages": {name: version(name) for name in PACKAGES},
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
    }


def card(facts: dict) -> str:
    log = facts["log"]
    return CARD.format(
        **facts["entropy"],
        kinds=_kinds(facts["categories"]),
        documents=facts["family"][0]["documents"],
        family=_family(facts["family"], facts["entropy"]["nats_per_token"]),
        kept=", ".join(facts["measured"]["kept_checkpoints"]),
        checkpoints=_checkpoints(facts["checkpoints"]),
        dictionaries=_dictionaries([*facts["dictionaries"], *facts["cross_layer"]]),
        drops=_drops(facts),
        findings="\n".join(f"- {line}." for line in findings(facts["measured"])),
        seconds=_listed(log["seconds"]),
        packages=_listed(log["packages"]),
        python=log["python"],
        machine=log["machine"],
        seeds=_listed(facts["seeds"]),
    )


def table(head: list[str], rows: list[list]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _listed(values: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _loss(row: dict) -> str:
    return f"{row['loss']:.4f} ± {row['standard_error']:.4f}"


def _kinds(kinds: dict) -> str:
    rows = [
        [
            name,
            row["group"],
            f"{row['share']:.3f}",
            f"{row['tokens']:.2f}",
            f"{row['nats']:.2f}",
            f"{row['nats_per_token']:.4f}",
        ]
        for name, row in kinds.items()
    ]
    head = ["category", "group", "share of documents", "tokens/document", "nats/document", "nats/token"]
    return table(head, rows)


def _family(family: list[dict], entropy: float) -> str:
    rows = [
        [
            run["name"],
            run["width"],
            run["layers"],
            f"{run['non_embedding_parameters']:,}",
            f"{run['parameters']:,}",
            f"{run['tokens']:,}",
            f"{run['compute']:.3g}",
            _loss(run),
            f"{run['loss'] - entropy:.4f}",
        ]
        for run in family
    ]
    return table(["run", "width", "layers", "N without embeddings", "N", "D", "6ND", "loss", "above entropy"], rows)


def _checkpoints(checkpoints: list[dict]) -> str:
    rows = [[row["name"], f"{row['tokens']:,}", f"{row['compute']:.3g}", _loss(row)] for row in checkpoints]
    return table(["checkpoint", "D", "6ND", "loss"], rows)


def _dictionaries(dictionaries: list[dict]) -> str:
    rows = [
        [
            row["id"],
            row["architecture"],
            row["hook_name"],
            row["hook_name_out"] or "the same",
            row["d_sae"],
            f"{row['l0']:.2f}",
            f"{row['explained_variance']:.4f}",
            row["dead_latents"],
        ]
        for row in dictionaries
    ]
    return table(["id", "architecture", "reads", "writes", "latents", "L0", "explained variance", "dead latents"], rows)


def _drops(facts: dict) -> str:
    measured = facts["measured"]
    columns = dict(measured["variants"])
    columns |= {f"checkpoint {name}": measured["checkpoints"][name] for name in measured["kept_checkpoints"]}
    baseline = measured["baseline"]
    rows = []
    for name in facts["categories"]:
        cells = [column["categories"][name] for column in columns.values()]
        drops = [f"{cell['drop']:z.1f} [{cell['low']:z.1f}, {cell['high']:z.1f}]" for cell in cells]
        rows.append([name, f"{baseline['categories'][name]['accuracy']:.3f}", *drops])
    everyone = [baseline, *columns.values()]
    rows.append(["accuracy, all", *(f"{column['accuracy']:.3f}" for column in everyone)])
    rows.append(["loss, nats/token", *(f"{column['loss']:.4f}" for column in everyone)])
    return table(["category", "baseline", *columns], rows)


def findings(measured: dict) -> list[str]:
    """What the drops say, each sentence decided by the measurement."""
    variants = measured["variants"]
    lines = [_spread(name, variant) for name, variant in variants.items()]
    sites: dict[str, list[int]] = {}
    for name in variants:
        site, _, latents = name.rpartition(".k")
        if site:
            sites.setdefault(site, []).append(int(latents))
    for site, latents in sites.items():
        lines += [_sparsity(variants, site, *pair) for pair in pairwise(sorted(latents))]
    return lines + [_profile(pair, measured) for pair in measured["equal_loss"]]


def _spread(name: str, variant: dict) -> str:
    ranked = sorted(variant["categories"].items(), key=lambda item: item[1]["drop"])
    (least, low), (most, high) = ranked[0], ranked[-1]
    apart = high["low"] > low["high"]
    test = variant["heterogeneity"]
    return (
        f"{name}: largest drop {most} {high['drop']:.1f} pp, smallest {least} {low['drop']:.1f} pp, their "
        f"95% intervals {'are apart' if apart else 'overlap'}; Cochran's Q {test['q']:.0f} on "
        f"{test['degrees']} degrees of freedom, p = {test['p']:.1g}"
    )


def _sparsity(variants: dict, site: str, few: int, many: int) -> str:
    sparse, dense = variants[f"{site}.k{few}"], variants[f"{site}.k{many}"]
    verdicts = {
        (True, True): "hurts more, in loss and in accuracy",
        (True, False): "hurts more in loss, not in accuracy",
        (False, True): "hurts more in accuracy, not in loss",
        (False, False): "does not hurt more",
    }
    verdict = verdicts[sparse["loss"] > dense["loss"], sparse["accuracy"] < dense["accuracy"]]
    return (
        f"{site}: k = {few} {verdict}, than k = {many}: loss {sparse['loss']:.4f} against "
        f"{dense['loss']:.4f} nats/token, accuracy {sparse['accuracy']:.3f} against {dense['accuracy']:.3f}"
    )


def _profile(pair: dict, measured: dict) -> str:
    verdict = "another profile of drops" if pair["p"] < 0.01 else "no clearly different profile of drops"
    variant, checkpoint = (
        measured["variants"][pair["dictionary"]],
        measured["checkpoints"][pair["checkpoint"]],
    )
    return (
        f"{pair['dictionary']} (loss {variant['loss']:.4f}, accuracy {variant['accuracy']:.3f}) and "
        f"checkpoint {pair['checkpoint']} (loss {checkpoint['loss']:.4f}, accuracy "
        f"{checkpoint['accuracy']:.3f}), the nearest in loss: {verdict}, Cochran's Q {pair['q']:.0f} on "
        f"{pair['degrees']} degrees of freedom, p = {pair['p']:.1g}"
    )
