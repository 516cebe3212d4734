"""Data of the sae_world tasks: questions and documents of the embedded world, made from its seed."""

from itertools import islice
from random import Random

import datasets

from sae_lm_eval.world import text

DOCUMENTS_SEED = 4242


def questions(category: str, **_) -> dict[str, datasets.Dataset]:
    asked = text.questions(category)
    rows = [{"prompt": q.prompt, "choices": list(q.choices), "answer": q.answer} for q in asked]
    return {"test": datasets.Dataset.from_list(rows)}


def documents(count: int = 500, **_) -> dict[str, datasets.Dataset]:
    made = islice(text.documents(Random(DOCUMENTS_SEED)), count)
    return {"test": datasets.Dataset.from_list([{"page": d.text, "category": d.category} for d in made])}


def token_perplexity(doc: dict, results: tuple[float]) -> dict:
    """exp(nats/token): its logarithm is to be held against the exact entropy per token of the world."""
    (log_likelihood,) = results
    return {"word_perplexity": (log_likelihood, len(text.tokens(doc["page"])))}
