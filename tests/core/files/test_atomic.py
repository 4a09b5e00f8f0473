"""At every moment the file is absent, the old one, or the whole new one, wherever the disk fails."""

import errno
import os
from pathlib import Path

import pytest

from contextual_inversion.core.files import atomic
from contextual_inversion.core.files.atomic import atomic_write_verified

OLD, NEW = b"old" * 100, b"new" * 1000


class DiskError(OSError):
    """What the broken disk of these tests says."""


def failing(*_: object, **__: object) -> None:
    raise DiskError(errno.EIO, "the disk failed")


def half_written(path: Path, data: bytes) -> None:
    path.write_bytes(data[: len(data) // 2])
    failing()


@pytest.fixture(params=["absent", "present"])
def target(request, tmp_path) -> Path:
    path = tmp_path / "x.safetensors"
    if request.param == "present":
        path.write_bytes(OLD)
    return path


def state(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


# Everything that touches the disk before the file has its name: a failure there leaves the folder as it was. A file
# that may replace another gets its name by a rename, one that may not by a hard link.
BEFORE_THE_NAME = [
    *[(atomic, "_write_through", half_written, if_exists) for if_exists in ("error", "replace", "number")],
    *[(os, "fsync", failing, if_exists) for if_exists in ("error", "replace", "number")],
    (os, "replace", failing, "replace"),
    (os, "link", failing, "error"),
    (os, "link", failing, "number"),
]


@pytest.mark.parametrize(("owner", "call", "broken", "if_exists"), BEFORE_THE_NAME)
def test_a_failure_leaves_the_folder_as_it_was(target, owner, call, broken, if_exists, monkeypatch):
    before, listing = state(target), sorted(os.listdir(target.parent))
    monkeypatch.setattr(owner, call, broken)
    with pytest.raises(DiskError):
        atomic_write_verified(target, NEW, if_exists=if_exists)
    assert state(target) == before
    assert sorted(os.listdir(target.parent)) == listing


def test_a_crash_after_the_name_leaves_the_whole_file(target, monkeypatch):
    monkeypatch.setattr(atomic, "_flush_folder", failing)
    with pytest.raises(DiskError):
        atomic_write_verified(target, NEW, if_exists="replace")
    assert state(target) == NEW
    assert os.listdir(target.parent) == [target.name]


def test_a_disk_that_changes_bytes_is_noticed_before_the_old_file_goes(target, monkeypatch):
    before = state(target)
    write = atomic._write_through
    monkeypatch.setattr(atomic, "_write_through", lambda path, data: write(path, data[:-1] + b"?"))
    with pytest.raises(OSError, match="differs"):
        atomic_write_verified(target, NEW, if_exists="replace")
    assert state(target) == before


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_names_that_are_taken(tmp_path, links, monkeypatch):
    if not links:

        def unsupported(*_: object) -> None:
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", unsupported)
    path = tmp_path / "sub" / "dog.v2.safetensors"
    assert atomic_write_verified(path, OLD) == path
    with pytest.raises(FileExistsError):
        atomic_write_verified(path, NEW)
    assert path.read_bytes() == OLD
    assert atomic_write_verified(path, NEW, if_exists="number").name == "dog.v2_2.safetensors"
    assert atomic_write_verified(path, NEW, if_exists="number").name == "dog.v2_3.safetensors"
    assert atomic_write_verified(path, NEW, if_exists="replace") == path
    assert path.read_bytes() == NEW
    assert len(os.listdir(path.parent)) == 3
    with pytest.raises(ValueError, match="if_exists"):
        atomic_write_verified(path, NEW, if_exists="perhaps")


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"x")
    path = atomic_write_verified(tmp_path / "y", b"y")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert path.stat().st_nlink == 1
