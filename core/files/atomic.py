"""Write a file whole or not at all, and believe it only after reading it back."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path
from typing import Literal, get_args

IfExists = Literal["error", "replace", "number"]

# What os.link says on file systems without hard links (FAT, some network mounts).
NO_HARD_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EXDEV}


def atomic_write_verified(path: Path, data: bytes, *, if_exists: IfExists = "error") -> Path:
    """Write `data` to `path`, re-read it, compare it bit for bit, and return the path that was written.

    The bytes go to a temporary file in the same folder, are flushed to the disk and compared before the file gets its
    name, so at every moment `path` is absent, the old file, or the whole new one. `if_exists="number"` writes
    `name_2`, `name_3`, ... where the name is taken.

    Raises:
        FileExistsError: the name is taken and `if_exists` is "error".
        OSError: the disk failed or what was read back differs; nothing half-written is left.
    """
    if if_exists not in get_args(IfExists):
        raise ValueError(f"if_exists is one of {get_args(IfExists)}, not {if_exists!r}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".writing-{secrets.token_hex(8)}"
    try:
        _write_through(temporary, data)
        _compare(temporary, data)
        written = _publish(temporary, path, if_exists)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    _flush_folder(written.parent)
    _compare(written, data)
    return written


def _write_through(path: Path, data: bytes) -> None:
    # O_EXCL: never through a link that someone left there. 0o666: the umask decides, unlike with tempfile's 0o600.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _compare(path: Path, data: bytes) -> None:
    if path.read_bytes() != data:
        raise OSError(errno.EIO, "the file read back differs from what was written", str(path))


def _publish(temporary: Path, path: Path, if_exists: IfExists) -> Path:
    if if_exists == "replace":
        os.replace(temporary, path)
        return path
    candidate, number = path, 1
    while True:
        try:
            _rename_to_new(temporary, candidate)
            return candidate
        except FileExistsError:
            if if_exists == "error":
                raise FileExistsError(errno.EEXIST, "there is a file of this name already", str(path)) from None
            number += 1
            candidate = path.with_name(f"{path.stem}_{number}{path.suffix}")


def _rename_to_new(temporary: Path, path: Path) -> None:
    """Give the file its name, failing if the name is taken: a hard link does both at once, a rename would overwrite."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "there is a file of this name already", str(path)) from None
        os.replace(temporary, path)


def _flush_folder(folder: Path) -> None:
    # The name itself is safe only when the folder is on the disk. Windows cannot open folders and does not need to.
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
