"""Pictures of fine patterns: what a small autoencoder smears first (spots, stripes, hatching) is what its loss sees.

They are ordinary figures of the world, cut by patterns of any scale, angle and spacing. Held-out concepts and their
class-and-colour pairs never come up.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from ..core.world.backgrounds import paint
from ..core.world.concepts import RESERVED
from ..core.world.drawing import FIGURES, SUPERSAMPLE, Canvas
from ..core.world.render import apply_style
from ..core.world.scenes import BACKGROUNDS, COLOURS, IMAGE_SIZE, SHAPES

PATTERNS = ("spots", "stripes", "checks", "rings")
SIDE = IMAGE_SIZE * SUPERSAMPLE


def spots(u: np.ndarray, v: np.ndarray, share: float) -> np.ndarray:
    """Discs on a staggered grid of period 1; `share` sets their radius, 0.2 to 0.42."""
    row = np.floor(v)
    x = (u + 0.5 * (row % 2)) % 1 - 0.5
    return x**2 + (v % 1 - 0.5) ** 2 < (0.2 + 0.22 * share) ** 2


def stripes(u: np.ndarray, v: np.ndarray, share: float) -> np.ndarray:
    """Bands across `v`; `share` sets how much of each period is covered, 0.2 to 0.6."""
    return v % 1 < 0.2 + 0.4 * share


def checks(u: np.ndarray, v: np.ndarray, share: float) -> np.ndarray:
    """A chessboard."""
    return (np.floor(2 * u) + np.floor(2 * v)) % 2 < 1


def rings(u: np.ndarray, v: np.ndarray, share: float) -> np.ndarray:
    """Circles about the origin, as wide as `stripes`."""
    return np.hypot(u, v) % 1 < 0.2 + 0.4 * share


DRAWN = {f.__name__: f for f in (spots, stripes, checks, rings)}


def pattern_mask(rng: np.random.Generator) -> Image.Image:
    """A random pattern over the whole canvas: period 6 to 28 pixels, any angle (level half the time)."""
    draw = DRAWN[PATTERNS[int(rng.choice(4, p=[0.5, 0.3, 0.12, 0.08]))]]
    period = float(np.exp(rng.uniform(np.log(6.0), np.log(28.0)))) * SUPERSAMPLE
    angle = 0.0 if rng.random() < 0.5 else float(rng.uniform(0, np.pi))
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) / period
    x, y = x - rng.uniform(0, SIDE / period), y - rng.uniform(0, SIDE / period)
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    return Image.fromarray(draw(u, v * rng.uniform(0.8, 1.25), rng.random()).astype(np.uint8) * 255)


def look(rng: np.random.Generator) -> tuple[str, str, str]:
    """A shape and two different colours that no held-out concept has together."""
    while True:
        shape = SHAPES[int(rng.integers(len(SHAPES)))]
        one, two = (list(COLOURS)[int(i)] for i in rng.choice(len(COLOURS), 2, replace=False))
        if (shape, one, two) not in RESERVED and (shape, two, one) not in RESERVED:
            return shape, one, two


def pattern_picture(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (128, 128, 3) with one to three patterned figures, and the mask (128, 128) of all of them."""
    canvas = Canvas(paint(BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))], rng))
    mask = np.zeros((IMAGE_SIZE, IMAGE_SIZE), bool)
    for _ in range(int(rng.integers(1, 4))):
        shape, one, two = look(rng)
        centre = tuple(rng.uniform(24, IMAGE_SIZE - 24, 2).tolist())
        mask |= canvas.figure(FIGURES[shape](), centre, rng.uniform(60, 120), one, pattern_mask(rng), two)
    style = "sketch" if rng.random() < 0.2 else "photo"
    return np.asarray(apply_style(canvas.image.reduce(SUPERSAMPLE), style)), mask


def _numbered(index: int) -> tuple[np.ndarray, np.ndarray]:
    return pattern_picture(np.random.default_rng([5, index]))


def patterns(folder: Path, n: int, workers: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 128, 128, 3) uint8 and masks (n, 128, 128), drawn once and kept as memory-mapped arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    images, masks = (folder / f"patterns-{n}.{kind}.npy" for kind in ("images", "masks"))
    if not masks.exists():
        fresh = images.with_suffix(".new")
        kept = np.lib.format.open_memmap(fresh, "w+", np.uint8, (n, IMAGE_SIZE, IMAGE_SIZE, 3))
        shown = np.empty((n, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
        with ProcessPoolExecutor(workers) as pool:
            for i, (image, mask) in enumerate(pool.map(_numbered, range(n), chunksize=100)):
                kept[i], shown[i] = image, mask
        kept.flush()
        fresh.replace(images)
        np.save(masks, shown)
    return np.load(images, mmap_mode="r"), np.load(masks, mmap_mode="r")
