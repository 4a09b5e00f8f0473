"""Pictures of other depths than eight bits as eight, with the one value that a PNG may call transparent.

Pillow widens or cuts the pixels of such pictures and leaves that value as the file has it, so that it meets no pixel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

GREY_STEPS = {"L;2": 85, "L;4": 17}
"""How far apart neighbouring greys of two and of four bits lie in eight."""


def written_as(picture: Image.Image) -> str:
    """How the file has its pixels, as Pillow calls it, of a picture that is not loaded yet."""
    args = picture.tile[0][3] if picture.tile else ""
    return str(args if isinstance(args, str) else "")


def in_bytes(picture: Image.Image, written: str) -> Image.Image:
    """A loaded picture in eight bits, its transparent value in the same."""
    value = picture.info.get("transparency")
    if picture.mode.startswith("I"):
        return _from_sixteen(picture, value)
    if value is not None and written in GREY_STEPS:
        picture.info["transparency"] = value * GREY_STEPS[written]
    if value is not None and written == "RGB;16B":
        picture.info["transparency"] = tuple(colour >> 8 for colour in value)  # as Pillow cuts the pixels
    return picture


def _from_sixteen(picture: Image.Image, value: Any) -> Image.Image:
    """Grey of 16 bits a pixel; Pillow's own conversion would cut everything above 255 off."""
    levels = np.asarray(picture)
    grey = Image.fromarray((levels.astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    if value is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(levels == value, 0, 255).astype(np.uint8))))
