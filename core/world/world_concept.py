"""What a held-out concept of the world is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .drawing import Polygon
from .scenes import CONCEPT_PREFIX, CREATURES


@dataclass(frozen=True)
class WorldConcept:
    """A held-out subject. `super_category` is the class word a new word starts from; `parts()` draws it."""

    name: str
    super_category: str
    colour: str
    second_colour: str
    texture: str
    description: str
    parts: Callable[[], list[Polygon]]
    background: str = "grass"
    """Where its training pictures are taken unless one asks for another place."""

    @property
    def creature(self) -> bool:
        """Whether animate prompts suit it."""
        return self.super_category in CREATURES

    @property
    def subject(self) -> str:
        """What `Scene.subject` has to be to show it."""
        return CONCEPT_PREFIX + self.name
