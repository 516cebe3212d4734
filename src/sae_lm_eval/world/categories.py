"""The thirteen categories of sae_world by name, and the mixture a document is drawn from."""

from functools import cache

from . import knowledge, language, reasoning
from .category import Category
from .options import Weighted


@cache
def mixture() -> Weighted:
    """The choice of a document's category."""
    return Weighted(world_categories(), (kind.weight for kind in world_categories().values()))


@cache
def world_categories() -> dict[str, Category]:
    """All categories by name, in the order of the tables."""
    categories = (
        language.subject_verb_agreement(), language.plurals(), language.antonyms(), language.pronouns(),
        knowledge.homes(), knowledge.trades(), knowledge.pets(), knowledge.villages(),
        reasoning.comparison(), reasoning.arithmetic(), reasoning.order(), reasoning.copying(),
        reasoning.kinship(),
    )  # fmt: skip
    return {category.name: category for category in categories}
