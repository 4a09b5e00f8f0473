"""Pictures and masks read from files: turned as the camera says, transparency settled, broken ones named."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps

from ..maths.masks import shows_something
from .depths import in_bytes, written_as
from .side_files import MASKS, is_picture, without_side_pictures


class BrokenPictureError(ValueError):
    """A picture or mask that cannot be used. The message names the file and what is wrong with it."""


def picture_files(folder: Path) -> list[Path]:
    """The pictures directly in `folder`, in the order of their names, without masks that lie beside them; none where
    there is no such folder."""
    return sorted(without_side_pictures(file for file in folder.glob("*") if is_picture(file)))


def read_picture(file: Path | BinaryIO, name: str | None = None) -> np.ndarray:
    """uint8 (H, W, 3), turned as the camera says; transparency on white. Raises BrokenPictureError that calls the file
    `name`, as has to be said of one that is open."""
    picture = _opaque(_opened(file, name), "white")
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def read_mask(file: Path) -> np.ndarray:
    """float32 (H, W) in [0, 1], white is the subject and transparency is not. Raises BrokenPictureError, also where no
    pixel is."""
    return read_mask_levels(file).astype(np.float32) / 255


def read_mask_levels(file: Path) -> np.ndarray:
    """`read_mask` as uint8 (H, W), 255 where that is 1."""
    mask = np.array(_opaque(_opened(file), "black").convert("L"))
    if not shows_something(mask / 255):
        raise BrokenPictureError(f"the mask {_place(file)} is empty: it says that the subject is nowhere")
    return mask


def read_as_tensor(file: Path | BinaryIO, name: str | None = None) -> torch.Tensor:
    """`read_picture` as float32 (H, W, 3) in [0, 1], as training takes it."""
    return torch.from_numpy(read_picture(file, name).astype(np.float32) / 255)


def mask_of(picture: Path, folder: Path) -> Path:
    """The mask in `folder` that is named like `picture`, or like a mask beside it, whatever its ending. Raises
    BrokenPictureError."""
    names = {picture.stem, *(picture.stem + ending for ending in MASKS)}
    found = [file for file in sorted(folder.glob("*")) if is_picture(file) and file.stem in names]
    # Where masks lie beside their pictures, the picture of this name is no mask.
    found = [file for file in found if not (file.exists() and picture.exists() and file.samefile(picture))]
    if not found:
        raise BrokenPictureError(f"no mask {picture.stem}.png in {'/'.join(folder.parts[-2:])}")
    return found[0]


def _opened(file: Path | BinaryIO, name: str | None = None) -> Image.Image:
    try:
        with Image.open(file) as picture:
            written = written_as(picture)
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)  # a copy of a photograph is forty megabytes
            return in_bytes(picture, written)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        what = "no picture" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise BrokenPictureError(f"{name or _place(file)} cannot be read: {what}") from error


def _opaque(picture: Image.Image, background: str) -> Image.Image:
    """What is transparent shows `background`."""
    if picture.mode not in ("RGBA", "LA", "PA") and "transparency" not in picture.info:
        return picture
    return Image.alpha_composite(Image.new("RGBA", picture.size, background), picture.convert("RGBA"))


def _place(file: Path) -> str:
    """The file with the two folders that tell subject and prompt."""
    return "/".join(file.parts[-3:])
