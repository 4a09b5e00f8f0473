"""Pictures in a labelled grid, for eyes rather than for tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .letters import font_for, wrapped

INK, PAPER, FAINT = (28, 28, 32), (255, 255, 255), (120, 120, 128)
LETTERS_OF = 170
"""Pictures of this side go with letters of 13 to 20 pixels."""
MOST_LABEL = 120
"""Pixels of a line beside a row, of such letters."""


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
    letters: float = 1.0,
) -> Image.Image:
    """A grid of pictures, `columns` above and row labels beside, text wrapped to its place.

    A picture fills its cell of `cell` pixels a side as far as its shape lets it. `letters` enlarges all text. Rows may
    differ in length. Raises ValueError where there is nothing to show.
    """
    widest = max((len(row.pictures) for row in rows), default=0)
    if widest == 0:
        raise ValueError("a contact sheet needs at least one picture")
    labels, notes = [row.label for row in rows], [text for row in rows for text in (row.note, *row.captions)]
    small, normal, large = (
        font_for(texts, size * letters) for texts, size in (([*columns, *notes], 13), (labels, 15), ([title], 20))
    )
    line, label_line = round(17 * letters), round(20 * letters)
    heads = [wrapped(text, small, cell) for text in columns]
    head = max((len(lines) for lines in heads), default=0) * line + (gap if heads else 0)
    top = gap + (round(34 * letters) if title else 0)
    under = [[wrapped(text, small, cell) for text in row.captions] for row in rows]
    heights = [cell + gap + max((len(lines) * line for lines in texts), default=0) for texts in under]
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
        note = [piece for text in row.note.splitlines() for piece in wrapped(text, small, label_width - 2 * gap)]
        draw.multiline_text((2 * gap, y + gap + label_line * len(label)), "\n".join(note), FAINT, small)
        for place, picture in enumerate(row.pictures):
            x = label_width + gap + place * (cell + gap)
            sheet.paste(_fitted(picture, cell), (x, y))
            if place < len(under[index]):
                draw.multiline_text((x, y + cell + 2), "\n".join(under[index][place]), INK, small)
    return sheet


def captioned_sheet(
    pictures: Sequence[np.ndarray], captions: Sequence[str], columns: int, *, title: str = ""
) -> Image.Image:
    """Pictures in rows of `columns`, each over its caption. Raises ValueError where there is none."""
    starts = range(0, len(pictures), columns)
    rows = [Row("", pictures[i : i + columns], captions=captions[i : i + columns]) for i in starts]
    return contact_sheet(rows, title=title, label_width=8)


def result_sheet(
    rows: Sequence[tuple[str, Sequence[np.ndarray]]], prompts: Sequence[str] = (), *, title: str = "", side: int = 256
) -> Image.Image:
    """What methods drew of prompts: a (label, pictures) of each method, all in the order of `prompts`, each picture
    `side` pixels large, with text in proportion. With twice as many pictures as prompts two stand under each.

    Raises ValueError where rows differ in length, or pictures cannot be shared by the prompts.
    """
    counts = {len(pictures) for _, pictures in rows}
    if len(counts) > 1:
        listed = ", ".join(f"{label or f'row {place}'}: {len(own)}" for place, (label, own) in enumerate(rows, 1))
        raise ValueError(f"every row needs as many pictures, one for each prompt; there are {listed}")
    count = max(counts, default=0)
    if prompts and (count < len(prompts) or count % len(prompts)):
        raise ValueError(f"{count} pictures a row cannot be shared by {len(prompts)} prompts; give as many of each")
    letters = side / LETTERS_OF
    columns = [text for text in prompts for _ in range(count // len(prompts))]
    label_width = width_of_labels([label for label, _ in rows], letters)
    lines = [Row(label, pictures) for label, pictures in rows]
    return contact_sheet(lines, columns, title=title, cell=side, label_width=label_width, letters=letters)


def width_of_labels(labels: Sequence[str], letters: float) -> int:
    """Pixels for labels beside rows: no more than they take, and lines of `MOST_LABEL` where they are long."""
    font = font_for(labels, 15 * letters)
    longest = max((font.getlength(label) for label in labels), default=0)
    words = max((font.getlength(piece) for label in labels for piece in wrapped(label, font, 0)), default=0)
    return math.ceil(max(words, min(longest, MOST_LABEL * letters))) + 17 if longest else 0


def _fitted(picture: np.ndarray, cell: int) -> Image.Image:
    """As large as it goes into a square of `cell` pixels, in its middle; what is very thin keeps a pixel."""
    image = Image.fromarray(_bytes(picture))
    scale = cell / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    place = Image.new("RGB", (cell, cell), PAPER)
    place.paste(image.resize((width, height), Image.Resampling.LANCZOS), ((cell - width) // 2, (cell - height) // 2))
    return place


def _bytes(picture: np.ndarray) -> np.ndarray:
    picture = np.asarray(picture)
    if picture.dtype == np.uint8:
        return picture
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
