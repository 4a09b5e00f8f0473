"""Tables in Markdown, and their places in documents that people write."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.files.atomic import atomic_write_verified

START, END = "<!-- {}: begin -->", "<!-- {}: end -->"
"""Around the tables of a name in a document."""

MEASURES = {
    "fidelity": "prompt fidelity",
    "held_out_background": "held-out background right",
    "second_object": "second object there",
    "style": "style right",
    "leak": "training background leaks",
    "recognised": "subject recognised",
    "composed": "subject recognised and prompt obeyed",
    "concept_score": "probability of the subject",
    "similarity": "subject similarity",
    "sim1": "sim1",
    "sim2": "sim2",
    "skl": "SKL",
    "skl_pixels": "SKL over pixels",
    "to_concept": "the word draws the concept alone",
    "to_companion": "the word draws the companion alone",
    "to_both": "the word draws both",
    "seconds": "seconds",
}
"""What a trial is judged by, as the tables call it."""
FEWEST = 5
"""Pairs below which an interval proves nothing: of three, each with the same sign, a quarter comes by chance."""
DECIDING = ("composed", "fidelity", "recognised", "second_object", "similarity")
"""What most people look for."""


def table_header(*names: str) -> list[str]:
    """The two lines that open a Markdown table."""
    return [table_row(*names), table_row(*["---"] * len(names))]


def table_row(*cells: str) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def table_figure(value: float) -> str:
    """A number in a table; what there is no number for is a dash."""
    return "–" if math.isnan(value) else f"{value:.3f}"


def has_tables(path: Path, name: str) -> bool:
    """Whether the document has the marks of these tables."""
    return START.format(name) in path.read_text(encoding="utf-8")


def require_marks(documents: Sequence[Path], parts: Sequence[str]) -> None:
    """Raises, before the work, what writing would: OSError for a document that cannot be read, ValueError for a part
    whose marks are in none of them."""
    texts = {path: path.read_text(encoding="utf-8") for path in documents}
    for part in parts if documents else ():
        if not any(START.format(part) in text and END.format(part) in text for text in texts.values()):
            raise ValueError(f"no document of --markdown has the lines {START.format(part)} and {END.format(part)}")


def rewrite_in_one(documents: Sequence[Path], part: str, lines: Sequence[str]) -> None:
    """The tables of `part` in the document that has its marks. Raises ValueError where none has."""
    holding = [path for path in documents if has_tables(path, part)]
    rewrite_tables((holding or documents)[0], part, lines)


def rewrite_tables(path: Path, part: str, lines: Sequence[str]) -> None:
    """Put `lines` between the two marks of `part` in the document at `path`; what people wrote around them stays.

    Raises ValueError where the document does not hold both marks, in that order.
    """
    start, end = START.format(part), END.format(part)
    text = path.read_text(encoding="utf-8")
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{path} needs the lines {start} and {end} around the tables of {part}")
    text = "\n".join([before + start, *lines, "", end + after])
    atomic_write_verified(path, text.encode(), if_exists="replace")


def is_clear(row: Mapping[str, Any]) -> bool:
    """Whether a comparison's interval leaves zero out, and there are pairs enough for that to mean something."""
    return row["pairs"] >= FEWEST and not row["low"] <= 0 <= row["high"]
