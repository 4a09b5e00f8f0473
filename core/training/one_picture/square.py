"""One picture of any size and kind, as the square that a tuning-encoder looks at."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange

from ...files.shrinking import require_enough


def square_picture(picture: torch.Tensor, side: int) -> torch.Tensor:
    """(H, W, 1, 3 or 4) with values in [0, 1] to (3, side, side) float32 on the CPU: the middle square, resized.

    Grey counts for all colours, what is transparent lies on white. Raises ValueError that says what is wrong with it.
    """
    if picture.ndim == 4 and len(picture) == 1:
        picture = picture[0]
    if picture.ndim == 4:
        raise ValueError(f"the tuning-encoder looks at one picture, not at {len(picture)}; choose one of them")
    if picture.ndim != 3 or picture.shape[-1] not in (1, 3, 4):
        raise ValueError(f"a picture is (height, width, 1, 3 or 4 channels), got {tuple(picture.shape)}")
    height, width, channels = picture.shape
    require_enough(height, width, "a picture")
    # Cut first: of a very large or long picture only the square is ever converted.
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    cut = picture[top : top + short, left : left + short].detach().to("cpu", torch.float32)
    square = rearrange(cut, "h w channels -> channels h w")
    low, high = float(square.min()), float(square.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(f"a picture has values in 0 .. 1, got {low:.3g} .. {high:.3g}; scale them")
    if channels == 4:
        square = square[:3] * square[3:] + (1 - square[3:])
    if short != side:
        size = (side, side)
        square = F.interpolate(square[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]
    # Copied: neither a view that keeps the caller's picture alive nor an inference tensor.
    return square.clamp(0, 1).expand(3, -1, -1).clone()
