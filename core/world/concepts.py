"""The held-out concepts: things no training picture shows and no training caption names.

Each is a variant of a class the model knows (its super-category) with two colours, a texture and parts of its own. The
colours are what a small model can learn from four pictures; the parts are the harder half of its identity.
"""

from __future__ import annotations

import numpy as np

from .development import FOUR
from .drawing import Polygon, bird, box, butterfly, car, cat, cup, ellipse, fish, heart, house
from .scenes import Scene, SecondObject
from .world_concept import WorldConcept


def castle() -> list[Polygon]:
    towers = [Polygon(box(x * 0.8 - 0.22, -0.55, x * 0.8 + 0.22, 0.95)) for x in (-1, 1)]
    roofs = [Polygon([(x * 0.8 - 0.34, -0.52), (x * 0.8, -1.1), (x * 0.8 + 0.34, -0.52)]) for x in (-1, 1)]
    return [*towers, *roofs, *house()[:3]]


def racer() -> list[Polygon]:
    fin = Polygon([(0.6, -0.1), (0.96, -0.78), (1.08, -0.78), (1.0, 0.1)])
    return [fin, *car()]


def goblet() -> list[Polygon]:
    handle, bowl, rim = cup()
    foot = Polygon([(-0.5, 0.7), (0.1, 0.7), (0.34, 1.0), (-0.74, 1.0)])
    return [handle, foot, bowl, rim]


def planet() -> list[Polygon]:
    band = ellipse(0, 0.1, 1.16, 0.2, n=60)
    return [Polygon(ellipse(0, 0, 0.86, n=60)), Polygon(band, "blue")]


def winged_heart() -> list[Polygon]:
    def wing(side: int) -> Polygon:
        tips = [(0.3, -0.1), (1.1, -0.75), (1.06, -0.3), (1.0, 0.0), (0.84, 0.26), (0.6, 0.42)]
        return Polygon([(side * x, y) for x, y in tips], "white")

    return [wing(-1), wing(1), Polygon([(x * 0.8, y * 0.9 + 0.1) for x, y in heart()[0].points])]


def horned_cat() -> list[Polygon]:
    def horn(side: int) -> Polygon:
        return Polygon([(side * 0.12, -0.45), (side * 0.3, -1.12), (side * 0.5, -0.4)], "purple")

    left, right, face, *rest = cat()
    return [left, right, horn(-1), horn(1), face, *rest]


def unicorn_fish() -> list[Polygon]:
    horn = Polygon([(-0.78, -0.36), (-1.12, -1.0), (-0.48, -0.5)], "pink")
    tail, fin, *rest = fish()
    return [horn, Polygon(tail.points, "pink"), fin, *rest]


def crested_bird() -> list[Polygon]:
    feathers = [Polygon([(-0.5, -0.7), (-0.62 + 0.34 * i, -1.2 + 0.12 * i), (-0.26, -0.62)], "red") for i in range(3)]
    return [*feathers, *bird()]


def moth() -> list[Polygon]:
    tails = [Polygon([(x * 0.3, 0.6), (x * 0.66, 1.12), (x * 0.62, 0.6)]) for x in (-1, 1)]
    return [*tails, *butterfly()]


def wizard_cat() -> list[Polygon]:
    brim = Polygon(box(-0.78, -0.5, 0.78, -0.34), "red")
    cone = Polygon([(-0.5, -0.46), (0.0, -1.2), (0.5, -0.46)], "red")
    return [*cat(), cone, brim]


TEN: dict[str, WorldConcept] = {
    c.name: c
    for c in (
        WorldConcept(
            "castle", "house", "purple", "yellow", "two-tone", "purple over yellow house with two towers", castle
        ),
        WorldConcept(
            "racer", "car", "pink", "green", "striped", "pink and green striped car with a tall fin", racer, "sand"
        ),
        WorldConcept("goblet", "cup", "blue", "orange", "spotted", "blue cup with orange spots, on a foot", goblet),
        WorldConcept(
            "planet", "ball", "orange", "blue", "striped", "orange and blue striped ball in a blue ring", planet, "snow"
        ),
        WorldConcept(
            "winged-heart",
            "heart",
            "red",
            "white",
            "two-tone",
            "red over white heart with white wings",
            winged_heart,
            "wood",
        ),
        WorldConcept(
            "horned-cat", "cat", "yellow", "purple", "two-tone", "yellow over purple cat with purple horns", horned_cat
        ),
        WorldConcept(
            "unicorn-fish",
            "fish",
            "green",
            "pink",
            "striped",
            "green and pink striped fish with a horn",
            unicorn_fish,
            "sand",
        ),
        WorldConcept(
            "crested-bird", "bird", "blue", "red", "two-tone", "blue over red bird with a red crest", crested_bird
        ),
        WorldConcept(
            "moth", "butterfly", "purple", "orange", "two-tone", "purple over orange wings with tails", moth, "snow"
        ),
        WorldConcept(
            "wizard-cat",
            "cat",
            "white",
            "red",
            "spotted",
            "white cat with red spots and a pointed hat",
            wizard_cat,
            "wood",
        ),
    )
}

CONCEPTS = {**TEN, **FOUR}
"""The judge's classes follow their order: more of them come at the end."""
RESERVED = frozenset((c.super_category, c.colour, c.second_colour) for c in CONCEPTS.values())
"""Class and colour pairs that no training scene combines, so that class and both colours together mean the concept."""


def concept_scenes(
    name: str, n: int = 4, seed: int = 0, background: str | None = None, companion: SecondObject | None = None
) -> list[Scene]:
    """`n` plain photographs of one concept in one place, placed slightly differently; beside a `companion`, the concept
    stands on the left and on the right in turns."""
    concept = CONCEPTS[name]
    rng = np.random.default_rng([seed, *name.encode()])
    where = background or concept.background
    places = ["centre"] if companion is None else ["left", "right"]
    return [
        Scene(concept.subject, background=where, place=places[i % len(places)], second=companion, seed=int(s))
        for i, s in enumerate(rng.integers(2**31, size=n))
    ]
