"""Pictures and masks as they enter an evaluation: bytes from files or from a graph, and their foregrounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from ...maths.evaluation import foreground
from .preprocessing import with_short_side

REFERENCE_SIDE = 512
"""References are resized to this short side before the encoder's own preprocessing (METHODS.md 2.7)."""


def masked(picture: np.ndarray, mask: np.ndarray, fill: float) -> np.ndarray:
    """uint8 (H, W, 3): `picture` in its mask (H, W) and the grey `fill`, 0 .. 1, elsewhere.

    Raises ValueError where the sizes differ.
    """
    return foreground(picture.astype(np.float32), mask, 255 * fill).round().astype(np.uint8)


def as_reference(picture: np.ndarray) -> np.ndarray:
    """A reference picture with a short side of `REFERENCE_SIDE` pixels."""
    if min(picture.shape[:2]) == REFERENCE_SIDE:
        return picture
    return np.asarray(with_short_side(Image.fromarray(picture), REFERENCE_SIDE))


def as_bytes(images: torch.Tensor | Sequence[torch.Tensor]) -> list[np.ndarray]:
    """uint8 (H, W, 3) each, from pictures (H, W, 3) in [0, 1]. Raises ValueError for another shape or no picture."""
    pictures = [(image.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).numpy() for image in images]
    for number, picture in enumerate(pictures, start=1):
        if picture.ndim != 3 or picture.shape[-1] != 3 or 0 in picture.shape:
            raise ValueError(f"picture {number} must be (height, width, 3), got {picture.shape}")
    if not pictures:
        raise ValueError("there is no picture to evaluate")
    return pictures
