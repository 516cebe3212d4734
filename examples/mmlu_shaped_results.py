"""Write results in the shape of 5-shot MMLU, made up from a seed: no model, no benchmark, no network.

    python examples/mmlu_shaped_results.py out/synthetic
    sae-lm-eval table out/synthetic --by group
    sae-lm-eval report out/synthetic

The folder is as `sae-lm-eval run` would write it: a baseline well above chance, a small and a large dictionary and a
control, on MMLU's 57 subjects with as many questions as MMLU has. The questions are numbers and the models are called
synthetic, so that no one takes these results for measured ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae_lm_eval import read_results, schema
from sae_lm_eval.results.documents import write_documents

# Subject and questions of MMLU's test split (Hendrycks et al. 2021), in lm_eval's four groups.
SUBJECTS = {
    "stem": "abstract_algebra 100, anatomy 135, astronomy 152, college_biology 144, college_chemistry 100, "
    "college_computer_science 100, college_mathematics 100, college_physics 102, computer_security 100, "
    "conceptual_physics 235, electrical_engineering 145, elementary_mathematics 378, high_school_biology 310, "
    "high_school_chemistry 203, high_school_computer_science 100, high_school_mathematics 270, "
    "high_school_physics 151, high_school_statistics 216, machine_learning 112",
    "other": "business_ethics 100, clinical_knowledge 265, college_medicine 173, global_facts 100, human_aging 223, "
    "management 103, marketing 234, medical_genetics 100, miscellaneous 783, nutrition 306, "
    "professional_accounting 282, professional_medicine 272, virology 166",
    "social_sciences": "econometrics 114, high_school_geography 198, high_school_government_and_politics 193, "
    "high_school_macroeconomics 390, high_school_microeconomics 238, high_school_psychology 545, "
    "human_sexuality 131, professional_psychology 612, public_relations 110, security_studies 245, sociology 201, "
    "us_foreign_policy 100",
    "humanities": "formal_logic 126, high_school_european_history 165, high_school_us_history 204, "
    "high_school_world_history 237, international_law 121, jurisprudence 108, logical_fallacies 163, "
    "moral_disputes 346, moral_scenarios 895, philosophy 311, prehistory 324, professional_law 1534, "
    "world_religions 171",
}
# Nats by which a variant's margins fall in each group, the factor that they shrink by, and the noise of a question.
VARIANTS: dict[str, tuple[dict[str, float], float, float]] = {
    "synthetic_16k": ({"stem": 0.55, "other": 0.3, "social_sciences": 0.25, "humanities": 0.35}, 0.85, 0.5),
    "synthetic_131k": ({"stem": 0.25, "other": 0.1, "social_sciences": 0.08, "humanities": 0.12}, 0.95, 0.3),
    "synthetic_16k,zero": (dict.fromkeys(SUBJECTS, 0.67), 0.0, 1.0),  # of normal margins a quarter is above 0
}
LOSSES = {"synthetic_16k": (0.21, 0.004), "synthetic_131k": (0.08, 0.002), "synthetic_16k,zero": (7.9, 0.02)}
CHOICES, SHOTS, CONTEXT = 4, 5, 1024
STAMP = "2026-01-01T00-00-00.000000"


def subjects() -> Iterator[tuple[str, str, int]]:
    """Group, task and questions."""
    for group, listed in SUBJECTS.items():
        for entry in listed.split(", "):
            name, count = entry.split()
            yield group, f"mmlu_{name}", int(count)


def sample(task: str, number: int, logprobs: np.ndarray, right: int) -> dict[str, Any]:
    """A line of lm_eval's samples."""
    prompt = f"Question {number} of {task} (synthetic).\nA. one\nB. two\nC. three\nD. four\nAnswer:"
    letters = [f" {letter}" for letter in "ABCD"]
    answers = [[str(value), "False"] for value in logprobs]
    hashes = {name: hashlib.sha256(f"{name} {prompt}".encode()).hexdigest() for name in ("doc", "prompt", "target")}
    return {
        "doc_id": number,
        "doc": {"question": prompt.split("\n")[0], "subject": task.removeprefix("mmlu_")},
        "target": str(right),
        "arguments": {f"gen_args_{i}": {"arg_0": prompt, "arg_1": letter} for i, letter in enumerate(letters)},
        "resps": [[answer] for answer in answers],
        "filtered_resps": answers,
        "filter": "none",
        "metrics": ["acc"],
        **{f"{name}_hash": value for name, value in hashes.items()},
        "acc": float(logprobs.argmax() == right),
    }


def answered(margins: np.ndarray, right: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Log-probabilities of the choices, (questions, choices), in which the right one leads by its margin (nats)."""
    logprobs = -rng.exponential(1.0, (len(margins), CHOICES))
    wrong = np.where(np.arange(CHOICES) == right[:, None], -np.inf, logprobs).max(1)
    logprobs[np.arange(len(margins)), right] = wrong + margins
    return logprobs - np.logaddexp.reduce(logprobs, axis=1, keepdims=True)


def write_run(folder: Path, name: str, samples: dict[str, list[dict[str, Any]]], tokens: dict[str, np.ndarray]) -> None:
    """What `sae-lm-eval run` writes for one model."""
    inner = folder / name / "synthetic"
    inner.mkdir(parents=True, exist_ok=True)
    groups = {f"mmlu_{group}": [task for parent, task, _ in subjects() if parent == group] for group in SUBJECTS}
    results: dict[str, dict[str, Any]] = {"mmlu": {"alias": "mmlu"}}
    for group, tasks in groups.items():
        results[group] = {"alias": f" - {group.removeprefix('mmlu_').replace('_', ' ')}"}
        for task in tasks:
            results[task] = {"alias": f"  - {task.removeprefix('mmlu_')}", "sample_len": len(samples[task])}
    for scored, tasks in {"mmlu": list(samples), **groups, **{task: [task] for task in samples}}.items():
        right = [question["acc"] for task in tasks for question in samples[task]]
        results[scored]["acc,none"] = float(np.mean(right))
        results[scored]["acc_stderr,none"] = float(np.std(right, ddof=1) / len(right) ** 0.5)
    if name in LOSSES:
        delta, error = LOSSES[name]
        losses = {
            "ce_baseline": 2.31,
            "ce_spliced": 2.31 + delta,
            "ce_zero": 10.21,
            "ce_delta": delta,
            "kl": 0.9 * delta,
        }
        errors = {"ce_delta_stderr": error, "kl_stderr": error}
        results["sae_fidelity_synthetic"] = {f"{key},none": value for key, value in (losses | errors).items()}
    mode = "none" if name == "baseline" else "zero" if name.endswith(",zero") else "reconstruction"
    splice = {
        "dictionary": f"synthetic#{name.partition(',')[0]}",
        "hook_in": "blocks.12.hook_resid_post",
        "hook_out": "blocks.12.hook_resid_post",
        "mode": mode,
        "context_size": CONTEXT,
    }
    record = {"splice": mode, "splices": [] if mode == "none" else [splice], schema.KEY: schema.VERSION}
    arguments = {"pretrained": "synthetic", "splice": mode} | ({} if mode == "none" else {"sae": splice["dictionary"]})
    file = {
        "results": results,
        "group_subtasks": {"mmlu": list(groups), **groups},
        "configs": {task: {"task": task, "output_type": "multiple_choice"} for task in samples},
        "versions": dict.fromkeys(samples, 1.0),
        "n-shot": dict.fromkeys(samples, SHOTS),
        "higher_is_better": {task: {"acc": True} for task in samples},
        "n-samples": {
            task: {"original": len(questions), "effective": len(questions)} for task, questions in samples.items()
        },
        "config": {"model": "sae_hf", "model_args": arguments, "limit": None, "sae_lm_eval": record},
        "model_name": "synthetic",
    }
    (inner / f"results_{STAMP}.json").write_text(json.dumps(file, indent=1))
    for task, questions in samples.items():
        (inner / f"samples_{task}_{STAMP}.jsonl").write_text(
            "".join(json.dumps(question) + "\n" for question in questions)
        )
    rows = [
        {"task": task, "doc_id": question["doc_id"], "doc_hash": question["doc_hash"], "target": question["target"]}
        | {"prompt": question["arguments"]["gen_args_0"]["arg_0"], "answers": [" A", " B", " C", " D"]}
        | {"tokens": int(length), "tokens_cut": 0, "right": [int(question["target"])]}
        for task, questions in samples.items()
        for question, length in zip(questions, tokens[task], strict=True)
    ]
    write_documents(read_results(folder / name), pd.DataFrame(rows))


def write(folder: Path, share: float, seed: int) -> None:
    """All models' results, on a share of each subject's questions."""
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in ("baseline", *VARIANTS)}
    tokens = {}
    for number, (group, task, count) in enumerate(subjects()):
        rng = np.random.default_rng([seed, number])
        size = max(2, round(share * count))
        right = rng.integers(CHOICES, size=size)
        tokens[task] = rng.integers(300, 700, size) + (700 if "history" in task else 0)
        margins = rng.normal(rng.normal(0.9, 0.7), 1.6, size)
        margins_by_model = {"baseline": margins}
        for name, (falls, factor, noise) in VARIANTS.items():
            margins_by_model[name] = factor * margins - rng.normal(falls[group], 0.1) + rng.normal(0, noise, size)
        for name, own_margins in margins_by_model.items():
            logprobs = answered(own_margins, right, np.random.default_rng([seed, number, len(name)]))
            runs[name][task] = [
                sample(task, i, *pair) for i, pair in enumerate(zip(logprobs, right.tolist(), strict=True))
            ]
    for name, samples in runs.items():
        write_run(folder, name, samples, tokens)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the folders of results go")
    parser.add_argument("--share", type=float, default=1.0, help="share of each subject's questions")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write(given.folder, given.share, given.seed)
    print(f"Written, and made up: {given.folder}")
