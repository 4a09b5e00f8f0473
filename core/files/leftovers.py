"""Files that are being written under a name of their own, and what a kill has left of them."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PREFIX = ".writing-"
NAME = re.compile(r"\.writing-[0-9a-f]{16}(\.json)?")
STALE = 3600.0
"""Seconds after which a file counts as left where no lock can tell."""


@contextlib.contextmanager
def claimed(folder: Path, ending: str = "") -> Iterator[Path]:
    """A new empty file in `folder` that nobody clears away while this process uses it. It is gone at the end, unless it
    was given another name. Raises OSError."""
    path, descriptor = _created(folder, ending)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
        if descriptor is not None:
            os.close(descriptor)


def left_in(folder: Path, ending: str = "") -> Iterator[Path]:
    """The files in `folder` whose writer was killed, each for as long as it is looked at claimed by this process."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.name.startswith(PREFIX))
    except OSError:
        return
    for name in names:
        if NAME.fullmatch(name) and name.endswith(ending):
            with _if_left(folder / name) as path:
                if path is not None:
                    yield path


def _created(folder: Path, ending: str) -> tuple[Path, int | None]:
    # O_EXCL: never through a link that someone left there. 0o666: the umask decides, unlike with tempfile's 0o600.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        path = folder / f"{PREFIX}{secrets.token_hex(8)}{ending}"
        descriptor = os.open(path, flags, 0o666)
        if fcntl is None:  # an open file has no other name there
            os.close(descriptor)
            return path, None
        with contextlib.suppress(OSError):  # a network's file system may have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)  # somebody took it for left before it was locked


@contextlib.contextmanager
def _if_left(path: Path) -> Iterator[Path | None]:
    """The path while it is locked here, None where its writer lives."""
    try:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        yield None
        return
    try:
        yield path if _is_left(descriptor) else None
    finally:
        os.close(descriptor)


def _is_left(descriptor: int) -> bool:
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode):
        return False
    old = time.time() - facts.st_mtime > STALE
    if fcntl is None:
        return old
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return old
    return True
