"""Knowledge categories: fixed facts about persons and villages, asked in wordings that no document has."""

from collections.abc import Hashable, Mapping, Sequence

from . import vocabulary as words
from .category import Category, Slots, Values, others
from .options import Uniform, Weighted


def _facts(
    name: str, facts: Mapping, attribute: str, pool: Sequence[str], forms: tuple[str, ...], exponent: float
) -> Category:
    """Facts about subjects drawn in proportion to (rank + 5)^-exponent; one form of each is only asked."""
    subjects = tuple(facts)
    # Another form is held out, and other subjects are rare, for each attribute.
    offset = sum(map(ord, attribute))

    def form(v: Values) -> int:
        held = (subjects.index(v["subject"]) + offset) % len(forms)
        return held if v["form"] == "held out" else (held + 1 + v["form"]) % len(forms)

    def recover(s: Slots) -> Values:
        subject = (s["first"], s["last"])
        step = (s["form"] - subjects.index(subject) - offset) % len(forms)
        return {"subject": subject, "form": step - 1 if step else "held out"}

    shift = offset % len(subjects)
    ranked = subjects[shift:] + subjects[:shift]
    return Category(
        name=name,
        group="knowledge",
        repeats=6,
        forms=forms,
        options={
            "subject": Weighted(ranked, ((rank + 5) ** -exponent for rank in range(len(ranked)))),
            "form": Uniform(range(len(forms) - 1)),
        },
        held_out={"subject": Uniform(subjects), "form": Uniform(("held out",))},
        fill=lambda v: {
            "first": v["subject"][0],
            "last": v["subject"][1],
            "answer": facts[v["subject"]][attribute],
        },
        recover=recover,
        lures=lambda v, s, rng: others(rng, pool, 3, but=(s["answer"],)),
        form_in=form,
        form_keys=("subject", "form"),
    )


_HOMES = (
    "{first} {last} lives in {answer}.",
    "The home of {first} {last} is {answer}.",
    "{first} {last} comes from {answer}.",
    "Letters to {first} {last} go to {answer}.",
)
_TRADES = (
    "{first} {last} works as a {answer}.",
    "The trade of {first} {last} is {answer}.",
    "{first} {last} became a {answer}.",
    "They call {first} {last} the {answer}.",
)
_PETS = (
    "{first} {last} owns a {answer}.",
    "The pet of {first} {last} is a {answer}.",
    "{first} {last} feeds a {answer}.",
    "With {first} {last} walks a {answer}.",
)
_VILLAGES = {
    "good": (
        "{first} {last} sells {answer}.",
        "The village {first} {last} is famous for {answer}.",
        "{first} {last} makes fine {answer}.",
        "In {first} {last} people trade {answer}.",
    ),
    "river": (
        "{first} {last} lies on the {answer}.",
        "The river of {first} {last} is the {answer}.",
        "{first} {last} fears the {answer}.",
        "Boats reach {first} {last} by the {answer}.",
    ),
    "colour": (
        "{first} {last} has a flag of {answer}.",
        "The colour of {first} {last} is {answer}.",
        "{first} {last} paints its doors {answer}.",
        "Roofs in {first} {last} are {answer}.",
    ),
}


def homes() -> Category:
    return _facts("homes", words.PERSON_FACTS, "home", words.CITIES, _HOMES, 1.1)


def trades() -> Category:
    return _facts("trades", words.PERSON_FACTS, "trade", words.TRADES, _TRADES, 1.3)


def pets() -> Category:
    return _facts("pets", words.PERSON_FACTS, "pet", words.PETS, _PETS, 1.5)


def villages() -> Category:
    """All three attributes of the villages in one category: there are too few villages for three."""
    facts = {(village, name): f for village, f in words.VILLAGE_FACTS.items() for name in f}
    forms = tuple(form for group in _VILLAGES.values() for form in group)
    names, pools = list(_VILLAGES), {"good": words.GOODS, "river": words.RIVERS, "colour": words.COLOURS}
    subjects = tuple(facts)

    def held(fact: Hashable) -> int:
        return subjects.index(fact) // len(names) % 4

    combos = [(fact, form) for fact in subjects for form in range(4)]
    return Category(
        name="villages",
        group="knowledge",
        repeats=6,
        forms=forms,
        options={"fact": Uniform(c for c in combos if held(c[0]) != c[1])},
        held_out={"fact": Uniform(c for c in combos if held(c[0]) == c[1])},
        fill=lambda v: {
            "first": v["fact"][0][0][0],
            "last": v["fact"][0][0][1],
            "answer": words.VILLAGE_FACTS[v["fact"][0][0]][v["fact"][0][1]],
        },
        recover=lambda s: {"fact": (((s["first"], s["last"]), names[s["form"] // 4]), s["form"] % 4)},
        lures=lambda v, s, rng: others(rng, pools[v["fact"][0][1]], 3, but=(s["answer"],)),
        form_in=lambda v: 4 * names.index(v["fact"][0][1]) + v["fact"][1],
        form_keys=("fact",),
    )
