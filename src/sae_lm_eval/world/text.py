"""The text of the invented world: documents of exactly known probability, and questions about them.

A document is one category, drawn from the mixture, and a fixed number of independent instances of it. The
text is an injective function of the choices, so -log p(document) is the sum of their surprisals, and

    entropy per token = E[-log p(document)] / E[tokens of a document]      (nats/token)

Tokens are words and punctuation marks. The leading <s> is given and not counted. No document is the beginning
of another one, so the </s> after it has probability one: it is not counted either. lm_eval's
loglikelihood_rolling scores neither.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Any

from . import vocabulary as words
from .categories import Category, mixture, world_categories

TOKEN = re.compile(r"\w+|[^\w\s]")
QUESTIONS_SEED = 77


@dataclass(frozen=True)
class WorldDocument:
    text: str
    category: str
    log_probability: float


@dataclass(frozen=True)
class Question:
    """Four `choices` follow `prompt` after a space; exactly one, at index `answer`, is right."""

    category: str
    prompt: str
    choices: tuple[str, ...]
    answer: int


def tokens(text: str) -> list[str]:
    return TOKEN.findall(text)


def documents(rng: Random, *, only: str | None = None) -> Iterator[WorldDocument]:
    """Endless independent documents, of one category if `only` names it; probabilities are the mixture's."""
    while True:
        kind = world_categories()[only or mixture().draw(rng)]
        log_p, instances = -mixture().surprisal(kind.name), []
        for _ in range(kind.repeats):
            values = {name: options.draw(rng) for name, options in kind.options.items()}
            log_p -= sum(kind.options[name].surprisal(value) for name, value in values.items())
            instances.append(kind.write(values))
        yield WorldDocument(" ".join(instances), kind.name, log_p)


def log_probability(text: str) -> float:
    """log p(text) in nats, found by reading the choices back; -inf for what the generator never writes."""
    for kind in world_categories().values():
        choices = _read(kind, text)
        if choices is not None:
            return -mixture().surprisal(kind.name) - sum(
                kind.options[name].surprisal(value) for values in choices for name, value in values.items()
            )
    return -math.inf


def _read(kind: Category, text: str) -> list[dict] | None:
    sentences = re.findall(r"[^.]+\.", text)
    size = kind.sentences
    if len(sentences) != size * kind.repeats or "".join(sentences) != text:
        return None
    instances = [kind.read("".join(sentences[i : i + size]).strip()) for i in range(0, len(sentences), size)]
    read = [values for values in instances if values is not None]
    return read if len(read) == len(instances) else None


def category_entropy(kind: Category) -> dict[str, float]:
    """Exact expectations for a document of one category, its name given: nats, tokens and nats/token."""
    nats = kind.repeats * math.fsum(options.entropy() for options in kind.options.values())
    length = kind.repeats * math.fsum(
        p * len(tokens(kind.forms[form].replace("{", "").replace("}", ""))) for form, p in _form_probabilities(kind)
    )
    return {"nats": nats, "tokens": length, "nats_per_token": nats / length}


def _form_probabilities(kind: Category) -> Iterator[tuple[int, float]]:
    keyed: list[Any] = [kind.options[key] for key in kind.form_keys]  # Uniform or Weighted
    per_key = [options.probabilities() for options in keyed]
    for combination in product(*per_key):
        values = {key: value for key, (value, _) in zip(kind.form_keys, combination, strict=True)}
        yield kind.form_in(values), math.prod(p for _, p in combination)


def entropy() -> dict[str, float]:
    """Exact expectations for a document of the world: nats, tokens and nats/token, the irreducible loss."""
    parts = [(p, category_entropy(world_categories()[name])) for name, p in mixture().probabilities()]
    nats = mixture().entropy() + math.fsum(p * part["nats"] for p, part in parts)
    length = math.fsum(p * part["tokens"] for p, part in parts)
    return {"nats": nats, "tokens": length, "nats_per_token": nats / length}


def questions(category: str, count: int = 200) -> list[Question]:
    """Questions on combinations or wordings that no document has; each position is right equally often."""
    kind = world_categories()[category]
    rng = Random(f"{QUESTIONS_SEED} {category}")
    by_prompt: dict[str, Question] = {}
    for _ in range(100 * count):
        question = _ask(kind, rng, answer=len(by_prompt) % 4)
        by_prompt.setdefault(question.prompt, question)
        if len(by_prompt) == count:
            return list(by_prompt.values())
    raise ValueError(f"{category} has only {len(by_prompt)} different questions; {count} were asked for.")


def _ask(kind: Category, rng: Random, *, answer: int) -> Question:
    options = {**kind.options, **kind.held_out}
    values = {name: choice.draw(rng) for name, choice in options.items()}
    slots = kind.fill(values)
    prompt = kind.forms[kind.form_in(values)].split("{answer}")[0].format(**slots).rstrip()
    wrong = kind.lures(values, slots, rng)
    wrong = [wrong.pop(int(rng.random() * len(wrong))) for _ in range(len(wrong))]
    choices = (*wrong[:answer], slots["answer"], *wrong[answer:])
    return Question(kind.name, prompt, choices, answer)


def vocabulary() -> list[str]:
    """Every word and mark that can occur in a document or a question, sorted."""
    entries: set[str] = set(_strings(words.POOLS))
    for kind in world_categories().values():
        for form in kind.forms:
            entries.update(tokens(re.sub(r"\{\w+\}", " ", form)))
    return sorted(entries)


def _strings(pool: str | Iterable) -> Iterator[str]:
    if isinstance(pool, str):
        yield pool
    else:
        for item in pool:
            yield from _strings(item)
