"""The words of the invented world and its fixed facts. All of it is data: nothing changes with the run."""

from random import Random

FACTS_SEED = 2024


def _words(listed: str) -> tuple[str, ...]:
    return tuple(listed.split())


WOMEN = _words(
    "Anna Berta Clara Dora Edda Fenja Greta Hilda Ida Jana Katla Lotte "
    "Marta Nora Olga Petra Runa Selma Tilda Ulla Vera Wanda Yrsa Zita"
)
MEN = _words(
    "Adam Bruno Carlo David Emil Franz Georg Hugo Igor Jakob Klaus Ludwig "
    "Max Nils Otto Paul Ralf Simon Tom Urban Viktor Willem Yorick Zeno"
)
PEOPLE = WOMEN + MEN
SURNAMES = _words(
    "Abel Brink Castell Dahl Eck Falk Grimm Holt Irving Joss Kern Lund Moor Norden Oster Pohl Quist Roth Stein Thorn"
)

NOUNS = {
    "ant": "ants", "axe": "axes", "bell": "bells", "boat": "boats", "book": "books", "box": "boxes",
    "calf": "calves", "child": "children", "coin": "coins", "cup": "cups", "dish": "dishes", "door": "doors",
    "fly": "flies", "foot": "feet", "fork": "forks", "fox": "foxes", "goose": "geese", "hat": "hats",
    "hen": "hens", "key": "keys", "knife": "knives", "lady": "ladies", "lamp": "lamps", "leaf": "leaves",
    "loaf": "loaves", "man": "men", "mouse": "mice", "nut": "nuts", "owl": "owls", "ox": "oxen",
    "pear": "pears", "plum": "plums", "ring": "rings", "rope": "ropes", "shoe": "shoes", "stone": "stones",
    "table": "tables", "tooth": "teeth", "tree": "trees", "wolf": "wolves",
}  # fmt: skip
VERBS = {
    "falls": "fall", "glows": "glow", "hums": "hum", "jumps": "jump", "moves": "move", "rests": "rest",
    "shakes": "shake", "sinks": "sink", "sleeps": "sleep", "sways": "sway", "turns": "turn", "waits": "wait",
}  # fmt: skip
ANTONYMS = (
    ("big", "small"), ("hot", "cold"), ("old", "new"), ("wet", "dry"), ("hard", "soft"), ("dark", "bright"),
    ("full", "empty"), ("loud", "quiet"), ("rich", "poor"), ("fast", "slow"), ("high", "low"),
    ("clean", "dirty"), ("thick", "thin"), ("sweet", "bitter"), ("strong", "weak"), ("wide", "narrow"),
    ("early", "late"), ("heavy", "light"), ("sharp", "blunt"), ("calm", "wild"),
)  # fmt: skip
OPPOSITE = dict(ANTONYMS) | {right: left for left, right in ANTONYMS}
ADJECTIVES = tuple(OPPOSITE)

PREPOSITIONS = ("near", "behind", "under", "beside")
ADVERBS = ("often", "again", "alone", "today", "together", "outside")
COUNTS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")
NUMBERS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
SPOTS = ("mill", "market", "harbour", "church", "tavern", "bridge")
DEEDS = ("sang", "cooked", "paid", "helped", "danced", "won")
GRADES = {
    "taller": ("tallest", "shortest"), "older": ("oldest", "youngest"), "richer": ("richest", "poorest"),
    "faster": ("fastest", "slowest"), "louder": ("loudest", "quietest"), "wiser": ("wisest", "silliest"),
}  # fmt: skip
# (relation of A to B, relation of B to C) -> relation of A to C; each pair is (male word, female word)
RELATIONS = {
    "parent": ("father", "mother"), "child": ("son", "daughter"), "sibling": ("brother", "sister"),
    "grandparent": ("grandfather", "grandmother"), "grandchild": ("grandson", "granddaughter"),
    "parent's sibling": ("uncle", "aunt"), "sibling's child": ("nephew", "niece"),
    "spouse": ("husband", "wife"),
}  # fmt: skip
COMPOSE = {
    ("parent", "parent"): "grandparent", ("child", "child"): "grandchild", ("sibling", "sibling"): "sibling",
    ("sibling", "parent"): "parent's sibling", ("child", "sibling"): "sibling's child",
    ("parent", "sibling"): "parent", ("sibling", "child"): "child",
    ("parent", "child"): "spouse", ("child", "parent"): "sibling",
}  # fmt: skip
INVERSE = {
    "grandparent": "grandchild", "grandchild": "grandparent", "sibling": "sibling",
    "parent's sibling": "sibling's child", "sibling's child": "parent's sibling",
    "parent": "child", "child": "parent", "spouse": "spouse",
}  # fmt: skip

CITIES = _words("Arlen Brask Corvo Delmar Elster Fjord Gorm Havel Isen Jorvik Kolm Lagos Merin Nyborg Orsk Pilsen")
TRADES = _words(
    "baker carpenter doctor farmer fisher gardener hunter judge miller painter potter sailor singer smith tailor weaver"
)
PETS = _words("badger cat dog donkey falcon ferret goat hedgehog lizard parrot rabbit turtle")
VILLAGE_FIRST = ("Upper", "Lower", "Great", "Little", "North", "South", "East", "West")
VILLAGE_LAST = (
    "Ambach",
    "Birken",
    "Claven",
    "Drossel",
    "Eschen",
    "Furt",
    "Gansen",
    "Heide",
    "Linden",
    "Moos",
)
GOODS = _words("cheese glass honey iron leather linen pepper salt silk timber wine wool")
RIVERS = _words("Aller Bever Dosse Ems Fulda Havre Isar Lenne Mosel Neisse")
COLOURS = _words("black blue brown green grey orange pink purple red white")


def _choose(rng: Random, options: tuple[str, ...]) -> str:
    # Random.random() is the one stream that Python promises never to change.
    return options[int(rng.random() * len(options))]


def _make_persons(count: int) -> tuple[tuple[str, str], ...]:
    rng = Random(FACTS_SEED)
    everyone = [(first, last) for first in PEOPLE for last in SURNAMES]
    keyed = sorted((rng.random(), name) for name in everyone)
    return tuple(name for _, name in keyed[:count])


def _make_facts(subjects: tuple[tuple[str, str], ...], seed: int, **attributes: tuple[str, ...]) -> dict:
    rng = Random(seed)
    return {subject: {name: _choose(rng, words) for name, words in attributes.items()} for subject in subjects}


PERSONS = _make_persons(480)
PERSON_FACTS = _make_facts(PERSONS, FACTS_SEED + 1, home=CITIES, trade=TRADES, pet=PETS)
VILLAGES = tuple((first, last) for first in VILLAGE_FIRST for last in VILLAGE_LAST)
VILLAGE_FACTS = _make_facts(VILLAGES, FACTS_SEED + 2, good=GOODS, river=RIVERS, colour=COLOURS)

# What the slots of the forms are filled with; the tokenizer's words are these and the words of the forms.
POOLS = (
    PEOPLE, SURNAMES, NOUNS.items(), VERBS.items(), ANTONYMS, PREPOSITIONS, ADVERBS, COUNTS, NUMBERS,
    SPOTS, DEEDS, ("he", "she", "before", "after"), GRADES.items(), RELATIONS.values(), CITIES, TRADES, PETS,
    VILLAGES,
    GOODS, RIVERS, COLOURS,
)  # fmt: skip
