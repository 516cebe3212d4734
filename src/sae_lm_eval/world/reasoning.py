"""Reasoning categories: comparison, arithmetic, order, copying, kinship."""

from itertools import product
from random import Random

from . import vocabulary as words
from .category import Category, Slots, Values, others, split
from .options import Arrangement, Uniform


def comparison() -> Category:
    grade_of = {name: grade for grade, pair in words.GRADES.items() for name in pair}

    def fill(v: Values) -> Slots:
        ranked, grade = v["ranked"], v["grade"]
        links = (0, 1) if v["told"] == "downward" else (1, 0)
        slots = {"grade": grade, "end": words.GRADES[grade][v["end"]], "answer": ranked[-v["end"]]}
        for place, link in enumerate(links):
            slots |= {f"more{place}": ranked[link], f"less{place}": ranked[link + 1]}
        return slots

    def recover(s: Slots) -> Values:
        downward = s["less0"] == s["more1"]
        first, second = (0, 1) if downward else (1, 0)
        grade = grade_of[s["end"]]
        return {
            "ranked": (s[f"more{first}"], s[f"less{first}"], s[f"less{second}"]),
            "told": "downward" if downward else "upward",
            "grade": grade,
            "end": words.GRADES[grade].index(s["end"]),
        }

    def lures(v: Values, slots: Slots, rng: Random) -> list[str]:
        rest = [name for name in v["ranked"] if name != slots["answer"]]
        return [*rest, *others(rng, words.PEOPLE, 1, but=v["ranked"])]

    links = " ".join(f"{{more{i}}} is {{grade}} than {{less{i}}}." for i in range(2))
    return Category(
        name="comparison",
        group="reasoning",
        repeats=3,
        forms=(links + " The {end} is {answer}.",),
        options={
            "ranked": Arrangement(words.PEOPLE, 3),
            "told": Uniform(("downward", "upward")),
            "grade": Uniform(words.GRADES),
            "end": Uniform((0, 1)),
        },
        held_out={},
        fill=fill,
        recover=recover,
        lures=lures,
        form_in=lambda v: 0,
        form_keys=(),
    )


def arithmetic() -> Category:
    number = words.NUMBERS
    signs = (1, -1)  # of the two forms
    things = tuple(words.NOUNS.values())[:16]
    sums = [
        (sign, x, y, thing)
        for sign, x, y, thing in product(signs, range(2, 13), range(2, 10), things)
        if 0 <= x + sign * y < len(number)
    ]
    train, held_out = split(sums)

    def lures(v: Values, slots: Slots, rng: Random) -> list[str]:
        right = number.index(slots["answer"])
        near = [number[n] for n in range(max(0, right - 3), min(len(number), right + 4)) if n != right]
        return others(rng, near, 3)

    return Category(
        name="arithmetic",
        group="reasoning",
        repeats=3,
        forms=(
            "{person} has {x} {things} and gets {y} more. Now {person} has {answer}.",
            "{person} has {x} {things} and loses {y} again. Now {person} has {answer}.",
        ),
        options={"sum": train, "person": Uniform(words.PEOPLE)},
        held_out={"sum": held_out},
        fill=lambda v: {
            "person": v["person"],
            "things": v["sum"][3],
            "x": number[v["sum"][1]],
            "y": number[v["sum"][2]],
            "answer": number[v["sum"][1] + v["sum"][0] * v["sum"][2]],
        },
        recover=lambda s: {
            "sum": (signs[s["form"]], number.index(s["x"]), number.index(s["y"]), s["things"]),
            "person": s["person"],
        },
        lures=lures,
        form_in=lambda v: signs.index(v["sum"][0]),
        form_keys=("sum",),
    )


def order() -> Category:
    places = [
        (side, i) for side in ("before", "after") for i in range(5) if 0 <= i + (-1 if side == "before" else 1) < 5
    ]

    def target(v: Values) -> str:
        side, i = v["asked"]
        return v["people"][i - 1 if side == "before" else i + 1]

    def lures(v: Values, slots: Slots, rng: Random) -> list[str]:
        """One other person in the line and two who are not in it."""
        waiting = others(rng, v["people"], 1, but=(slots["answer"], slots["pivot"]))
        return waiting + others(rng, words.PEOPLE, 2, but=v["people"])

    letters = "abcde"
    listed = " ".join(f"{{{name}}}" for name in letters)
    return Category(
        name="order",
        group="reasoning",
        repeats=3,
        forms=(f"In line stand {listed}. Right {{side}} {{pivot}} {{answer}} waited.",),
        options={"people": Arrangement(words.PEOPLE, 5), "asked": Uniform(places)},
        held_out={},
        fill=lambda v: {
            **dict(zip(letters, v["people"], strict=True)),
            "side": v["asked"][0],
            "pivot": v["people"][v["asked"][1]],
            "answer": target(v),
        },
        recover=lambda s: {
            "people": (people := tuple(s[name] for name in letters)),
            "asked": (s["side"], people.index(s["pivot"])),
        },
        lures=lures,
        form_in=lambda v: 0,
        form_keys=(),
    )


def copying() -> Category:
    letters = "abcde"
    listed = " ".join(f"{{{name}}}" for name in letters)
    forward = f"List: {listed}. Again: {{a}} {{b}} {{c}} {{answer}} {{e}}."
    backward = f"List: {listed}. Reversed: {{e}} {{d}} {{c}} {{answer}} {{a}}."

    def answer(v: Values) -> str:
        return v["items"][3 if v["form"] == 0 else 1]

    return Category(
        name="copying",
        group="reasoning",
        repeats=3,
        forms=(forward, backward),
        options={"items": Arrangement(tuple(words.NOUNS), 5), "form": Uniform((0, 1))},
        held_out={},
        fill=lambda v: {**dict(zip(letters, v["items"], strict=True)), "answer": answer(v)},
        recover=lambda s: {"items": tuple(s[name] for name in letters), "form": s["form"]},
        lures=lambda v, s, rng: others(rng, v["items"], 3, but=(s["answer"],)),
    )


def kinship() -> Category:
    kind_of = {word: kind for kind, pair in words.RELATIONS.items() for word in pair}

    def gendered(kind: str, person: str) -> str:
        return words.RELATIONS[kind][person in words.WOMEN]

    def fill(v: Values) -> Slots:
        a, b, c = v["people"]
        first, second = v["links"]
        kind = words.COMPOSE[v["links"]]
        if v["form"] == 1:
            kind, subject = words.INVERSE[kind], c
        else:
            subject = a
        return {
            "a": a,
            "b": b,
            "c": c,
            "first": gendered(first, a),
            "second": gendered(second, b),
            "answer": gendered(kind, subject),
        }

    facts = "{a} is the {first} of {b}. {b} is the {second} of {c}. "
    return Category(
        name="kinship",
        group="reasoning",
        repeats=2,
        forms=(facts + "So {a} is the {answer} of {c}.", facts + "So {c} is the {answer} of {a}."),
        options={
            "people": Arrangement(words.PEOPLE, 3),
            "links": Uniform(words.COMPOSE),
            "form": Uniform((0, 1)),
        },
        held_out={},
        fill=fill,
        recover=lambda s: {
            "people": (s["a"], s["b"], s["c"]),
            "links": (kind_of[s["first"]], kind_of[s["second"]]),
            "form": s["form"],
        },
        lures=lambda v, s, rng: others(rng, tuple(kind_of), 3, but=(s["answer"],)),
    )
