"""An exact check of a spotted figure, read from pixels: are the same spots there, and in the same colour?

No network judges here. A pixel belongs to a spot where it is nearer to the spots' colour than to the figure's other
colours; a spot is a connected patch of such pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .drawing import DARK, FILLS, nearest
from .scenes import COLOURS

SMALLEST = 30
"""Pixels of a spot that counts: a whole one has about 130, less is a sliver cut off by the figure's outline."""


def patches(where: np.ndarray) -> np.ndarray:
    """Connected patches (over edges, not corners) of a boolean mask (H, W): labels 1, 2, ... and 0 elsewhere."""
    labels = np.zeros(where.shape, int)
    count = 0
    for y, x in zip(*np.nonzero(where), strict=True):
        if labels[y, x]:
            continue
        count += 1
        labels[y, x] = count
        waiting = [(y, x)]
        while waiting:
            a, b = waiting.pop()
            for c, d in ((a - 1, b), (a + 1, b), (a, b - 1), (a, b + 1)):
                inside = 0 <= c < where.shape[0] and 0 <= d < where.shape[1]
                if inside and where[c, d] and not labels[c, d]:
                    labels[c, d] = count
                    waiting.append((c, d))
    return labels


def spot_labels(image: np.ndarray, figure: np.ndarray, colour: str, body: str) -> np.ndarray:
    """Spots of `colour` on a figure of colour `body`: labels as of `patches`, slivers included.

    `image` is uint8 (H, W, 3), `figure` a boolean mask (H, W). Raises KeyError for a colour that does not exist.
    """
    return patches((nearest(image, [FILLS[colour], FILLS[body], DARK, FILLS["glint"]]) == 0) & figure)


@dataclass(frozen=True)
class SpotCount:
    """Spots of an original found again in a copy.

    `number` is how many the original has, `found` how many of them the copy has exactly once, `added` how many of the
    copy's lie on none of the original's. `named` is how many of the original's have the right colour name in the copy,
    `worst` the greatest distance between a spot's mean colours in the two pictures (0 to 441).
    """

    number: int
    found: int
    added: int
    named: int
    worst: float

    @property
    def kept(self) -> bool:
        """Number and colour are both as they were."""
        return self.found == self.named == self.number and not self.added


def colour_name(rgb: np.ndarray) -> str:
    """The nearest of the world's colours (`scenes.COLOURS`)."""
    return min(COLOURS, key=lambda name: float(np.square(rgb - np.array(COLOURS[name])).sum()))


def compare_spots(original: np.ndarray, copy: np.ndarray, figure: np.ndarray, colour: str, body: str) -> SpotCount:
    """Count the spots of `original` (uint8 (H, W, 3)) again in `copy`, within `figure` (boolean (H, W))."""
    true, seen = (spot_labels(image, figure, colour, body) for image in (original, copy))
    spots = [true == i for i in range(1, true.max() + 1)]
    again = [seen == i for i in range(1, seen.max() + 1)]
    counted = [spot for spot in spots if spot.sum() >= SMALLEST and colour_name(original[spot].mean(0)) == colour]
    # A spot is found where one patch covers half of it and touches no other spot: merged spots are not found.
    owners = [[spot for spot in counted if (spot & patch).any()] for patch in again]
    found = 0
    for spot in counted:
        covering = [i for i, patch in enumerate(again) if (patch & spot).sum() * 2 >= spot.sum()]
        found += len(covering) == 1 and len(owners[covering[0]]) == 1
    means = [(original[spot].mean(0), copy[spot].mean(0)) for spot in counted]
    return SpotCount(
        number=len(counted),
        found=found,
        added=sum(not (patch & (true > 0)).any() for patch in again if patch.sum() >= SMALLEST),
        named=sum(colour_name(now) == colour for _, now in means),
        worst=max((float(np.linalg.norm(was - now)) for was, now in means), default=0.0),
    )
