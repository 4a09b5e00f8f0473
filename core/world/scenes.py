"""What a ConceptWorld picture shows: the vocabulary of the world and the `Scene` record.

A scene is plain data. `render.render` draws it, `captions.caption` describes it, `checks.Judge` reads it back from
pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

from .streams import Draws

WORLD_VERSION = "1"
IMAGE_SIZE = 128
"""Side of a picture in pixels."""

SHAPES = ("ball", "star", "heart", "house", "car", "cup", "fish", "cat", "bird", "butterfly")
CREATURES = ("fish", "cat", "bird", "butterfly")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 38),
    "orange": (246, 138, 24),
    "yellow": (250, 222, 48),
    "green": (44, 160, 62),
    "blue": (40, 84, 220),
    "purple": (132, 52, 186),
    "pink": (250, 140, 196),
    "white": (246, 246, 246),
}
TEXTURES = ("plain", "striped", "spotted", "two-tone")
BACKGROUNDS = ("grass", "sand", "snow", "water", "night", "bricks", "wood", "lava")
STYLES = ("photo", "sketch", "pixelated")
PLACES = ("left", "centre", "right")
WORN = ("", "hat", "crown")

CONCEPT_PREFIX = "concept:"
"""`subject="concept:<name>"` puts a held-out concept (`concepts.CONCEPTS`) into a scene."""


@dataclass(frozen=True)
class SecondObject:
    """A smaller object beside the subject. Of a held-out concept ("concept:<name>") the look is its own."""

    shape: str
    colour: str

    @property
    def concept(self) -> str | None:
        """Name of the held-out concept that it is, or None."""
        return self.shape.removeprefix(CONCEPT_PREFIX) if self.shape.startswith(CONCEPT_PREFIX) else None


@dataclass(frozen=True)
class Scene:
    """One picture. `seed` fixes what has no word: small shifts, the exact size, the phase of the background pattern.

    `second_colour` is the colour of stripes, spots or the lower half; it is unused when `texture` is "plain". For a
    held-out concept `colour`, `second_colour`, `texture` and `worn` are ignored: its look is its own.
    """

    subject: str
    colour: str = "red"
    texture: str = "plain"
    second_colour: str = "white"
    background: str = "grass"
    place: str = "centre"
    worn: str = ""
    second: SecondObject | None = None
    style: str = "photo"
    seed: int = 0

    @property
    def concept(self) -> str | None:
        """Name of the held-out concept that is the subject, or None."""
        return self.subject.removeprefix(CONCEPT_PREFIX) if self.subject.startswith(CONCEPT_PREFIX) else None


def _pick(rng: Draws, options: tuple[str, ...] | list[str], p: list[float] | None = None) -> str:
    return str(options[int(rng.choice(len(options), p=p))])


def sample_scene(rng: Draws, reserved: frozenset[tuple[str, str, str]] = frozenset()) -> Scene:
    """Draw a scene of the training world; held-out concepts never come up.

    `reserved` holds (shape, colour, second colour) triples that stay unseen, in either order of the two colours, so
    that no ordinary scene imitates a held-out concept (`concepts.RESERVED`).
    """
    shape = _pick(rng, SHAPES)
    colours = list(COLOURS)
    while True:
        colour, second_colour = (_pick(rng, colours) for _ in range(2))
        if colour == second_colour:
            continue
        if (shape, colour, second_colour) not in reserved and (shape, second_colour, colour) not in reserved:
            break
    texture = _pick(rng, TEXTURES, [0.58, 0.14, 0.14, 0.14])
    background = _pick(rng, BACKGROUNDS)
    style = _pick(rng, STYLES, [0.86, 0.07, 0.07])
    worn = _pick(rng, WORN, [0.88, 0.06, 0.06])
    second = None
    if rng.random() < 0.25:
        other = _pick(rng, [s for s in SHAPES if s != shape])
        second = SecondObject(other, _pick(rng, colours))
        worn = ""
    place = _pick(rng, PLACES, [0.12, 0.76, 0.12])
    if second is not None:
        place = "left" if rng.random() < 0.5 else "right"
    return Scene(
        subject=shape,
        colour=colour,
        texture=texture,
        second_colour=second_colour,
        background=background,
        place=place,
        worn=worn,
        second=second,
        style=style,
        seed=int(rng.integers(2**31)),
    )
