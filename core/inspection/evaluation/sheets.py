"""Contact sheets of an evaluation: the references, and under them every prompt's pictures with its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ...files.pictures import read_picture
from ..contact_sheet import Row, contact_sheet
from .report import measure_means
from .run import CellResult
from .scores import MEASURES

CELL = 128
COLUMNS = 8
"""Pictures of a row, as many as the protocol has of a prompt; further ones are not shown."""


def figures_line(scores: Mapping[str, np.ndarray]) -> str:
    """One line a measure: "CLIP-T 0.31"."""
    return "\n".join(f"{MEASURES[key]} {value:.3f}" for key, value in measure_means(scores).items())


def evaluation_sheet(
    references: Sequence[np.ndarray],
    rows: Sequence[tuple[str, Sequence[np.ndarray], Mapping[str, np.ndarray]]],
    title: str,
    cell: int = CELL,
) -> Image.Image:
    """The references in the first row, then (label, pictures, scores) a row; pictures keep their shape."""
    lines = [Row("references", _squares(references, cell))]
    lines += [Row(label, _squares(pictures, cell), figures_line(scores)) for label, pictures, scores in rows]
    return contact_sheet(lines, title=title, cell=cell)


def subject_sheet(results: Sequence[CellResult], generated: Path, cell: int = CELL) -> Image.Image:
    """All prompts of one subject; `results` are its cells, of which those without pictures are left out."""
    subject = results[0].cell.subject
    rows = [
        (
            result.cell.caption,
            [read_picture(generated / result.cell.place / name) for name in result.pictures[:COLUMNS]],
            result.scores,
        )
        for result in results
        if result.pictures
    ]
    references = [_readable(file) for file in subject.references[:COLUMNS]]
    shown = [picture for picture in references if picture is not None]
    return evaluation_sheet(shown, rows, f"{subject.name} ({subject.class_name})", cell)


def _readable(file: Path) -> np.ndarray | None:
    try:
        return read_picture(file)
    except ValueError:  # named in the report
        return None


def _squares(pictures: Sequence[np.ndarray], side: int) -> list[np.ndarray]:
    """Each picture whole in the middle of a white square."""
    squares = []
    for picture in pictures[:COLUMNS]:
        square = Image.new("RGB", (side, side), "white")
        image = Image.fromarray(picture)
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        if max(image.size) < side:  # thumbnail only ever makes smaller
            scale = side / max(image.size)
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        squares.append(np.asarray(square))
    return squares
