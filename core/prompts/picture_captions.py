"""What people and other programs write beside pictures, as prompts to train on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..concept import PLACEHOLDER
from .parse import placeholder_problem

MOST_BYTES = 20_000
"""Of a caption file. A prompt has a few hundred."""


def template_of(caption: str, class_word: str) -> str | None:
    """A caption as a prompt with one placeholder: its own, else the first place where it has the class word, whole and
    in any case. None where it has neither, or several placeholders."""
    caption = " ".join(caption.split())
    if PLACEHOLDER not in caption:
        spelled = r"\s+".join(map(re.escape, class_word.split()))
        caption = re.sub(rf"(?<!\w){spelled}(?!\w)", lambda match: PLACEHOLDER, caption, count=1, flags=re.IGNORECASE)
    return caption if placeholder_problem(caption) is None else None


def templates_in(text: str, class_word: str) -> tuple[str, ...]:
    """The prompts in a caption file, one a line; lines with neither placeholder nor class word are none."""
    found = (template_of(line, class_word) for line in text.splitlines() if line.strip())
    return tuple(dict.fromkeys(one for one in found if one is not None))


def captions_of_pictures(captions: str | Sequence[str], class_word: str) -> tuple[tuple[str, ...], ...]:
    """The prompts of each picture: one line a picture, or one text a picture, of which every line may be one. () for a
    picture whose text has none."""
    texts = captions.strip("\n").split("\n") if isinstance(captions, str) else captions
    return tuple(templates_in(text, class_word) for text in texts)


def read_captions(file: Path, class_word: str) -> tuple[str, ...]:
    """`templates_in` a file. Raises ValueError that says why there is none."""
    try:
        with file.open("rb") as opened:
            text = opened.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ValueError(f"longer than {MOST_BYTES} bytes")
        found = templates_in(text.decode("utf-8-sig"), class_word)
    except OSError as error:
        raise ValueError(error.strerror or "cannot be read") from error
    except UnicodeDecodeError as error:
        raise ValueError("no text in UTF-8") from error
    if not found:
        raise ValueError(f"holds neither {PLACEHOLDER} nor {class_word!r}")
    return found
