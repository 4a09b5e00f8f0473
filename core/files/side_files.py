"""Which files of a folder are pictures, and which lie beside pictures and go with them: masks and captions, as the
programs that make or train on such folders name them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath
from typing import TypeVar

ENDINGS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".webp", ".bmp")
"""Of pictures, as they are read everywhere."""
UNREAD = (".heic", ".heif", ".avif", ".jxl", ".gif", ".tif", ".tiff", ".psd", ".svg", ".dng", ".cr2", ".nef", ".arw")
"""Pictures to people, who would miss them."""
MASKS = ("-masklabel", "-mask", "_mask", ".mask")
"""What follows a picture's name in its mask's; the first is OneTrainer's."""
CONDITIONS = ("-condlabel",)
"""What follows it in the name of a picture that a control network sees (OneTrainer)."""
CAPTIONS = (".txt", ".caption")
"""Endings of captions, beside the picture of that name."""

AnyPath = TypeVar("AnyPath", bound=PurePath)


def is_picture(file: PurePath) -> bool:
    """By its name, and not hidden: a Mac puts a ._name.jpg beside name.jpg that is none."""
    return file.suffix.lower() in ENDINGS and not file.name.startswith(".")


def picture_of_mask(file: PurePath, endings: Iterable[str] = MASKS) -> str | None:
    """The name, without its ending, of the picture whose mask would be called like this; None where it is no mask's."""
    return next((file.stem[: -len(end)] for end in endings if file.stem.lower().endswith(end)), None)


def without_side_pictures(files: Iterable[AnyPath]) -> list[AnyPath]:
    """Pictures without the masks and conditions of others among them: `cup-mask.png` is one where there is a `cup.jpg`,
    and the picture of a mask where there is none."""
    files = list(files)
    there = {(file.parent, file.stem) for file in files}
    return [file for file in files if (file.parent, picture_of_mask(file, (*MASKS, *CONDITIONS))) not in there]
