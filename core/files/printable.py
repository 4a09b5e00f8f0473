"""Text of a file that nobody vouches for, on its way to a terminal."""

from __future__ import annotations


def printable(text: object, *, lines: bool = False) -> str:
    """`text` with everything that is no visible character as its escape, so that it cannot drive a terminal.

    With `lines`, line breaks stay.
    """
    return "".join(
        character if character.isprintable() or (lines and character == "\n") else _escaped(character)
        for character in str(text)
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
