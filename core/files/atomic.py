"""Write a file whole or not at all, and believe it only after reading it back."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Literal, get_args

from .leftovers import claimed
from .together import Written, clear_leftovers, publish_together, rename_to_new

IfExists = Literal["error", "replace", "number"]
Check = Callable[[Path], None]
"""Looks at a file before it gets its name; raises where it is not what it should be."""

ADVICE = {
    errno.ENOSPC: "free some space and do it again",
    getattr(errno, "EDQUOT", errno.ENOSPC): "free some space and do it again",
    errno.EROFS: "make the folder writable, or choose another",
    errno.EACCES: "make the folder writable, or choose another",
    errno.EPERM: "make the folder writable, or choose another",
    errno.ENOTDIR: "a file stands where a folder is needed: remove or rename it",
}


def atomic_write_verified(
    path: Path, data: bytes, *, if_exists: IfExists = "error", check: Check | None = None
) -> Path:
    """Write `data` to `path`, re-read it, compare it bit for bit, and return the path that was written.

    The bytes go to a temporary file in the same folder, are flushed to the disk and compared before the file gets its
    name, so at every moment `path` is absent, the old file, or the whole new one. `if_exists="number"` writes
    `name_2`, `name_3`, ... where the name is taken. What a kill has left in the folder is cleared away first.

    Raises:
        FileExistsError: the name is taken and `if_exists` is "error".
        OSError: the disk failed or what was read back differs; nothing half-written is left. It names `path`.
    """
    if if_exists not in get_args(IfExists):
        raise ValueError(f"if_exists is one of {get_args(IfExists)}, not {if_exists!r}")
    path = Path(path)
    with naming(path):
        with _on_the_disk(path, data, check) as temporary:
            written = _publish(temporary, path, if_exists)
        _flush_folder(written.parent)
        _compare(written, data)
    return written


class Together:
    """Takes files as `atomic_write_verified` does; they get their names when `publish` is called, or none does."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack, self._files = stack, list[Written]()

    def write(self, path: Path, data: bytes, *, if_exists: IfExists, check: Check | None = None) -> Path:
        """The path that the file will have. Raises FileExistsError, OSError, and what `check` raises."""
        if if_exists == "number":
            raise ValueError("files that belong together are given one free name before they are written")
        with naming(path):
            if if_exists == "error" and os.path.lexists(path):
                raise _taken(path)
            temporary = self._stack.enter_context(_on_the_disk(path, data, check))
        self._files.append(Written.of(temporary, path, if_exists == "replace"))
        return path

    def publish(self) -> None:
        """Raises OSError that names the first of the files."""
        if not self._files:
            return
        with naming(self._files[0].path):
            publish_together(self._files)
            for folder in dict.fromkeys(file.path.parent for file in self._files):
                _flush_folder(folder)


TOGETHER: ContextVar[Together | None] = ContextVar("together", default=None)


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """The concept files that are written inside get their names together at the end, or none of them does."""
    with contextlib.ExitStack() as stack:
        together = Together(stack)
        before = TOGETHER.set(together)
        try:
            yield
        finally:
            TOGETHER.reset(before)
        together.publish()


def require_writable(folder: Path, size: int = 0) -> None:
    """Makes the folder and writes a trial file there. Raises OSError that names the folder, also where `size` bytes are
    not free."""
    with naming(folder):
        make_folder(folder)
        clear_leftovers(folder)
        with claimed(folder) as trial:
            _write_through(trial, bytes(4096))
        free = shutil.disk_usage(folder).free
        if free < size:
            raise OSError(errno.ENOSPC, f"{size / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free", str(folder))


def make_folder(folder: Path) -> None:
    """Makes it where it is not there. Raises OSError; NotADirectoryError where a file stands in its place."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError inside names `path`, whichever file it was about, and says what to do."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        if error.filename2 is not None:
            del error.filename2
        advice = ADVICE.get(error.errno)
        if advice is not None and advice not in str(error.strerror):
            error.strerror = f"{error.strerror}; {advice}"
        raise


@contextlib.contextmanager
def _on_the_disk(path: Path, data: bytes, check: Check | None) -> Iterator[Path]:
    """A whole file with these bytes beside `path`, which is gone at the end unless it was renamed."""
    make_folder(path.parent)
    clear_leftovers(path.parent)
    with claimed(path.parent) as temporary:
        _write_through(temporary, data)
        _compare(temporary, data)
        if check is not None:
            check(temporary)
        yield temporary


def _write_through(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
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
            rename_to_new(temporary, candidate)
            return candidate
        except FileExistsError:
            if if_exists == "error":
                raise _taken(path) from None
            number += 1
            candidate = path.with_name(f"{path.stem}_{number}{path.suffix}")


def _taken(path: Path) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "there is a file of this name already", str(path))


def _flush_folder(folder: Path) -> None:
    # The name itself is safe only when the folder is on the disk. Windows cannot open folders and does not need to.
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
