"""Where a trained word and its checkpoints go: neither is replaced unless that is asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..core.files.names import changed_meaning, numbered, taken_by
from ..core.files.typed_names import advice

IfTaken = Literal["number", "replace", "refuse"]
ENDING = ".safetensors"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Waiting:
    """What the checkpoints in a folder are of: the word's name, the steps it is to take, and the newest of them."""

    name: str
    steps: int
    newest: Path

    @property
    def done(self) -> int:
        return int(self.newest.stem.removeprefix("step_"))

    @property
    def ended(self) -> bool:
        return self.done == self.steps


def free_word(name: str, folders: Sequence[Path], if_taken: IfTaken) -> str:
    """The name for files in `folders`: `name`, or name_2, name_3, ... where it is taken and that is wanted.

    Raises FileExistsError with "refuse".
    """
    taken = taken_by(name, folders, ENDING)
    if taken is None or if_taken == "replace":
        return name
    if if_taken == "refuse":
        raise FileExistsError(f"{taken} exists: choose another --name or --out, or another way with --if-taken")
    free = numbered(name, folders, ENDING)
    print(f"{taken} exists, so the word is called {free}; --if-taken replace writes over it")
    return free


def word_folders(out: Path) -> list[Path]:
    """Where `train` writes the two files of a word."""
    return [out / "bundles", out / "embeddings"]


def place_for(out: Path, name: str, if_taken: IfTaken, resume: bool) -> tuple[str, Path]:
    """The name that the word will have, and the folder for its checkpoints, before hours of training.

    To resume it is that of the run of this name which waits. Raises FileExistsError where a training that was
    interrupted waits and would be replaced, or as `free_word`.
    """
    there = {folder: waiting for folder in _folders(out) if (waiting := waiting_in(folder)) is not None}
    if resume:
        return _to_go_on_with(out, name, there)
    for waiting in there.values():
        require_ended(waiting)
    free = free_word(name, word_folders(out), if_taken)
    if if_taken == "replace":
        own = next((folder for folder, waiting in there.items() if waiting.name == name), None)
        if own is not None:
            return free, own
    return free, next(folder for folder in _numbered_folders(out) if folder not in there)


def require_ended(waiting: Waiting) -> None:
    """Raises FileExistsError where a training that was interrupted waits, which beginning anew would replace."""
    if not waiting.ended:
        raise FileExistsError(
            f"{waiting.newest}, of {waiting.steps} steps, waits to be gone on with: add --resume, or name another "
            "folder with --out"
        )


def waiting_in(folder: Path) -> Waiting | None:
    """What waits in a folder of checkpoints, by the newest that can be read; None for nothing."""
    from safetensors import SafetensorError, safe_open

    from ..core.training.run.checkpoint import KEY, checkpoints_in

    for path in checkpoints_in(folder):
        try:
            with safe_open(path, framework="pt") as file:
                identity = json.loads((file.metadata() or {})[KEY])["identity"]
            return Waiting(str(identity["name"]), int(identity["steps"]), path)
        except (SafetensorError, OSError, LookupError, TypeError, ValueError):
            continue  # not a whole one
    return None


@contextmanager
def kept_in(checkpoints: Path) -> Iterator[None]:
    """An OSError inside, while a trained word is written, says how it is written once the disk takes it."""
    try:
        yield
    except OSError as error:
        waiting = waiting_in(checkpoints)
        if waiting is not None and error.strerror:
            error.strerror = f"{error.strerror}; nothing is lost, the same command with --resume writes it"
        raise


def say_meaning(embedding: Path, name: str) -> None:
    """Says where `embedding:name` meant another file in this folder before."""
    for line in changed_meaning(embedding, [embedding.parent], name):
        print(line)


def say_typing(name: str, vectors: int) -> None:
    """Says which programs cannot type a word's name, and one that all can."""
    for line in advice(name, vectors, clip_vocabulary()):
        print(line)


def clip_vocabulary() -> frozenset[str] | None:
    """The pieces of CLIP's vocabulary; None where open_clip, which brings it, is not installed."""
    from ..core.models.tiny.tokenizer import merges_of_open_clip, vocabulary

    try:
        return frozenset(vocabulary(merges_of_open_clip()))
    except FileNotFoundError:
        return None


def _folders(out: Path) -> list[Path]:
    """The folders of checkpoints that there are, the first first."""
    found = [path for path in out.glob(f"{CHECKPOINTS}*") if re.fullmatch(rf"{CHECKPOINTS}(_\d+)?", path.name)]
    return sorted(found, key=lambda path: int(path.name.partition("_")[2] or 1))


def _numbered_folders(out: Path) -> Iterator[Path]:
    yield out / CHECKPOINTS
    number = 1
    while True:
        number += 1
        yield out / f"{CHECKPOINTS}_{number}"


def _to_go_on_with(out: Path, name: str, there: dict[Path, Waiting]) -> tuple[str, Path]:
    """Of the runs of this name the one that did not end, else one whose word is not written, else the last."""
    own = {folder: one for folder, one in there.items() if re.fullmatch(rf"{re.escape(name)}(_\d+)?", one.name)}
    if not own:
        return name, out / CHECKPOINTS

    def order(folder: Path) -> tuple[bool, bool, float]:
        one = own[folder]
        written = taken_by(one.name, word_folders(out), ENDING) is not None
        return one.ended, written, -one.newest.stat().st_mtime

    folder = min(own, key=order)
    return own[folder].name, folder
