"""Pictures and masks read from files: turned as the camera says, transparency settled, broken ones named."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps

from ..maths.masks import shows_something

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class BrokenPictureError(ValueError):
    """A picture or mask that cannot be used. The message names the file and what is wrong with it."""


def picture_files(folder: Path) -> list[Path]:
    """The pictures directly in `folder`, in the order of their names; none where there is no such folder."""
    return sorted(file for file in folder.glob("*") if file.suffix.lower() in ENDINGS and not file.name.startswith("."))


def read_picture(file: Path | BinaryIO, name: str | None = None) -> np.ndarray:
    """uint8 (H, W, 3), turned as the camera says; transparency on white. Raises BrokenPictureError that calls the file
    `name`, as has to be said of one that is open."""
    return np.asarray(_opaque(_opened(file, name), "white").convert("RGB"))


def read_mask(file: Path) -> np.ndarray:
    """float32 (H, W) in [0, 1], white is the subject and transparency is not. Raises BrokenPictureError, also where no
    pixel is."""
    mask = np.asarray(_opaque(_opened(file), "black").convert("L"), dtype=np.float32) / 255
    if not shows_something(mask):
        raise BrokenPictureError(f"the mask {_place(file)} is empty: it says that the subject is nowhere")
    return mask


def read_as_tensor(file: Path | BinaryIO, name: str | None = None) -> torch.Tensor:
    """`read_picture` as float32 (H, W, 3) in [0, 1], as training takes it."""
    return torch.from_numpy(read_picture(file, name).astype(np.float32) / 255)


def read_mask_as_tensor(file: Path) -> torch.Tensor:
    """`read_mask` as float32 (H, W), as training takes it."""
    return torch.from_numpy(read_mask(file))


def mask_of(picture: Path, folder: Path) -> Path:
    """The mask in `folder` that is named like `picture`, whatever its ending. Raises BrokenPictureError."""
    found = [file for file in picture_files(folder) if file.stem == picture.stem]
    if not found:
        raise BrokenPictureError(f"no mask {picture.stem}.png in {'/'.join(folder.parts[-2:])}")
    return found[0]


def _opened(file: Path | BinaryIO, name: str | None = None) -> Image.Image:
    try:
        with Image.open(file) as picture:
            return _in_bytes(ImageOps.exif_transpose(picture))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        what = "no picture" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise BrokenPictureError(f"{name or _place(file)} cannot be read: {what}") from error


def _in_bytes(picture: Image.Image) -> Image.Image:
    """16 bits a pixel as 8; Pillow's own conversion would cut everything above 255 off."""
    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))


def _opaque(picture: Image.Image, background: str) -> Image.Image:
    """What is transparent shows `background`."""
    if picture.mode not in ("RGBA", "LA", "PA") and "transparency" not in picture.info:
        return picture
    return Image.alpha_composite(Image.new("RGBA", picture.size, background), picture.convert("RGBA"))


def _place(file: Path) -> str:
    """The file with the two folders that tell subject and prompt."""
    return "/".join(file.parts[-3:])
