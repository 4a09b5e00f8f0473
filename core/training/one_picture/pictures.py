"""Pictures to pretrain a tuning-encoder on (METHODS.md 3.5): ConceptWorld, a folder, or webdataset shards.

A source numbers its pictures, so any step of any process can be drawn alone and a resume needs nothing.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath, PurePosixPath
from typing import Protocol

import numpy as np
import torch

from ...files.pictures import read_as_tensor
from ...files.side_files import ENDINGS, is_picture, without_side_pictures
from ...world.captions import BACKGROUND_PHRASES
from ...world.concepts import RESERVED
from ...world.render import render
from ...world.scenes import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, WORN, Scene

NEUTRAL = ("a photo of a {}", "a photo of {}", "a picture of a {}", "the photo of a {}", "a rendition of a {}")
"""METHODS.md 3.5: photo templates that say nothing but the word; the first is the one of the figure."""
SEED_STREAM = 53
"""Keeps these scenes apart from those of any other generator of the world."""


class PictureSource(Protocol):
    """Pictures of single subjects, no two of which need to show the same one."""

    name: str

    def __len__(self) -> int: ...

    def picture(self, index: int) -> torch.Tensor:
        """Picture `index` as (H, W, 3) float32 in [0, 1]. Raises ValueError that names it where it cannot be read."""

    def template(self, index: int) -> str:
        """The prompt under which it is drawn again, with one placeholder."""

    def state(self) -> dict[str, object]:
        """Plain data for provenance; it differs where the pictures differ."""


@dataclass(frozen=True)
class WorldPictures:
    """Scenes of ConceptWorld with one subject, drawn when asked for: a class, two colours, a texture, sometimes a hat.

    The held-out concepts never come up, nor their class with their colours (`RESERVED`). With `say_place` half the
    prompts say where the subject stands, so that the word need not.
    """

    count: int = 4096
    seed: int = 0
    say_place: bool = False
    name: str = "concept_world"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"at least one picture is needed, not {self.count}")

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Scene:
        """Scene number `index`, the same for everybody."""
        return subject_scene(np.random.default_rng([SEED_STREAM, self.seed, index]))

    def picture(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.array(render(self.scene(index))[0])).float() / 255

    def template(self, index: int) -> str:
        phrases = BACKGROUND_PHRASES[self.scene(index).background]
        said = self.say_place and index % 2 == 1
        return f"{NEUTRAL[0]} {phrases[index // 2 % len(phrases)]}" if said else NEUTRAL[0]

    def state(self) -> dict[str, object]:
        return {"source": self.name, "pictures": self.count, "seed": self.seed, "say_place": self.say_place}


def subject_scene(rng: np.random.Generator) -> Scene:
    """A photograph of one subject that is none of the held-out concepts and does not imitate one."""

    def pick(options: Sequence[str], p: list[float] | None = None) -> str:
        return str(options[int(rng.choice(len(options), p=p))])

    while True:
        shape, colour, second = pick(SHAPES), pick(list(COLOURS)), pick(list(COLOURS))
        if colour != second and not RESERVED & {(shape, colour, second), (shape, second, colour)}:
            break
    return Scene(
        subject=shape,
        colour=colour,
        texture=pick(TEXTURES),
        second_colour=second,
        background=pick(BACKGROUNDS),
        worn=pick(WORN, [0.7, 0.15, 0.15]),
        seed=int(rng.integers(2**31)),
    )


@dataclass(frozen=True)
class FolderPictures:
    """The pictures of a folder and of those in it, without hidden ones and masks beside pictures. Raises ValueError
    where there is none."""

    folder: Path
    name: str = "folder"
    files: tuple[Path, ...] = field(init=False)

    def __post_init__(self) -> None:
        every = Path(self.folder).rglob("*")
        pictures = (path for path in every if _is_picture(path.relative_to(self.folder)))
        found = sorted(without_side_pictures(pictures))
        if not found:
            raise ValueError(f"no pictures ({', '.join(ENDINGS)}) in {self.folder}")
        object.__setattr__(self, "files", tuple(found))

    def __len__(self) -> int:
        return len(self.files)

    def picture(self, index: int) -> torch.Tensor:
        return decoded(self.files[index].read_bytes(), str(self.files[index].relative_to(self.folder)))

    def template(self, index: int) -> str:
        return NEUTRAL[index % len(NEUTRAL)]

    def state(self) -> dict[str, object]:
        names = "\n".join(f"{path.relative_to(self.folder).as_posix()} {path.stat().st_size}" for path in self.files)
        digest = hashlib.blake2b(names.encode(), digest_size=8).hexdigest()
        return {"source": self.name, "pictures": len(self), "digest": digest}


class GivenPictures:
    """Pictures at hand: (N, H, W, C) in [0, 1], or a sequence of (H, W, C). Raises ValueError where there is none."""

    def __init__(self, images: torch.Tensor | Sequence[torch.Tensor], name: str = "pictures") -> None:
        self.name, self.images = name, [image.detach().cpu() for image in images]
        if not self.images:
            raise ValueError("at least one picture is needed")

    def __len__(self) -> int:
        return len(self.images)

    def picture(self, index: int) -> torch.Tensor:
        return self.images[index]

    def template(self, index: int) -> str:
        return NEUTRAL[index % len(NEUTRAL)]

    def state(self) -> dict[str, object]:
        digest = hashlib.blake2b(digest_size=8)
        for image in self.images:
            digest.update(str(tuple(image.shape)).encode() + image.float().contiguous().numpy().tobytes())
        return {"source": self.name, "pictures": len(self), "digest": digest.hexdigest()}


class ShardPictures:
    """The picture members of webdataset shards, which are plain tar files. Each shard's index is read once; a picture
    is then read at its place, so nothing is unpacked. Raises ValueError for no tar file, or none with a picture."""

    def __init__(self, paths: Sequence[Path | str], name: str = "shards") -> None:
        self.name, self.paths = name, tuple(Path(path) for path in paths)
        entries = [_members(path) for path in self.paths]
        self.shard = np.repeat(np.arange(len(entries)), [len(entry) for entry in entries])
        self.places = np.concatenate([*entries, np.empty((0, 2), dtype=np.int64)])
        if not len(self.places):
            raise ValueError(f"the shards {', '.join(map(str, self.paths)) or '-'} hold no picture")

    def __len__(self) -> int:
        return len(self.shard)

    def picture(self, index: int) -> torch.Tensor:
        path, (offset, size) = self.paths[int(self.shard[index])], self.places[index].tolist()
        with path.open("rb") as file:
            file.seek(offset)
            return decoded(file.read(size), f"{path.name} at byte {offset}")

    def template(self, index: int) -> str:
        return NEUTRAL[index % len(NEUTRAL)]

    @cached_property
    def _digest(self) -> str:
        return hashlib.blake2b(self.places.tobytes() + self.shard.tobytes(), digest_size=8).hexdigest()

    def state(self) -> dict[str, object]:
        return {"source": self.name, "pictures": len(self), "digest": self._digest}


def decoded(data: bytes, name: str) -> torch.Tensor:
    """An encoded picture as (H, W, 3) float32 in [0, 1], turned upright, what is transparent on white.

    Raises ValueError that names the picture where it cannot be read.
    """
    return read_as_tensor(io.BytesIO(data), f"the picture {name}")


def _members(path: Path) -> np.ndarray:
    """Offset and size (n, 2) of every picture in a tar file."""
    try:
        with tarfile.open(path, "r:") as tar:  # "r:" refuses compression, in which nothing can be read at its place
            files = {PurePosixPath(one.name): one for one in tar if one.isfile()}
            found = [
                (files[path].offset_data, files[path].size)
                for path in without_side_pictures(path for path in files if _is_picture(path))
            ]
    except tarfile.TarError as error:
        raise ValueError(f"{path.name} is no uncompressed tar file: {error}") from error
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def _is_picture(path: PurePath) -> bool:
    """By its name, in no folder that is hidden."""
    return is_picture(path) and not any(part.startswith(".") for part in path.parts)


__all__ = [
    "ENDINGS",
    "NEUTRAL",
    "FolderPictures",
    "GivenPictures",
    "PictureSource",
    "ShardPictures",
    "WorldPictures",
    "decoded",
    "subject_scene",
]
