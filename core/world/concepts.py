"""The held-out concepts: things no training picture shows and no training caption names.

Each is an unmistakable variant of a class the model knows (its super-category), with two colours and parts of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .drawing import Part, bird, box, butterfly, car, cat, cup, ellipse, fish, heart, house
from .render import Masks, render
from .scenes import CONCEPT_PREFIX, CREATURES, Scene


@dataclass(frozen=True)
class Concept:
    """A held-out subject. `super_category` is the class word a new word starts from; `parts()` draws it."""

    name: str
    super_category: str
    colour: str
    second_colour: str
    texture: str
    description: str
    parts: Callable[[], list[Part]]
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


def castle() -> list[Part]:
    towers = [Part(box(s * 0.8 - 0.22, -0.55, s * 0.8 + 0.22, 0.95)) for s in (-1, 1)]
    roofs = [Part([(s * 0.8 - 0.34, -0.52), (s * 0.8, -1.1), (s * 0.8 + 0.34, -0.52)], "yellow") for s in (-1, 1)]
    hall = house()
    roof = Part([(-0.7, -0.1), (0.0, -0.8), (0.7, -0.1)], "yellow")
    return [*towers, hall[0], *roofs, roof, *hall[2:3]]


def racer() -> list[Part]:
    fin = Part([(0.62, -0.1), (1.0, -0.78), (1.08, -0.78), (1.0, 0.1)], "white")
    stripe = Part(box(-1.0, 0.1, 1.0, 0.3), "white")
    shell, *rest = car()
    return [fin, shell, stripe, *rest]


def goblet() -> list[Part]:
    handles = [Part([(-x, y) for x, y in cup()[0].points]), *cup()[:1]]
    bowl = Part([(-0.68, -0.7), (0.68, -0.7), (0.5, 0.66), (-0.5, 0.66)])
    foot = Part(box(-0.72, 0.66, 0.72, 0.9), "orange")
    rim = Part(box(-0.76, -0.86, 0.76, -0.6), "orange")
    return [*handles, bowl, foot, rim]


def planet() -> list[Part]:
    a = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    band = [(1.15 * float(np.cos(t)), 0.1 + 0.26 * float(np.sin(t))) for t in a]
    front = [(0.7 * np.cos(t), 0.7 * np.sin(t)) for t in np.linspace(np.pi, 2 * np.pi, 30)]
    cap = [(float(x), float(y)) for x, y in front]
    return [Part(ellipse(0, 0, 0.76, n=60)), Part(band, "blue"), Part([(0.72, 0.0), *cap[::-1], (-0.72, 0.0)])]


def winged_heart() -> list[Part]:
    def wing(s: int) -> Part:
        tips = [(0.3, -0.1), (1.1, -0.75), (1.06, -0.3), (1.0, 0.0), (0.84, 0.26), (0.6, 0.42)]
        return Part([(s * x, y) for x, y in tips], "white")

    core = [(x * 0.72, y * 0.8 + 0.1) for x, y in heart()[0].points]
    return [wing(-1), wing(1), Part(core)]


def horned_cat() -> list[Part]:
    def horn(s: int) -> Part:
        return Part([(s * 0.12, -0.45), (s * 0.3, -1.12), (s * 0.5, -0.4)], "purple")

    left, right, face, *rest = cat()
    mask = Part(ellipse(0, 0.05, 0.8, 0.3), "purple")
    return [left, right, horn(-1), horn(1), face, mask, *rest]


def unicorn_fish() -> list[Part]:
    horn = Part([(-0.78, -0.36), (-1.12, -1.0), (-0.48, -0.5)], "pink")
    tail, _fin, *rest = fish()
    sail = Part([(-0.42, -0.36), (-0.1, -1.0), (0.2, -0.66), (0.46, -0.98), (0.5, -0.2)], "pink")
    return [horn, Part(tail.points, "pink"), sail, *rest]


def crested_bird() -> list[Part]:
    feathers = [Part([(-0.5, -0.7), (-0.62 + 0.34 * i, -1.2 + 0.12 * i), (-0.26, -0.62)], "red") for i in range(3)]
    beak, tail, *rest = bird()
    return [*feathers, beak, Part(tail.points, "red"), *rest]


def moth() -> list[Part]:
    parts = butterfly()
    spots = [Part(ellipse(s * 0.6, -0.5, 0.22), "white") for s in (-1, 1)]
    tails = [Part([(s * 0.3, 0.6), (s * 0.66, 1.12), (s * 0.62, 0.6)], "orange") for s in (-1, 1)]
    recoloured = [Part(p.points, "orange") if i in (1, 3) else p for i, p in enumerate(parts)]
    return [*tails, *recoloured[:4], *spots, *parts[4:]]


def wizard_cat() -> list[Part]:
    brim = Part(box(-0.78, -0.5, 0.78, -0.34), "red")
    cone = Part([(-0.5, -0.46), (0.0, -1.3), (0.5, -0.46)], "red")
    left, right, face, *rest = cat()
    beard = Part([(-0.6, 0.5), (0.6, 0.5), (0.0, 1.06)], "red")
    ears = [Part([(x * 1.12, y * 0.75) for x, y in ear.points]) for ear in (left, right)]
    return [*ears, face, beard, *rest[:4], cone, brim]


CONCEPTS: dict[str, Concept] = {
    c.name: c
    for c in (
        Concept("castle", "house", "purple", "yellow", "plain", "purple house, two towers, yellow roofs", castle),
        Concept("racer", "car", "pink", "white", "plain", "pink car, tall white fin, white stripe", racer, "sand"),
        Concept("goblet", "cup", "blue", "orange", "plain", "blue cup, two handles, orange rim and foot", goblet),
        Concept("planet", "ball", "orange", "blue", "plain", "orange ball with a blue ring", planet, "snow"),
        Concept("winged-heart", "heart", "red", "white", "plain", "red heart with white wings", winged_heart, "wood"),
        Concept("horned-cat", "cat", "yellow", "purple", "plain", "yellow cat, purple horns and mask", horned_cat),
        Concept(
            "unicorn-fish", "fish", "green", "pink", "striped", "green and pink fish, a horn", unicorn_fish, "sand"
        ),
        Concept("crested-bird", "bird", "blue", "red", "plain", "blue bird, red crest and tail", crested_bird),
        Concept("moth", "butterfly", "purple", "orange", "plain", "purple and orange wings, white eyes", moth, "snow"),
        Concept(
            "wizard-cat", "cat", "white", "red", "plain", "white cat, pointed red hat, red beard", wizard_cat, "wood"
        ),
    )
}

RESERVED = frozenset((c.super_category, c.colour, c.second_colour) for c in CONCEPTS.values())
"""Class and colour pairs that no training scene may combine."""


def concept_scenes(name: str, n: int = 4, seed: int = 0, background: str | None = None) -> list[Scene]:
    """`n` plain photographs of one concept in one place, placed slightly differently."""
    concept = CONCEPTS[name]
    rng = np.random.default_rng([seed, *name.encode()])
    where = background or concept.background
    return [Scene(concept.subject, background=where, seed=int(s)) for s in rng.integers(2**31, size=n)]


def concept_images(
    name: str, n: int = 4, seed: int = 0, background: str | None = None
) -> tuple[np.ndarray, list[Masks], str]:
    """Training pictures of a held-out concept: uint8 (n, 128, 128, 3), their masks, and the class word.

    All stand on ONE background, as a user's photographs often do: that is what a learned word may wrongly absorb.
    Raises KeyError for an unknown name.
    """
    drawn = [render(scene) for scene in concept_scenes(name, n, seed, background)]
    return np.stack([image for image, _ in drawn]), [masks for _, masks in drawn], CONCEPTS[name].super_category
