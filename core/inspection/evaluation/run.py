"""An evaluation cell by cell. Each cell's figures are kept in a file of their own: nothing is measured twice."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...files.atomic import atomic_write_verified
from ...files.pictures import BrokenPictureError, mask_of, picture_files, read_mask, read_picture
from .protocol import REFERENCES, Cell, ProtocolError, Subject, cells_without_pictures
from .scores import Evaluator, References

CELLS = "cells"
FORMAT = 1
"""Of the cells' files; another number makes old ones be measured anew."""


@dataclass(frozen=True)
class CellResult:
    """Figures of one cell: picture names, per measure one number a picture (NaN where it could not be measured), and
    what was skipped with the reason. `kept`: read from an earlier run's file."""

    cell: Cell
    pictures: tuple[str, ...]
    scores: dict[str, np.ndarray]
    skipped: tuple[str, ...] = ()
    kept: bool = False


@dataclass(frozen=True)
class Sources:
    """Where the pictures are, the masks (or None), and whether what is broken or missing is left out."""

    generated: Path
    masks: Path | None = None
    skip_broken: bool = False


def evaluate(cells: Sequence[Cell], sources: Sources, evaluator: Evaluator, out: Path) -> Iterator[CellResult]:
    """Measure every cell, or take it from `out` where exactly the same was measured before. Yields them in order.

    Raises ProtocolError that names all cells without pictures before anything is measured, and BrokenPictureError for
    the first picture or mask that cannot be used; with `skip_broken` both are left out and told in the results.
    """
    missing = cells_without_pictures(cells, sources.generated)
    if len(missing) == len(cells):
        raise ProtocolError(f"no picture in {sources.generated}; they are expected in folders such as {cells[0].place}")
    if missing and not sources.skip_broken:
        raise ProtocolError(
            f"{len(missing)} of {len(cells)} prompts have no pictures: {', '.join(missing)}. Generate them, or skip "
            "them on purpose"
        )
    subject: ReadSubject | None = None
    for cell in cells:
        if cell.place in missing:
            yield CellResult(cell, (), {}, (f"{cell.place}: no pictures",))
            continue
        if subject is None or subject.subject != cell.subject:
            subject = ReadSubject(cell.subject, sources, evaluator)
        yield _evaluate_cell(cell, subject, sources, evaluator, out)


class ReadSubject:
    """One subject's references: their digest at once, their features when a cell first asks for them."""

    def __init__(self, subject: Subject, sources: Sources, evaluator: Evaluator) -> None:
        self.subject, self.sources, self.evaluator = subject, sources, evaluator
        self.masks = None if sources.masks is None else sources.masks / subject.name / REFERENCES
        self.skipped: list[str] = []
        self.files = list(subject.references)
        self._features: References | None = None
        self.digest = _digest([*self.files, *([] if self.masks is None else picture_files(self.masks))])

    def features(self) -> References:
        """Raises BrokenPictureError; with `skip_broken` only where no reference is left."""
        if self._features is None:
            pictures, masks = [], []
            for file in self.files:
                try:
                    picture = read_picture(file)
                    masks.append(None if self.masks is None else _fitting_mask(file, picture, self.masks))
                    pictures.append(picture)
                except BrokenPictureError as error:
                    if not self.sources.skip_broken:
                        raise
                    self.skipped.append(str(error))
            if not pictures:
                raise BrokenPictureError(f"no reference of {self.subject.name} can be used: {'; '.join(self.skipped)}")
            known = None if self.masks is None else [mask for mask in masks if mask is not None]
            self._features = self.evaluator.references(pictures, known)
        return self._features


def _evaluate_cell(cell: Cell, subject: ReadSubject, sources: Sources, evaluator: Evaluator, out: Path) -> CellResult:
    files = picture_files(sources.generated / cell.place)
    masks = None if sources.masks is None else sources.masks / cell.place
    path = out / CELLS / f"{cell.place}.json"
    key = _key(cell, evaluator, subject.digest, _digest([*files, *([] if masks is None else picture_files(masks))]))
    kept = _kept(path, key, cell)
    if kept is not None and (sources.skip_broken or not kept.skipped):
        return kept
    references = subject.features()
    pictures, usable, chosen, skipped = [], [], [], list(subject.skipped)
    for file in files:
        try:
            picture = read_picture(file)
        except BrokenPictureError as error:
            if not sources.skip_broken:
                raise
            skipped.append(str(error))
            continue
        mask = None
        if masks is not None:
            try:
                mask = _fitting_mask(file, picture, masks)
            except BrokenPictureError as error:  # the picture still counts for every measure without a mask
                if not sources.skip_broken:
                    raise
                skipped.append(str(error))
        pictures.append(picture)
        usable.append(mask)
        chosen.append(file.name)
    scores = {}
    if pictures:
        captions = [cell.caption] * len(pictures)
        scores = evaluator.score(pictures, captions, references, None if masks is None else usable)
    result = CellResult(cell, tuple(chosen), scores, tuple(skipped))
    atomic_write_verified(path, _as_json(key, result), if_exists="replace")
    return result


def _fitting_mask(file: Path, picture: np.ndarray, folder: Path) -> np.ndarray:
    path = mask_of(file, folder)
    mask = read_mask(path)
    if mask.shape != picture.shape[:2]:
        (h, w), (height, width) = mask.shape, picture.shape[:2]
        raise BrokenPictureError(f"the mask {'/'.join(path.parts[-3:])} is {w} x {h}, its picture {width} x {height}")
    return mask


def _key(cell: Cell, evaluator: Evaluator, references: str, pictures: str) -> str:
    facts = {**evaluator.facts(), "format": FORMAT, "caption": cell.caption, "from": [references, pictures]}
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _digest(files: Sequence[Path]) -> str:
    """Of names and contents, so that a picture drawn anew under its old name is measured anew."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(file.name.encode() + b"\0" + hashlib.blake2b(file.read_bytes(), digest_size=16).digest())
    return digest.hexdigest()


def _as_json(key: str, result: CellResult) -> bytes:
    scores = {
        name: [None if math.isnan(value) else value for value in values.tolist()]
        for name, values in result.scores.items()
    }
    data = {
        "key": key,
        "subject": result.cell.subject.name,
        "prompt": result.cell.prompt.template,
        "category": result.cell.prompt.category,
        "caption": result.cell.caption,
        "pictures": list(result.pictures),
        "scores": scores,
        "skipped": list(result.skipped),
    }
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


def _kept(path: Path, key: str, cell: Cell) -> CellResult | None:
    """The result in a file of exactly this key, else None."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if data["key"] != key:
            return None
        scores = {name: np.asarray(values, dtype=np.float64) for name, values in data["scores"].items()}
        return CellResult(cell, tuple(data["pictures"]), scores, tuple(data["skipped"]), kept=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
