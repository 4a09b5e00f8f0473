"""Training pictures of a folder, with masks and captions beside them: looked at before the work, read at its size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ..core.files.picture_folder import PictureFolder


NAMED = 8
"""Files that are named in a line; of the others their number is said."""


def training_files(folder: Path) -> PictureFolder:
    """Pictures of a folder and what goes with them; whatever else is in it is named.

    Raises NotADirectoryError where there is no such folder, FileNotFoundError where no picture is in it.
    """

    from ..core.files.picture_folder import read_folder
    from ..core.files.side_files import ENDINGS

    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder: name the one that holds the training pictures")
    found = read_folder(folder)
    if not found.pictures:
        others = f"; there are {listed(found.left_out)}" if found.left_out else ""
        raise FileNotFoundError(f"no pictures ({', '.join(ENDINGS)}) in {folder}{others}")
    if found.left_out:
        print(f"left out: {listed(f'{name} ({why})' for name, why in found.left_out.items())}")
    return found


@dataclass(frozen=True)
class Usable:
    """Files that can be used: pictures, and for each its mask where it has one; and why others were left out."""

    files: Sequence[Path]
    masks: Sequence[Path | None]
    skipped: Sequence[str]

    def read(self, side: int) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
        """Pictures (h, w, 3) and masks (h, w) with the short side at `side` pixels, one after another: a camera's own
        size is never held for more than one. Without any mask None; of pictures without one all counts."""

        import torch

        from ..core.files import pictures

        images = [_shrunk(pictures.read_picture(file), side) for file in self.files]
        if not any(self.masks):
            return images, None
        shown = [
            torch.ones(image.shape[:2])
            if file is None
            else _shrunk(pictures.read_mask_levels(file)[..., None], side)[..., 0]
            for image, file in zip(images, self.masks, strict=True)
        ]
        return images, shown


def usable_pictures(found: PictureFolder, masks: Path | None = None, skip_broken: bool = False) -> Usable:
    """The pictures that can be used, with masks of the folder `masks`, or those that lie beside them.

    Raises BrokenPictureError that names the first file which is broken or too small, or whose mask is missing, broken,
    empty or of another size; with `skip_broken` only where nothing is left.
    """

    from ..core.files import pictures

    used, shown, skipped = [], [], []
    for file in found:
        try:
            mask = found.masks.get(file) if masks is None else pictures.mask_of(file, masks)
            _require_usable(file, mask)
        except pictures.BrokenPictureError as error:
            if not skip_broken:
                raise pictures.BrokenPictureError(f"{error}; --skip-broken trains without it") from error
            print(f"left out: {error}")
            skipped.append(str(error))
            continue
        used.append(file)
        shown.append(mask)
    if not used:
        raise pictures.BrokenPictureError(f"no picture can be used: {'; '.join(skipped)}")
    _say_masks(found.masks, masks, shown)
    return Usable(used, shown, skipped)


def captions_beside(found: PictureFolder, files: Iterable[Path], class_word: str) -> dict[Path, tuple[str, ...]]:
    """The prompts in the captions of `files`; captions that hold none are named."""

    from ..core.prompts.picture_captions import read_captions

    prompts, unused = {}, []
    for file in files:
        if file not in found.captions:
            continue
        try:
            prompts[file] = read_captions(found.captions[file], class_word)
        except ValueError as error:
            unused.append(f"{found.captions[file].name} ({error})")
    if unused:
        print(f"left out: {listed(unused)}")
    return prompts


def listed(names: Iterable[str]) -> str:
    """The first few of `names`, and how many more there are."""
    every = list(names)
    return ", ".join(every[:NAMED]) + (f" and {len(every) - NAMED} more" if len(every) > NAMED else "")


def _require_usable(file: Path, mask: Path | None) -> None:
    from ..core.files import pictures
    from ..core.files.shrinking import require_enough

    height, width = pictures.read_picture(file).shape[:2]
    try:
        require_enough(height, width, f"the picture {file.name}")
    except ValueError as error:
        raise pictures.BrokenPictureError(str(error)) from error
    if mask is None:
        return
    tall, wide = pictures.read_mask_levels(mask).shape
    if (tall, wide) != (height, width):
        raise pictures.BrokenPictureError(
            f"the mask {mask.name} is {wide} x {tall} pixels and its picture {file.name} {width} x {height}: resize one"
        )


def _shrunk(values: np.ndarray, side: int) -> torch.Tensor:
    import torch

    from ..core.files.shrinking import resized

    return resized(torch.from_numpy(values), side).movedim(0, -1)


def _say_masks(beside: Mapping[Path, Path], folder: Path | None, shown: Sequence[Path | None]) -> None:
    if beside and folder is not None:
        print(f"left out: {listed(file.name for file in beside.values())}, since --masks names others")
    elif any(shown):
        print(f"masks beside the pictures: {sum(one is not None for one in shown)} of {len(shown)}; white counts")
