"""What people type as a word, a phrase or a prompt: whether it is text that a text encoder can read at all."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from ..concept import PLACEHOLDER
from ..models.protocol import TextEncoder
from ..wording import quoted

LONGEST_PHRASE = 200
"""Characters: a text encoder of 77 tokens reads no class word of this length beside a prompt."""
LONGEST_PROMPT = 20_000
"""Characters of one prompt; a hundred times what fits into one chunk of a text encoder."""
LAYOUT = "\t\n\r"


def checked_phrase(text: str, what: str = "the class word") -> str:
    """`text` without spaces around it: a word or phrase that can be seen and read. Raises ValueError that names `what`.

    Refused are nothing at all, or nothing but invisible characters; braces, which stand for the new word; line breaks,
    control characters and halves of characters; and more than `LONGEST_PHRASE` characters.
    """
    text = checked_text(text, what, LONGEST_PHRASE).strip()
    if PLACEHOLDER in text or text in ("{", "}"):
        raise ValueError(f"{what} is {quoted(text)}: {PLACEHOLDER} stands for the new word; write an ordinary word")
    if any(character in LAYOUT for character in text):
        raise ValueError(f"{what} {quoted(text)} has more than one line; write one word or phrase")
    if not is_visible(text):
        said = "is empty" if not text else f"{quoted(text)} holds nothing that can be seen"
        raise ValueError(f"{what} {said}; write the ordinary word for the thing, such as dog")
    return text


def checked_text(text: str, what: str, most: int = LONGEST_PROMPT) -> str:
    """`text` where a text encoder and a file can hold it: no control characters, no half of a character, not more than
    `most` characters. Raises ValueError that names `what`."""
    if not isinstance(text, str):
        raise ValueError(f"{what} is {quoted(text)} and no text; write it in letters")
    if len(text) > most:
        raise ValueError(f"{what} has {len(text):,} characters; at most {most:,} can be used")
    wrong = next((one for one in text if one not in LAYOUT and unicodedata.category(one) in ("Cc", "Cs")), None)
    if wrong is not None:
        raise ValueError(f"{what} holds {wrong!a}, which is no character that can be written; leave it out")
    return text


def is_visible(text: str) -> bool:
    """Whether something is left of `text` without spaces and without what takes no room."""
    return any(unicodedata.category(character)[0] not in "ZC" for character in text)


def require_tokens(encoders: Iterable[TextEncoder], text: str, what: str = "the class word") -> None:
    """Raises ValueError that names `what` where a text encoder reads nothing in it, or a token that means something
    else, such as the end of the text."""
    for encoder in encoders:
        tokens = list(encoder.tokenize(text))
        if not tokens:
            raise ValueError(f"{what} {quoted(text)} holds no token of {encoder.name}; write an ordinary word")
        if encoder.bos in tokens or encoder.eos in tokens:
            raise ValueError(f"{what} {quoted(text)} holds a special token of {encoder.name}; write an ordinary word")
