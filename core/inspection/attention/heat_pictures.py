"""Attention maps as pictures: colours, overlays, captions, masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange, repeat
from PIL import Image, ImageDraw, ImageFont

INFERNO = (
    (0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85), (227, 89, 51), (249, 140, 10),
    (249, 201, 50), (252, 255, 164),
)  # fmt: skip
"""Nine stops of a colour map that grows brighter evenly, so that it also reads in grey."""
VEIL = 0.35
"""How much of the overlay lies on places without attention, so that bright pictures do not outshine the map."""


def coloured(heat: torch.Tensor) -> torch.Tensor:
    """Heat (..., H, W) in [0, 1] as colours (..., H, W, 3) in [0, 1]."""
    stops = torch.tensor(INFERNO, dtype=torch.float32, device=heat.device) / 255
    place = heat.float().clamp(0, 1) * (len(INFERNO) - 1)
    lower = place.floor().long().clamp(max=len(INFERNO) - 2)
    rest = rearrange(place - lower, "... -> ... 1")
    return stops[lower] * (1 - rest) + stops[lower + 1] * rest


def overlaid(pictures: torch.Tensor, heat: torch.Tensor, strength: float) -> torch.Tensor:
    """`heat` (..., H, W) over grey `pictures` (..., H, W, 3): 0 shows the picture alone in its colours, 1 the map."""
    grey = pictures.mean(dim=-1, keepdim=True).expand_as(pictures)
    # The picture loses its own colours first: two sets of colours on each other cannot be told apart.
    ground = pictures + (grey - pictures) * min(1.0, 2 * strength)
    opacity = strength * (VEIL + (1 - VEIL) * heat) if strength < 1 else torch.ones_like(heat)
    opacity = rearrange(opacity, "... -> ... 1")
    return ground * (1 - opacity) + coloured(heat) * opacity


def captioned(picture: torch.Tensor, text: str) -> torch.Tensor:
    """`text` in the lower left corner of a picture (H, W, 3), light on dark."""
    image = Image.fromarray((picture.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
    size = max(10, round(0.07 * min(image.size)))
    font, draw = ImageFont.load_default(size), ImageDraw.Draw(image)
    while size > 6 and font.getlength(text) > image.width - size:
        size -= 1
        font = ImageFont.load_default(size)
    box = draw.textbbox((0, 0), text, font)
    height, pad = box[3] - box[1], size // 3
    corner = (0, image.height - height - 2 * pad)
    draw.rectangle((*corner, box[2] - box[0] + 2 * pad, image.height), (16, 16, 20))
    draw.text((pad - box[0], corner[1] + pad - box[1]), text, (250, 250, 250), font)
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 255)


def word_pictures(
    heat: torch.Tensor, words: Sequence[str], pictures: torch.Tensor | None, strength: float, captions: bool
) -> torch.Tensor:
    """One picture a word, picture by picture: `heat` (images, words, H, W) in [0, 1] -> (images * words, H, W, 3)."""
    heat = heat.cpu()
    if pictures is None:
        tiles = coloured(heat)
    else:
        each = repeat(pictures.cpu().float(), "images h w c -> images words h w c", words=heat.shape[1])
        tiles = overlaid(each, heat, strength)
    tiles = rearrange(tiles, "images words h w c -> (images words) h w c")
    if not captions:
        return tiles
    return torch.stack([captioned(tile, words[i % len(words)]) for i, tile in enumerate(tiles)])


def mask_of(heat: torch.Tensor, threshold: float) -> torch.Tensor:
    """Where any of several words looks, (images, words, H, W) in [0, 1] -> (images, H, W).

    `threshold` 0 keeps the soft map; above it is 1 where a map reaches the threshold and 0 elsewhere.
    """
    most = heat.amax(dim=1).cpu()
    return most if threshold <= 0 else (most >= threshold).float()
