"""From a picture's bytes to what a vision transformer reads, as its `preprocessor_config.json` says.

This is the Pillow path of transformers' image processors, which the published figures were computed with: resizing on
bytes, then a crop, then normalisation. It needs no torchvision and is the same in every version of transformers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from PIL import Image

FILE = "preprocessor_config.json"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Preprocessing:
    """How pictures are made ready. Heights and widths in pixels.

    `short_side` keeps the shape of the picture, otherwise `size` (H, W) squeezes it; `crop` (h, w) is cut out of the
    middle. `scale` multiplies the bytes before `mean` is taken off and `std` divides.
    """

    short_side: int | None = None
    size: tuple[int, int] | None = None
    resample: int = Image.Resampling.BICUBIC
    crop: tuple[int, int] | None = None
    scale: float | None = 1 / 255
    mean: tuple[float, ...] | None = CLIP_MEAN
    std: tuple[float, ...] | None = CLIP_STD

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) to float32 (3, h, w)."""
        image = Image.fromarray(picture)
        if self.short_side is not None:
            image = with_short_side(image, self.short_side, self.resample)
        elif self.size is not None:
            image = image.resize(self.size[::-1], self.resample)
        values = np.asarray(image)
        if self.crop is not None:
            values = centre_crop(values, self.crop)
        values = values.astype(np.float32)
        if self.scale is not None:
            values = values * np.float32(self.scale)
        if self.mean is not None and self.std is not None:
            values = (values - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(rearrange(values, "h w c -> c h w"))


def read_preprocessing(folder: Path) -> Preprocessing:
    """What `preprocessor_config.json` in a model's folder asks for, in the older and the newer spelling of its keys.

    Raises FileNotFoundError where there is none and ValueError where it holds no settings or ones that are not known.
    """
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder.name} has no {FILE}, which says how pictures are resized and normalised")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        return _from_settings(settings)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{FILE} of {folder.name} cannot be used: {error!r}") from error


def with_short_side(image: Image.Image, side: int, resample: int = Image.Resampling.BICUBIC) -> Image.Image:
    """`image` resized so that its short side is `side`; the long side is rounded down, as transformers does."""
    short, long = sorted(image.size)
    longer = int(side * long / short)
    return image.resize((side, longer) if image.width <= image.height else (longer, side), resample)


def centre_crop(values: np.ndarray, crop: tuple[int, int]) -> np.ndarray:
    """The middle (h, w) of values (H, W, C); what lies outside a smaller picture is 0, as in transformers."""
    missing = [max(0, wanted - have) for wanted, have in zip(crop, values.shape, strict=False)]
    if any(missing):
        before = [(pixels + 1) // 2 for pixels in missing]
        values = np.pad(values, [(b, m - b) for b, m in zip(before, missing, strict=True)] + [(0, 0)])
    top, left = ((have - wanted) // 2 for wanted, have in zip(crop, values.shape, strict=False))
    return values[top : top + crop[0], left : left + crop[1]]


def _from_settings(settings: dict[str, Any]) -> Preprocessing:
    cropped, normalised = settings.get("do_center_crop", False), settings.get("do_normalize", True)
    short_side, size = _size(settings.get("size", 224), square=not cropped)
    if not settings.get("do_resize", True):
        short_side, size = None, None
    _, crop = _size(settings.get("crop_size", 224), square=True) if cropped else (None, None)
    return Preprocessing(
        short_side=short_side,
        size=size,
        resample=int(settings.get("resample", Image.Resampling.BILINEAR)),
        crop=crop,
        scale=float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else None,
        mean=tuple(settings["image_mean"]) if normalised else None,
        std=tuple(settings["image_std"]) if normalised else None,
    )


def _size(value: int | dict[str, int], square: bool) -> tuple[int | None, tuple[int, int] | None]:
    """A short side, or a height and width. A bare number means a square, except where a crop follows (CLIP)."""
    if isinstance(value, int):
        return (None, (value, value)) if square else (value, None)
    if "shortest_edge" in value:
        return int(value["shortest_edge"]), None
    return None, (int(value["height"]), int(value["width"]))
