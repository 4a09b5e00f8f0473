"""The eight backgrounds: smooth, full-frame, few colours, told apart at a glance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from .drawing import SUPERSAMPLE
from .scenes import IMAGE_SIZE

Colour = tuple[int, int, int]
Grid = tuple[np.ndarray, np.ndarray]


def _mix(weight: np.ndarray, low: Colour, high: Colour) -> np.ndarray:
    """Colours (H, W, 3) between `low` (weight 0) and `high` (weight 1)."""
    weight = np.clip(weight, 0.0, 1.0)[..., None]
    return np.asarray(low) * (1 - weight) + np.asarray(high) * weight


def grass(xy: Grid, rng: np.random.Generator) -> np.ndarray:
    x, y = xy
    phase = rng.uniform(0, 2 * np.pi, 2)
    blades = 0.5 + 0.5 * np.sin(x * 0.5 + 2 * np.sin(y * 0.08 + phase[0]) + phase[1])
    return _mix(0.75 * blades, (116, 178, 84), (150, 204, 104))


def sand(xy: Grid, rng: np.random.Generator) -> np.ndarray:
    x, y = xy
    phase = rng.uniform(0, 2 * np.pi, 2)
    dunes = 0.5 + 0.5 * np.sin(y * 0.16 + 1.2 * np.sin(x * 0.045 + phase[0]) + phase[1])
    return _mix(dunes, (222, 192, 132), (240, 218, 164))


def snow(xy: Grid, rng: np.random.Generator) -> np.ndarray:
    x, y = xy
    phase = rng.uniform(0, 2 * np.pi, 2)
    drifts = 0.5 + 0.5 * np.sin(y * 0.07 + np.sin(x * 0.05 + phase[0]) + phase[1])
    return _mix(drifts, (206, 224, 242), (244, 249, 255))


def water(xy: Grid, rng: np.random.Generator) -> np.ndarray:
    x, y = xy
    phase = rng.uniform(0, 2 * np.pi, 2)
    waves = np.sin(y * 0.42 + 1.3 * np.sin(x * 0.16 + phase[0]) + phase[1])
    return _mix(0.5 + 0.5 * waves, (48, 138, 178), (112, 196, 218))


def night(xy: Grid, rng: np.random.Generator) -> np.ndarray:
    x, y = xy
    picture = _mix(y / IMAGE_SIZE, (12, 12, 44), (44, 40, 92))
    for cx, cy in rng.uniform(4, IMAGE_SIZE - 4, (14, 2)):
        picture[(x - cx) ** 2 + (y - cy) ** 2 < 2.4] = (240, 240, 215)
    return picture


def bricks(xy: Grid, rng: np.random.Generator) -> np.ndarray:
    x, y = xy[0] + rng.uniform(0, 32), xy[1] + rng.uniform(0, 16)
    row = np.floor(y / 16)
    mortar = (y % 16 < 2.2) | ((x + 16 * (row % 2)) % 32 < 2.2)
    return _mix(mortar.astype(float), (156, 82, 66), (208, 188, 172))


def wood(xy: Grid, rng: np.random.Generator) -> np.ndarray:
    x, y = xy
    shift = rng.uniform(0, 24)
    grain = 0.5 + 0.5 * np.sin((x + shift) * 0.26 + 0.8 * np.sin(y * 0.05 + shift))
    picture = _mix(grain, (134, 92, 54), (156, 112, 70))
    picture[(x + shift) % 24 < 2.0] = (74, 48, 28)
    return picture


def lava(xy: Grid, rng: np.random.Generator) -> np.ndarray:
    x, y = xy
    a, b, c = rng.uniform(0, 2 * np.pi, 3)
    flow = np.sin(x * 0.06 + a) + np.sin(y * 0.07 + b) + np.sin((x + y) * 0.04 + c)
    return _mix(np.exp(-((flow / 0.5) ** 2)), (64, 20, 24), (236, 78, 18))


PAINTERS: dict[str, Callable[[Grid, np.random.Generator], np.ndarray]] = {
    f.__name__: f for f in (grass, sand, snow, water, night, bricks, wood, lava)
}


def paint(background: str, rng: np.random.Generator) -> Image.Image:
    """The empty background, `SUPERSAMPLE` times the picture's size. Raises KeyError for an unknown name."""
    y, x = np.meshgrid(np.arange(IMAGE_SIZE) + 0.5, np.arange(IMAGE_SIZE) + 0.5, indexing="ij")
    picture = PAINTERS[background]((x, y), rng) * rng.uniform(0.96, 1.03)
    small = Image.fromarray(np.clip(picture, 0, 255).round().astype(np.uint8))
    return small.resize((IMAGE_SIZE * SUPERSAMPLE,) * 2, Image.Resampling.BILINEAR)
