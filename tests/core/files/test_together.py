"""A bundle and its embedding are both there or neither, wherever the disk fails or the process is killed."""

import errno
import json
import os
import signal
from pathlib import Path

import pytest
import torch

from contextual_inversion.core.concept import Concept
from contextual_inversion.core.files import (
    all_or_none,
    atomic_write_verified,
    load_concept,
    save_bundle,
    save_embedding,
)
from contextual_inversion.core.files.atomic import require_writable
from contextual_inversion.core.files.leftovers import NAME, claimed
from contextual_inversion.core.files.together import clear_leftovers

FOLDERS = ("bundles", "embeddings", "loras")
SAVES = (save_bundle, save_embedding, save_bundle)


def word(seed):
    return Concept("gizmo", "dog", {"clip_l": torch.randn(2, 128, generator=torch.Generator().manual_seed(seed))})


SEEDS = {word(seed).vectors["clip_l"][0, 0].item(): seed for seed in (1, 2)}


def save(root, seed, if_exists="error"):
    with all_or_none():
        for write, folder in zip(SAVES, FOLDERS, strict=True):
            write(word(seed), root / folder, if_exists=if_exists)


def seeds_in(root):
    """Per folder the seed of the word that is there, None for none."""
    found = []
    for folder in FOLDERS:
        file = root / folder / "gizmo.safetensors"
        found.append(SEEDS[load_concept(file).vectors["clip_l"][0, 0].item()] if file.exists() else None)
    return found


def leftovers(root):
    return [path for path in root.rglob("*") if NAME.fullmatch(path.name)]


def nth(function, number, act):
    """`function`, that calls `act` instead the `number`-th time."""
    calls = [0]

    def call(*arguments, **keywords):
        calls[0] += 1
        return act() if calls[0] == number else function(*arguments, **keywords)

    return call


def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


CALLS = [("link", n, "error") for n in (1, 2, 3)] + [("replace", n, "replace") for n in (1, 2, 3)]
CALLS += [("fsync", n, how) for n in range(1, 7) for how in ("error", "replace")]


@pytest.mark.parametrize(("call", "number", "if_exists"), CALLS)
def test_a_full_disk_leaves_all_or_none(tmp_path, monkeypatch, call, number, if_exists):
    before = 1 if if_exists == "replace" else None
    if before:
        save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, nth(getattr(os, call), number, full))
        with pytest.raises(OSError, match=r"No space left on device; free some space.*gizmo\.safetensors"):
            save(tmp_path, 2, if_exists)
    assert seeds_in(tmp_path) == [before] * 3
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(("call", "number", "if_exists"), CALLS)
@pytest.mark.parametrize("first", FOLDERS)
def test_after_a_kill_whichever_folder_is_written_to_next_there_are_all_or_none(
    tmp_path, call, number, if_exists, first
):
    before = 1 if if_exists == "replace" else None
    if before:
        save(tmp_path, 1)
    process = os.fork()
    if process == 0:
        setattr(os, call, nth(getattr(os, call), number, lambda: os.kill(os.getpid(), signal.SIGKILL)))
        save(tmp_path, 2, if_exists)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    atomic_write_verified(tmp_path / first / "other.bin", b"x")
    found = seeds_in(tmp_path)
    for folder in FOLDERS:
        clear_leftovers(tmp_path / folder)
    assert seeds_in(tmp_path) == found, "it is settled by the first of them"
    assert found in ([before] * 3, [2] * 3)
    assert not leftovers(tmp_path)


def test_what_somebody_writes_now_is_not_cleared_away(tmp_path):
    with claimed(tmp_path) as mine:
        mine.write_bytes(b"half")
        atomic_write_verified(tmp_path / "other.bin", b"x")
        assert mine.read_bytes() == b"half"
    (tmp_path / ".writing-0123456789abcdef").write_bytes(b"left by a kill")
    (tmp_path / ".writing-notes").write_bytes(b"somebody's")
    atomic_write_verified(tmp_path / "other.bin", b"y", if_exists="replace")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".writing-notes", "other.bin"]


@pytest.mark.parametrize("plan", ["[", "{}", "[1]", '[["a", "b"]]', "null", "[[1, 2, 3, 4]]"])
def test_a_damaged_plan_does_nothing(tmp_path, plan):
    (tmp_path / ".writing-0123456789abcdef.json").write_text(plan)
    (tmp_path / "kept.bin").write_bytes(b"x")
    clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.bin"]


def test_a_plan_of_a_stranger_cannot_move_files_about(tmp_path):
    (tmp_path / "a").mkdir()
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    for number, temporary in enumerate((tmp_path / "a" / ".writing-0123456789abcdef", victim)):
        (tmp_path / "a" / ".writing-0123456789abcdef").write_bytes(b"theirs")
        lines = [[str(temporary), str(victim if number == 0 else tmp_path / "moved"), True, [1, 2, 3]]]
        (tmp_path / "a" / ".writing-fedcba9876543210.json").write_text(json.dumps(lines))
        clear_leftovers(tmp_path / "a")
        assert victim.read_bytes() == b"mine"
    assert not (tmp_path / "moved").exists()


def test_taken_in_one_place_is_none_in_any(tmp_path):
    save_embedding(word(1), tmp_path / "embeddings")
    with pytest.raises(FileExistsError, match=r"embeddings/gizmo\.safetensors"):
        save(tmp_path, 2)
    assert seeds_in(tmp_path) == [None, 1, None]
    assert not leftovers(tmp_path)


NUMBERS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO)
FAILURES = [(call, number) for call in ("open", "fsync", "link", "mkdir") for number in NUMBERS]
FAILURES.remove(("link", errno.EACCES))  # what a file system without links says


@pytest.mark.parametrize(("call", "number"), FAILURES)
def test_every_failure_names_the_file_and_what_to_do(tmp_path, monkeypatch, call, number):
    def fail(*given, **options):
        raise OSError(number, os.strerror(number), ".writing-0")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match=r"x\.bin") as raised:
        atomic_write_verified(tmp_path / "new" / "x.bin", b"x")
    assert str(raised.value).endswith(f"'{tmp_path / 'new' / 'x.bin'}'")
    assert raised.value.errno == number
    if number != errno.EIO:
        assert "; " in raised.value.strerror
    assert len(raised.value.strerror) < 200


def test_a_folder_is_tried_before_it_is_needed(tmp_path, monkeypatch):
    require_writable(tmp_path / "new" / "folder")
    assert not list((tmp_path / "new" / "folder").iterdir())
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError, match=r"a file stands where a folder is needed.*file"):
            require_writable(folder)
    with pytest.raises(OSError, match=r"MB are needed and .* MB are free; free some space.*new") as raised:
        require_writable(tmp_path / "new", 10**18)
    assert raised.value.errno == errno.ENOSPC
    monkeypatch.setattr(os, "fsync", nth(os.fsync, 1, full))
    with pytest.raises(OSError, match="No space left"):
        require_writable(Path(tmp_path / "new"))
