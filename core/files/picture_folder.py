"""A folder of training pictures as people and other programs keep them: every file in it is used, or named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .side_files import CAPTIONS, CONDITIONS, UNREAD, is_picture, picture_of_mask, without_side_pictures

SYSTEM = ("thumbs.db", "desktop.ini")
"""What Windows puts into folders; nobody misses it."""


@dataclass(frozen=True)
class PictureFolder:
    """Pictures in the order of their names, over which it iterates; for some of them a mask and a caption file beside
    them; and of every other file but hidden ones, by its name, why it is left out."""

    pictures: tuple[Path, ...]
    masks: Mapping[Path, Path]
    captions: Mapping[Path, Path]
    left_out: Mapping[str, str]

    def __iter__(self) -> Iterator[Path]:
        return iter(self.pictures)


def read_folder(folder: Path) -> PictureFolder:
    """What is in `folder`. Raises OSError where that is no folder."""
    there = sorted(file for file in folder.iterdir() if not _is_unseen(file))
    files = [file for file in there if file.is_file()]
    pictures = tuple(without_side_pictures(file for file in files if is_picture(file)))
    named = {picture.stem: picture for picture in pictures} | {picture.name: picture for picture in pictures}
    masks, captions, left_out = {}, {}, {}
    for file in [file for file in there if file not in set(pictures)]:
        masked = named.get(picture_of_mask(file) or "") if is_picture(file) else None
        described = named.get(file.stem) if file.suffix.lower() in CAPTIONS and file.is_file() else None
        if masked is not None and masked not in masks:
            masks[masked] = file
        elif described is not None and described not in captions:
            captions[described] = file
        else:
            left_out[file.name] = _reason(file, masked or described)
    return PictureFolder(pictures, masks, captions, left_out)


def _reason(file: Path, beside: Path | None) -> str:
    if file.is_dir():
        return "a folder; only pictures directly in this one are read"
    if beside is not None:
        return f"{beside.name} has another such file"
    if file.suffix.lower() in UNREAD:
        return "of a kind that is not read: convert it to PNG or JPEG"
    if is_picture(file):
        kind = "condition" if picture_of_mask(file, CONDITIONS) is not None else "mask"
        return f"the {kind} of a picture"
    return "beside no picture of its name" if file.suffix.lower() in CAPTIONS else "no picture"


def _is_unseen(file: Path) -> bool:
    return file.name.startswith(".") or file.name.lower() in SYSTEM
