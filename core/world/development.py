"""Four concepts for development alone: unlike the ten in parts and patterns, and never judged."""

from __future__ import annotations

from .drawing import Polygon, bird, box, car, cup, ellipse
from .world_concept import WorldConcept


def comet() -> list[Polygon]:
    """A ball with two swept tails."""
    tails = [
        Polygon([(0.2, y), (1.14, y - 0.5), (0.98, y - 0.22), (1.16, y - 0.1), (0.3, y + 0.24)], "purple")
        for y in (-0.1, 0.3)
    ]
    return [*tails, Polygon(ellipse(-0.26, 0.06, 0.72, n=60))]


def teapot() -> list[Polygon]:
    """A cup with a spout on its left and a lid with a knob."""
    handle, bowl, _ = cup()
    spout = Polygon([(-0.78, 0.34), (-1.16, -0.56), (-0.98, -0.62), (-0.7, -0.16)])
    lid = Polygon([(-0.86, -0.66), (-0.56, -0.96), (0.16, -0.96), (0.46, -0.66)], "green")
    return [handle, spout, bowl, lid, Polygon(ellipse(-0.2, -1.04, 0.13), "green")]


def fire_engine() -> list[Polygon]:
    """A car with a ladder on its roof."""
    rails = Polygon([(-0.5, -0.66), (0.98, -1.02), (1.02, -0.86), (-0.46, -0.5)], "white")
    rungs = [
        Polygon(
            box(x, -0.72 - 0.243 * (x + 0.5) + 0.06, x + 0.07, -0.5 - 0.243 * (x + 0.5) - 0.06),
            "dark",
        )
        for x in (-0.3, -0.02, 0.26, 0.54, 0.8)
    ]
    return [rails, *rungs, *car()]


def parrot() -> list[Polygon]:
    """A bird with a long tail of three feathers."""
    feathers = [
        Polygon([(0.5, 0.2), (1.12, 0.1 + 0.26 * i), (1.12, 0.3 + 0.26 * i), (0.4, 0.5)], colour)
        for i, colour in enumerate(("blue", "red", "blue"))
    ]
    beak, _, *rest = bird()
    return [*feathers, beak, *rest]


FOUR: dict[str, WorldConcept] = {
    c.name: c
    for c in (
        WorldConcept("comet", "ball", "yellow", "purple", "two-tone", "yellow over purple ball with tails", comet),
        WorldConcept(
            "teapot",
            "cup",
            "white",
            "green",
            "striped",
            "white and green striped pot with a spout and a lid",
            teapot,
            "snow",
        ),
        WorldConcept(
            "fire-engine",
            "car",
            "red",
            "yellow",
            "spotted",
            "red car with yellow spots and a ladder",
            fire_engine,
            "wood",
        ),
        WorldConcept(
            "parrot", "bird", "green", "pink", "spotted", "green bird with pink spots and a long tail", parrot, "sand"
        ),
    )
}
