"""Sentences on offer by name: rich prompts and synthetic captions, the general ones and those of ConceptWorld."""

from __future__ import annotations

from functools import cache

from .prompts.captions import CaptionSource, ClassCaptions
from .prompts.rich import RichPrompts, object_prompts, pet_prompts, words
from .prompts.sets import PromptSet
from .prompts.sets import rich_set as as_set
from .world.prompts import REGULARIZATION_BACKGROUNDS
from .world.sources import WorldCaptions, world_prompts

RICH_SETS = {"pets": pet_prompts, "objects": object_prompts, "concept_world": cache(world_prompts)}
"""METHODS.md 2.5 for animals and for things, and the words of the bundled model's world."""


def rich_prompts(name: str) -> RichPrompts:
    """One of `RICH_SETS`. Raises ValueError that lists them for another name."""
    if name not in RICH_SETS:
        raise ValueError(f"no rich prompt set {name!r}; there are {', '.join(RICH_SETS)}")
    return RICH_SETS[name]()


def rich_sets() -> list[str]:
    """Names for `rich_set`."""
    return list(RICH_SETS)


@cache
def rich_set(name: str) -> PromptSet:
    """One of `RICH_SETS` to regularise with: ConceptWorld's is `regularization_prompts`. Raises ValueError as
    `rich_prompts`."""
    return as_set(regularization_prompts() if name == "concept_world" else rich_prompts(name))


@cache
def regularization_prompts() -> RichPrompts:
    """ConceptWorld's rich prompts without the backgrounds that evaluation asks for."""
    return world_prompts(REGULARIZATION_BACKGROUNDS)


def synthetic_captions(name: str) -> CaptionSource:
    """The built-in captions: "concept_world", or "pets" or "objects" (METHODS.md 2.4). Raises ValueError for another
    name."""
    if name == "concept_world":
        return WorldCaptions()
    return ClassCaptions(rich_prompts(name), words("pet_classes" if name == "pets" else "object_classes"))
