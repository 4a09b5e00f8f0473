"""Where results go: refused before the work begins, and a picture that was there stays until the new one is whole."""

from __future__ import annotations

import tempfile
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


def require_folder(folder: Path, option: str = "--out") -> None:
    """Makes the folder. Raises OSError that names the `option` where no file can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(f"nothing can be written to {option} {folder}: {error.strerror}") from error


def require_file(file: Path, option: str = "--out") -> None:
    """Makes the folder of `file`. Raises OSError that names the `option` where it cannot be written."""
    if file.is_dir():
        raise IsADirectoryError(f"{option} {file} is a folder; name a file in it")
    require_folder(file.parent, option)


def write_picture(picture: Image, file: Path) -> Path:
    """The picture as PNG, whole or not at all. Raises OSError."""
    from ..core.files.atomic import atomic_write_verified

    data = BytesIO()
    picture.save(data, format="PNG")
    return atomic_write_verified(file, data.getvalue(), if_exists="replace")
