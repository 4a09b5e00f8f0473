"""From the tokens of a prompt back to the words that a person wrote, with the positions of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from ..wording import listed, quoted

Kind = Literal["word", "special", "padding"]
START, END, PADDING = "start", "end", "padding"
END_OF_WORD = "</w>"


@dataclass(frozen=True)
class PromptWord:
    """A word, the start or end token, or all the padding, and the positions of its tokens in the context."""

    text: str
    kind: Kind
    positions: tuple[int, ...]


class Piece(NamedTuple):
    """What stands at one position: a token's BPE text, or a learned word's name."""

    text: str
    kind: Kind = "word"
    name: bool = False
    """`text` is a learned word's name, not BPE. Pieces of one name with one `word` belong together."""
    word: int = 0


@dataclass
class _Word:
    text: str
    kind: Kind
    positions: list[int]


def prompt_words(pieces: Iterable[Piece]) -> list[PromptWord]:
    """Join the pieces of each word.

    A word that was cut at the end of a chunk goes on behind the start token of the next. Start and end tokens of all
    chunks are one each, and so is all padding; each stands where it first comes.
    """
    found: list[_Word] = []
    whole: dict[Piece, _Word] = {}
    unfinished: _Word | None = None
    for position, piece in enumerate(pieces):
        spelled = piece.kind == "word" and not piece.name
        word = unfinished if spelled else whole.get(piece)
        if word is None:
            word = _Word("" if spelled else piece.text, piece.kind, [])
            found.append(word)
        word.positions.append(position)
        if spelled:
            word.text += piece.text
            unfinished = word
            if piece.text.endswith(END_OF_WORD):
                # Not piece by piece: a character's bytes may be spread over several.
                word.text, unfinished = readable(word.text), None
        else:
            whole[piece] = word
    return [PromptWord(word.text, word.kind, tuple(word.positions)) for word in found]


def readable(text: str) -> str:
    """Byte-level BPE text as what it stands for, without the mark of its end."""
    table = _bytes()
    spelled = bytes(table[character] for character in text.removesuffix(END_OF_WORD))
    return spelled.decode("utf-8", errors="replace")


def chosen(words: Sequence[PromptWord], wanted: str) -> list[PromptWord]:
    """Those of `words` named in a comma-separated list, in its order; a phrase names several that stand together.

    Raises ValueError that lists what there is where one is missing.
    """
    found: list[PromptWord] = []
    for phrase in filter(None, (part.strip() for part in wanted.split(","))):
        found += _phrase(words, phrase)
    return found


def _phrase(words: Sequence[PromptWord], phrase: str) -> list[PromptWord]:
    parts = [_plain(part) for part in phrase.split()]
    for start in range(len(words) - len(parts) + 1):
        if [_plain(word.text) for word in words[start : start + len(parts)]] == parts:
            return list(words[start : start + len(parts)])
    there = listed(dict.fromkeys(word.text for word in words))
    raise ValueError(f"the word {quoted(phrase)} is not in the prompt; it has: {there}")


def _plain(text: str) -> str:
    return text.lower().removeprefix("embedding:").removeprefix("<").removesuffix(">")


@lru_cache(maxsize=1)
def _bytes() -> dict[str, int]:
    """Byte-level BPE's character for every byte, the other way round: printable ones are themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
