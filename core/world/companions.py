"""Two things in every training picture, one word: what may stand beside a concept, and prompts that tell them apart."""

from __future__ import annotations

from collections.abc import Sequence

from .captions import BACKGROUND_PHRASES, BESIDE, with_article
from .concepts import CONCEPTS
from .prompts import REGULARIZATION_BACKGROUNDS
from .scenes import COLOURS, CONCEPT_PREFIX, SHAPES, SecondObject

COMPANIONS: dict[str, SecondObject] = {
    **{
        f"{colour} {shape}": SecondObject(shape, colour)
        for shape, colour in zip(
            SHAPES,
            ("red", "yellow", "pink", "blue", "green", "purple", "orange", "white", "red", "yellow"),
            strict=True,
        )
    },
    **{name: SecondObject(concept.subject, concept.colour) for name, concept in CONCEPTS.items()},
}
"""What may stand beside a concept, by the name that a node offers: ordinary things, and the other held-out concepts."""


def companion_for(concept: str, name: str) -> SecondObject:
    """The companion called `name`, if it is of another class than `concept`: of two cats, no word says which is meant.

    Raises ValueError for the same class, and KeyError for unknown names.
    """
    companion = COMPANIONS[name]
    if class_of(companion) == CONCEPTS[concept].super_category:
        raise ValueError(f"{name!r} and {concept!r} are both a {class_of(companion)}; choose another companion")
    return companion


def class_of(companion: SecondObject) -> str:
    """The ordinary word for it."""
    return CONCEPTS[companion.concept].super_category if companion.concept else companion.shape


def description(companion: SecondObject) -> str:
    """How a caption would call it: "a yellow star", or for a concept its class and both colours."""
    if companion.concept is None:
        return with_article(f"{companion.colour} {companion.shape}")
    concept = CONCEPTS[companion.concept]
    return with_article(f"{concept.colour} and {concept.second_colour} {concept.super_category}")


def specific_prompts(
    concept: str, companion: SecondObject | None = None, backgrounds: Sequence[str] = REGULARIZATION_BACKGROUNDS
) -> tuple[str, ...]:
    """A list of prompts for one concept (METHODS.md 2.5: 50 of them for pictures that hold several concepts).

    It is named alone in every place, beside its companion, and beside other things; so what the companion is called
    belongs to the companion. Only `backgrounds` are named.
    """
    own = CONCEPTS[concept].super_category
    places = {name: BACKGROUND_PHRASES[name] for name in backgrounds}
    alone = [f"a photo of a {{}} {phrase}" for phrases in places.values() for phrase in phrases]
    others = [shape for shape in SHAPES if shape not in (own, companion and class_of(companion))]
    things = [with_article(f"{colour} {shape}") for shape, colour in zip(others, COLOURS, strict=False)]
    beside = [
        f"a photo of a {{}} {relation.format(thing)} {phrases[0]}"
        for phrases in places.values()
        for thing, relation in zip(things, BESIDE, strict=False)
    ]
    if companion is None:
        return (*alone, *beside)
    named = description(companion)
    together = [f"a photo of a {{}} {relation.format(named)} {p[1]}" for p in places.values() for relation in BESIDE]
    return (*alone, *together, *beside[: 50 - len(alone) - len(together)])


def is_companion(kind: str | None, companion: SecondObject) -> bool:
    """Whether a judge's `kind`, a shape or "concept:<name>", is the companion: its class, or itself."""
    return kind is not None and kind in (class_of(companion), companion.shape)


def is_concept(kind: str | None, concept: str) -> bool:
    """Whether a judge's `kind` is the concept or its class."""
    return kind is not None and kind in (CONCEPTS[concept].super_category, CONCEPT_PREFIX + concept)
