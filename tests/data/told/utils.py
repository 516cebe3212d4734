"""Questions of the embedded world, to be answered in the model's own words."""

from itertools import islice
from random import Random

import datasets

from sae_lm_eval.world import text


def prompts(**_) -> dict[str, datasets.Dataset]:
    questions = text.questions("homes")
    return {
        "test": datasets.Dataset.from_list([{"prompt": q.prompt, "answer": q.choices[q.answer]} for q in questions])
    }


def said(doc: dict, results: list[str]) -> dict[str, float]:
    return {"acc": float(results[0].strip().startswith(doc["answer"]))}


def documents(**_) -> dict[str, datasets.Dataset]:
    first = islice(text.documents(Random(7)), 20)
    return {"test": datasets.Dataset.from_list([{"page": document.text} for document in first])}


def by_character(doc: dict, results: tuple[float]) -> dict[str, float]:
    return {"by_character": results[0] / len(doc["page"])}
