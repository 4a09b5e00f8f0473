"""Text to pretrain a contextualizer on (METHODS.md 2.4): the built-in captions, a text file, or webdataset shards.

A source draws captions with replacement from a generator and keeps no position, so any step of any process can be drawn
alone and a resume needs nothing.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch

from .defaults import REAL_SHARE
from .rich import RichPrompts, with_articles

HELD_OUT_SHARE = 0.05
HELD_OUT_TRIES = 10_000
AT_ONCE = 512
"""Captions looked at together: a fraction of a second, so that whoever wants to stop is heard."""


class CaptionSource(Protocol):
    """Plain sentences, no placeholders."""

    name: str

    def draw(self, count: int, generator: torch.Generator) -> list[str]:
        """`count` captions, with replacement; every choice comes from the CPU `generator`."""

    def state(self) -> dict[str, object]:
        """Plain data for provenance; it differs where the text differs."""


def is_one_by_one(source: CaptionSource) -> bool:
    """Whether many captions drawn at once are those that come one after another, and leave the generator alike."""
    return getattr(source, "one_by_one", False)


@dataclass(frozen=True)
class ClassCaptions:
    """Rich prompts with a plain class word in place of the concept: METHODS.md 2.4's synthetic captions."""

    prompts: RichPrompts
    class_words: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.prompts.name

    def draw(self, count: int, generator: torch.Generator) -> list[str]:
        nouns = torch.randint(len(self.class_words), (count,), generator=generator).tolist()
        templates = self.prompts.draw(count, generator)
        return [
            with_articles(template.replace("{}", self.class_words[noun]))
            for template, noun in zip(templates, nouns, strict=True)
        ]

    def state(self) -> dict[str, object]:
        return {"source": "class captions", **self.prompts.state(), "class_words": list(self.class_words)}


@dataclass(frozen=True)
class ListedCaptions:
    """The lines of a caption file."""

    captions: tuple[str, ...]
    name: str = "captions"
    one_by_one: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.captions:
            raise ValueError(f"{self.name} holds no caption; write one a line")

    def draw(self, count: int, generator: torch.Generator) -> list[str]:
        return [self.captions[i] for i in torch.randint(len(self.captions), (count,), generator=generator).tolist()]

    def state(self) -> dict[str, object]:
        return {"source": self.name, "captions": len(self.captions), "digest": self._digest}

    @cached_property
    def _digest(self) -> str:
        return hashlib.blake2b("\n".join(self.captions).encode(), digest_size=8).hexdigest()


class ShardCaptions:
    """The `.txt` members of webdataset shards, which are plain tar files. Each shard is read once, so that a caption
    that is no text is found at the beginning; then a caption is read at its place, so nothing is unpacked and no shard
    is held in memory. Hidden files and empty captions are left out."""

    one_by_one = True

    def __init__(self, paths: Sequence[Path | str], name: str = "shards", member: str = ".txt") -> None:
        self.name, self.paths, self.member = name, tuple(Path(path) for path in paths), member
        content = hashlib.blake2b(digest_size=8)
        entries = [_members(path, member, content.update) for path in self.paths]
        self._digest = content.hexdigest()
        self.shard = np.repeat(np.arange(len(entries)), [len(entry) for entry in entries])
        places = [entry for entry in entries if len(entry)]
        if not places:
            raise ValueError(f"the shards {', '.join(map(str, self.paths)) or '-'} hold no {member} member")
        self.places = np.concatenate(places)

    def __len__(self) -> int:
        return len(self.shard)

    def __getitem__(self, index: int) -> str:
        """Caption number `index`."""
        path = self.paths[int(self.shard[index])]
        offset, size = self.places[index].tolist()
        with path.open("rb") as file:
            file.seek(offset)
            return _caption(file.read(size))

    def draw(self, count: int, generator: torch.Generator) -> list[str]:
        return [self[i] for i in torch.randint(len(self), (count,), generator=generator).tolist()]

    def state(self) -> dict[str, object]:
        return {"source": self.name, "member": self.member, "captions": len(self), "digest": self._digest}


@dataclass(frozen=True)
class MixedCaptions:
    """METHODS.md 2.4: each caption is real with probability `real_share`, else synthetic."""

    real: CaptionSource
    synthetic: CaptionSource
    real_share: float = REAL_SHARE

    @property
    def name(self) -> str:
        return f"{self.real.name} and {self.synthetic.name}"

    def draw(self, count: int, generator: torch.Generator) -> list[str]:
        real = (torch.rand(count, generator=generator) < self.real_share).tolist()
        return [(self.real if one else self.synthetic).draw(1, generator)[0] for one in real]

    def state(self) -> dict[str, object]:
        return {"real": self.real.state(), "synthetic": self.synthetic.state(), "real_share": self.real_share}


@dataclass(frozen=True)
class SplitCaptions:
    """The captions of `source` that are held out, or those that are not: a caption's own hash decides, whichever source
    and draw it comes from, so no held-out sentence is ever trained on."""

    source: CaptionSource
    held_out: bool

    @property
    def name(self) -> str:
        return self.source.name

    def draw(self, count: int, generator: torch.Generator) -> list[str]:
        """Raises ValueError where the source seems to have no such caption."""
        found: list[str] = []
        missed = 0
        tried = 1
        while len(found) < count:
            before = generator.get_state() if tried > 1 else None
            for place, text in enumerate(self.source.draw(tried, generator), 1):
                if is_held_out(text) == self.held_out:
                    found.append(text)
                    missed = 0
                elif (missed := missed + 1) == HELD_OUT_TRIES:
                    kind = "held out" if self.held_out else "to train on"
                    raise ValueError(
                        f"{self.name} has too few different captions: none {kind} in {HELD_OUT_TRIES} draws; "
                        "add others, or mix built-in ones in"
                    )
                if len(found) == count and place < tried:
                    # As if it had been drawn one by one: the generator stands behind the last caption that is used.
                    generator.set_state(before)
                    self.source.draw(place, generator)
                    break
            tried = self._at_once(count - len(found))
        return found

    def _at_once(self, wanted: int) -> int:
        """How many captions to look at next, for `wanted` more."""
        if not is_one_by_one(self.source):
            return 1
        share = HELD_OUT_SHARE if self.held_out else 1 - HELD_OUT_SHARE
        return max(1, min(AT_ONCE, int(wanted / share)))

    def state(self) -> dict[str, object]:
        return self.source.state()


def is_held_out(text: str) -> bool:
    """Whether a sentence belongs to the 5 % that are only tested on. Neither case nor spacing matters."""
    digest = hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < HELD_OUT_SHARE * 2**64


def captions_from(
    file: Path | None, shards: Sequence[Path], made: CaptionSource | None, real_share: float = REAL_SHARE
) -> CaptionSource:
    """Real captions from a text `file` or from `shards`, mixed with those `made` up where there are both.

    Raises ValueError where there is nothing, two kinds of real captions, or a share outside 0..1.
    """
    if file is not None and shards:
        raise ValueError("captions come from a text file or from shards, not from both")
    if not 0 <= real_share <= 1:
        raise ValueError(f"the real share is within 0..1, not {real_share}")
    real = captions_from_file(file) if file is not None else ShardCaptions(shards) if shards else None
    if real is not None and made is not None:
        return MixedCaptions(real, made, real_share)
    if real is None and made is None:
        raise ValueError("there are no captions: name a text file, shards, or built-in ones")
    return real if made is None else made


def captions_from_file(path: Path | str) -> ListedCaptions:
    """A UTF-8 text file, one caption a line; blank lines are skipped.

    Raises ValueError that names the line where it is not UTF-8 or where there is none, OSError where it cannot be read.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + error.object[: error.start].count(b"\n")
        raise ValueError(f"{path.name}, line {line}: this is not UTF-8 text") from error
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return ListedCaptions(tuple(line for line in lines if line), path.name)


def _members(path: Path, ending: str, seen: Callable[[bytes], None]) -> np.ndarray:
    """Offset and size (n, 2) of every caption of a tar file, a member that ends in `ending`; `seen` gets its content.

    Raises ValueError for no tar file, and for a caption that is not UTF-8 text.
    """
    found = []
    try:
        with tarfile.open(path, "r:") as tar:  # "r:" refuses compression, in which nothing can be read at its place
            for one in tar:
                # Beside every file macOS packs one of its own, whose name begins with a dot.
                if not one.isfile() or not one.name.endswith(ending) or Path(one.name).name.startswith("."):
                    continue
                data = tar.extractfile(one).read()  # type: ignore[union-attr]
                if _caption(data):
                    found.append((one.offset_data, one.size))
                    seen(data + b"\0")
    except tarfile.TarError as error:
        raise ValueError(f"{path.name} is no uncompressed tar file: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}: {one.name} is not UTF-8 text") from error
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def _caption(data: bytes) -> str:
    return " ".join(data.decode("utf-8-sig").split())


__all__ = [
    "CaptionSource",
    "ClassCaptions",
    "ListedCaptions",
    "MixedCaptions",
    "ShardCaptions",
    "SplitCaptions",
    "captions_from",
    "captions_from_file",
    "is_held_out",
]
