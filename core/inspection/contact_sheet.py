"""Pictures in a labelled grid, for eyes rather than for tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, PAPER, FAINT = (28, 28, 32), (255, 255, 255), (120, 120, 128)


@dataclass(frozen=True)
class Row:
    """One line of a sheet: what it is, a smaller note, and pictures (H, W, 3), uint8 or float in [0, 1]."""

    label: str
    pictures: Sequence[np.ndarray]
    note: str = ""
    captions: Sequence[str] = ()
    """A line or three under each picture."""


def contact_sheet(
    rows: Sequence[Row],
    columns: Sequence[str] = (),
    *,
    title: str = "",
    cell: int = 160,
    gap: int = 8,
    label_width: int = 190,
) -> Image.Image:
    """A grid of pictures, `columns` above and row labels beside, text wrapped to its place.

    Rows may differ in length. Raises ValueError where there is nothing to show.
    """
    widest = max((len(row.pictures) for row in rows), default=0)
    if widest == 0:
        raise ValueError("a contact sheet needs at least one picture")
    small, normal, large = (ImageFont.load_default(size) for size in (13, 15, 20))
    heads = [wrapped(text, small, cell) for text in columns]
    head = max((len(lines) for lines in heads), default=0) * 17 + (gap if heads else 0)
    top = gap + (34 if title else 0)
    under = [[wrapped(text, small, cell) for text in row.captions] for row in rows]
    heights = [cell + gap + max((len(lines) * 17 for lines in texts), default=0) for texts in under]
    size = (label_width + widest * (cell + gap) + gap, top + head + sum(heights) + gap)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((2 * gap, gap), title, INK, large)
    for index, lines in enumerate(heads):
        x = label_width + gap + index * (cell + gap)
        draw.multiline_text((x, top), "\n".join(lines), INK, small)
    for index, row in enumerate(rows):
        y = top + head + sum(heights[:index])
        label = wrapped(row.label, normal, label_width - 2 * gap)
        draw.multiline_text((2 * gap, y + gap), "\n".join(label), INK, normal)
        note = [piece for line in row.note.splitlines() for piece in wrapped(line, small, label_width - 2 * gap)]
        draw.multiline_text((2 * gap, y + gap + 20 * len(label)), "\n".join(note), FAINT, small)
        for place, picture in enumerate(row.pictures):
            image = Image.fromarray(_bytes(picture)).resize((cell, cell), Image.Resampling.LANCZOS)
            x = label_width + gap + place * (cell + gap)
            sheet.paste(image, (x, y))
            if place < len(under[index]):
                draw.multiline_text((x, y + cell + 2), "\n".join(under[index][place]), INK, small)
    return sheet


def wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """`text` in lines of at most `width` pixels; a single longer word keeps a line of its own."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _bytes(picture: np.ndarray) -> np.ndarray:
    picture = np.asarray(picture)
    if picture.dtype == np.uint8:
        return picture
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
