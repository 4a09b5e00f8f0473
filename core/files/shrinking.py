"""Pictures brought to the size of a training one by one and colour by colour, so that memory follows that size and not
the camera's."""

from __future__ import annotations

import torch
import torch.nn.functional as F

SMALLEST = 16
"""Pixels a side: with fewer there is nothing to recognise."""
LONGEST = 8
"""How many times its short side a picture is looked at along its long one. No photograph is so long, and a strip of
8 x 20000 pixels would become gigabytes."""


def require_enough(height: int, width: int, what: str) -> None:
    """Raises ValueError that calls the picture `what` where its short side has fewer than `SMALLEST` pixels."""
    if min(height, width) < SMALLEST:
        raise ValueError(f"{what} of {width} x {height} pixels shows nothing; it needs {SMALLEST} a side at least")


def resized_shape(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width with the short side at `side` pixels."""
    scale = side / min(height, width)
    return max(side, round(height * scale)), max(side, round(width * scale))


def resized(picture: torch.Tensor, side: int, transparency: torch.Tensor | None = None) -> torch.Tensor:
    """(H, W, C) in [0, 1], or bytes where 255 is 1, as (C, h, w) float32 on the CPU with its short side at `side`.

    Of a picture longer than `LONGEST` times its short side the middle is taken first. Where `transparency` (H, W) is 1
    the picture is white. Bilinear with antialiasing; every colour by itself, which gives the same bits as all together
    for a third of the memory.
    """
    picture = middle_stretch(picture.detach())
    clear = None if transparency is None else unit_range(middle_stretch(transparency.detach()))
    shape = resized_shape(*picture.shape[:2], side)
    return torch.stack([_plane(picture[..., colour], clear, shape) for colour in range(picture.shape[-1])])


def unit_range(values: torch.Tensor) -> torch.Tensor:
    """Values in [0, 1] as float32 on the CPU; of bytes 255 is 1."""
    there = values.to("cpu", torch.float32)
    return there.div_(255) if values.dtype == torch.uint8 else there  # which was copied just now


def middle_stretch(picture: torch.Tensor) -> torch.Tensor:
    """The middle of (H, W, ...), `LONGEST` squares long at most."""
    most = LONGEST * min(picture.shape[:2])
    for axis in (0, 1):
        if picture.shape[axis] > most:
            picture = picture.narrow(axis, (picture.shape[axis] - most) // 2, most)
    return picture


def _plane(values: torch.Tensor, clear: torch.Tensor | None, shape: tuple[int, int]) -> torch.Tensor:
    plane = unit_range(values)
    if clear is not None:
        plane = plane * (1 - clear) + clear
    if tuple(plane.shape) == shape:
        return plane
    return F.interpolate(plane[None, None], size=shape, mode="bilinear", antialias=True, align_corners=False)[0, 0]
