"""Language categories: agreement, plurals, antonyms, pronouns."""

from collections.abc import Mapping, Sequence
from itertools import product
from random import Random

from . import vocabulary as words
from .category import Category, Slots, Values, others, split
from .options import Uniform

_SINGULAR = {plural: singular for singular, plural in words.NOUNS.items()}
_NOUN_FORMS = tuple(words.NOUNS) + tuple(_SINGULAR)
_VERB_LEMMA = {plural: singular for singular, plural in words.VERBS.items()}


def subject_verb_agreement() -> Category:
    def lemma(noun: str) -> str:
        return _SINGULAR.get(noun, noun)

    def verb(subject: str, singular: str) -> str:
        return words.VERBS[singular] if subject in _SINGULAR else singular

    def lures(v: Values, slots: Slots, rng: Random) -> list[str]:
        wrong = _VERB_LEMMA.values() if v["nouns"][0] in _SINGULAR else words.VERBS.values()
        right = {v["verb"], words.VERBS[v["verb"]]}
        return others(rng, tuple(wrong), 3, but=tuple(right))

    pairs = [(s, a) for s, a in product(_NOUN_FORMS, _NOUN_FORMS) if lemma(s) != lemma(a)]
    train, held_out = split(pairs)
    return Category(
        name="agreement",
        group="language",
        repeats=4,
        forms=("The {subject} {prep1} the {near} {prep2} the {last} {answer} {adverb}.",),
        options={
            "nouns": train,
            "last": Uniform(_NOUN_FORMS),
            "preps": Uniform(product(words.PREPOSITIONS, repeat=2)),
            "verb": Uniform(words.VERBS),
            "adverb": Uniform(words.ADVERBS),
        },
        held_out={"nouns": held_out},
        fill=lambda v: {
            "subject": v["nouns"][0],
            "near": v["nouns"][1],
            "last": v["last"],
            "prep1": v["preps"][0],
            "prep2": v["preps"][1],
            "answer": verb(v["nouns"][0], v["verb"]),
            "adverb": v["adverb"],
        },
        recover=lambda s: {
            "nouns": (s["subject"], s["near"]),
            "last": s["last"],
            "preps": (s["prep1"], s["prep2"]),
            "verb": _VERB_LEMMA.get(s["answer"], s["answer"]),
            "adverb": s["adverb"],
        },
        lures=lures,
        form_in=lambda v: 0,
        form_keys=(),
    )


def _word_pairs(
    name: str, repeats: int, forms: tuple[str, ...], answers: Mapping[str, str], pool: Sequence[str]
) -> Category:
    """A cue word determines the answer; each cue has one form that is only asked, never written."""

    def held(cue: str) -> int:
        return list(answers).index(cue) % len(forms)

    combos = list(product(answers, range(len(forms))))
    return Category(
        name=name,
        group="language",
        repeats=repeats,
        forms=forms,
        options={
            "cue": Uniform(c for c in combos if held(c[0]) != c[1]),
            "person": Uniform(words.PEOPLE),
            "count": Uniform(words.COUNTS),
        },
        held_out={"cue": Uniform(c for c in combos if held(c[0]) == c[1])},
        fill=lambda v: {
            "cue": v["cue"][0],
            "person": v["person"],
            "count": v["count"],
            "answer": answers[v["cue"][0]],
        },
        recover=lambda s: {"cue": (s["cue"], s["form"]), "person": s["person"], "count": s["count"]},
        lures=lambda v, s, rng: [v["cue"][0], *others(rng, pool, 2, but=(s["answer"], v["cue"][0]))],
        form_in=lambda v: v["cue"][1],
        form_keys=("cue",),
    )


def plurals() -> Category:
    forms = (
        "{person} saw one {cue} and {count} {answer}.",
        "The {cue} of {person} met {count} {answer}.",
        "{person} sold a {cue}, then {count} {answer}.",
        "This {cue} cost {person} {count} {answer}.",
    )
    return _word_pairs("plurals", 5, forms, words.NOUNS, tuple(_SINGULAR))


def antonyms() -> Category:
    forms = (
        "{person} sent {count} boxes, not {cue} but {answer}.",
        "Some {count} times {person} said {cue} and meant {answer}.",
        "If less {cue}, the {count} hats of {person} look {answer}.",
        "For {person} the {count} lamps turned from {cue} to {answer}.",
    )
    return _word_pairs("antonyms", 4, forms, words.OPPOSITE, words.ADJECTIVES)


def pronouns() -> Category:
    def persons(v: Values) -> tuple[str, str]:
        """The person meant and the other one."""
        a, b = v["pair"]
        return (a, b) if (a in words.WOMEN) == (v["pronoun"] == "she") else (b, a)

    mixed = [*product(words.WOMEN, words.MEN), *product(words.MEN, words.WOMEN)]
    train, held_out = split(mixed)

    def lures(v: Values, slots: Slots, rng: Random) -> list[str]:
        meant, other = persons(v)
        same, opposite = (words.WOMEN, words.MEN) if meant in words.WOMEN else (words.MEN, words.WOMEN)
        return [other, *others(rng, same, 1, but=(meant,)), *others(rng, opposite, 1, but=(other,))]

    return Category(
        name="pronouns",
        group="language",
        repeats=3,
        forms=("{first} met {second} at the {spot}. Later {pronoun} {deed}, so we thanked {answer}.",),
        options={
            "pair": train,
            "spot": Uniform(words.SPOTS),
            "pronoun": Uniform(("he", "she")),
            "deed": Uniform(words.DEEDS),
        },
        held_out={"pair": held_out},
        fill=lambda v: {**v, "first": v["pair"][0], "second": v["pair"][1], "answer": persons(v)[0]},
        recover=lambda s: {
            "pair": (s["first"], s["second"]),
            "spot": s["spot"],
            "pronoun": s["pronoun"],
            "deed": s["deed"],
        },
        lures=lures,
        form_in=lambda v: 0,
        form_keys=(),
    )
