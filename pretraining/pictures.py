"""Training pictures, rendered once in parallel processes and kept as memory-mapped arrays."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from ..core.world.concepts import RESERVED
from ..core.world.render import render
from ..core.world.scenes import IMAGE_SIZE, Scene, sample_scene

CHUNK = 500


def scene(split: str, index: int) -> Scene:
    """Scene number `index` of the split "train" or "test"; the two never share a seed."""
    return sample_scene(np.random.default_rng([{"train": 1, "test": 2}[split], index]), RESERVED)


def _chunk(split: str, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    images = np.empty((stop - start, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    masks = np.empty((stop - start, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for i in range(start, stop):
        images[i - start], drawn = render(scene(split, i))
        masks[i - start] = drawn.subject + 2 * drawn.second
    return images, masks


def pictures(folder: Path, split: str, n: int, workers: int = 2) -> tuple[list[Scene], np.ndarray, np.ndarray]:
    """Scenes, images (n, 128, 128, 3) uint8 and masks (n, 128, 128): 1 the subject, 2 the second object."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes, images, masks = (folder / f"{split}-{n}.{k}" for k in ("scenes.pkl", "images.npy", "masks.npy"))
    if not scenes.exists():
        starts = range(0, n, CHUNK)
        kept_images = np.lib.format.open_memmap(images, "w+", np.uint8, (n, IMAGE_SIZE, IMAGE_SIZE, 3))
        kept_masks = np.lib.format.open_memmap(masks, "w+", np.uint8, (n, IMAGE_SIZE, IMAGE_SIZE))
        with ProcessPoolExecutor(workers) as pool:
            jobs = [pool.submit(_chunk, split, s, min(s + CHUNK, n)) for s in starts]
            for start, job in zip(starts, jobs, strict=True):
                stop = min(start + CHUNK, n)
                kept_images[start:stop], kept_masks[start:stop] = job.result()
        scenes.write_bytes(pickle.dumps([scene(split, i) for i in range(n)]))
    return pickle.loads(scenes.read_bytes()), np.load(images, mmap_mode="r"), np.load(masks, mmap_mode="r")
