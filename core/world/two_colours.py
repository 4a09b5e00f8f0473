"""An exact check of a figure in two colours, read from pixels: do they lie as the texture's name says?

No network judges here. What a pixel shows is the nearest of the world's fills. Patterns of every texture, in either
order of the colours and at the places and sizes that a figure can have, are laid over the figure; the best of them says
what it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from .drawing import DARK, FILLS, Points, nearest, texture_mask
from .scenes import COLOURS, IMAGE_SIZE, TEXTURES

INDEX = {name: index for index, name in enumerate(COLOURS)}
LAID = tuple(texture for texture in TEXTURES if texture != "plain")
PURE = 0.7
"""Share of a figure's coloured pixels that the two colours have together, at least."""
EITHER = 0.08
"""Share that each of the two has, at least."""
AGREEING = 0.75
"""How much of each colour lies where the pattern wants it, at least: the mean of the two."""
SHIFTS = range(-8, 9, 2)
"""Pixels from the middle of what a figure covers to the middle that its pattern is drawn around."""
HALVES = range(33, 50, 2)
"""Half sizes, in pixels, of a subject that stands alone."""


def laid_out(image: np.ndarray, figure: np.ndarray, colour: str, second: str) -> str | None:
    """The texture in which `colour` and `second` lie on a figure, None where they lie in none.

    `image` is uint8 (128, 128, 3), `figure` a boolean mask (128, 128). The order counts: spots of `colour` on `second`
    are no spots of `second`, and `second` over `colour` is not two-tone. Raises KeyError for a colour that does not
    exist.
    """
    seen = nearest_fill(image)
    one, two = (figure & (seen == INDEX[name]) for name in (colour, second))
    coloured = int((figure & (seen < len(COLOURS))).sum())
    counts = int(one.sum()), int(two.sum())
    if not coloured or sum(counts) < PURE * coloured or min(counts) < EITHER * coloured:
        return None
    best, name = 0.0, None
    for texture, where in patterns_at(*middle(figure)):
        agreeing = ((two & where).sum() / counts[1] + (one & ~where).sum() / counts[0]) / 2
        for value, called in ((agreeing, texture), (1 - agreeing, None)):
            if value > best and not (texture == "striped" and called is None):  # stripes are stripes either way
                best, name = float(value), called
    return name if best >= AGREEING else None


def nearest_fill(image: np.ndarray) -> np.ndarray:
    """What each pixel shows, (H, W): an index of `COLOURS`, or one beyond for what is dark. A glint shows as white."""
    return nearest(image, [*(FILLS[name] for name in COLOURS), DARK])


def middle(figure: np.ndarray) -> tuple[int, int]:
    """x and y of the middle of what a boolean mask covers, in even pixels; the picture's own for an empty mask."""
    found = [np.flatnonzero(figure.any(axis)) for axis in (0, 1)]
    x, y = (round((line[0] + line[-1]) / 4) * 2 if len(line) else IMAGE_SIZE // 2 for line in found)
    return x, y


def patterns_at(x: int, y: int) -> Iterator[tuple[str, np.ndarray]]:
    """Every pattern of a figure around `x`, `y`: the texture, and where its second colour goes (128, 128)."""
    for half in HALVES:
        for down in SHIFTS:
            for texture in LAID:
                # Lines across do not change sideways.
                for right in SHIFTS if texture == "spotted" else (0,):
                    yield texture, _pattern(texture, x + right, y + down, half)


@lru_cache(maxsize=8192)
def _pattern(texture: str, x: int, y: int, half: int) -> np.ndarray:
    def place(points: Points) -> Points:
        return [(x + a * half, y + b * half) for a, b in points]

    return np.asarray(texture_mask(texture, (IMAGE_SIZE, IMAGE_SIZE), place)) > 0
