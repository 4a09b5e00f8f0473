"""Which programs cannot type a word's name, and why; and a name that all can. Seen in runs: docs/interop.md."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Container
from dataclasses import dataclass

from .names import safe_name

ORDINARY = "my-"
"""What makes a name of letters alone one that is no piece of the vocabulary and in no other word."""
NAMELESS = "word"
LONGEST = 60


@dataclass(frozen=True)
class Typing:
    """A name as programs see it: its last part, the number of vectors, and what the vocabulary holds."""

    name: str
    vectors: int
    pieces: Container[str] | None

    @property
    def cut(self) -> str:
        """sdkit's name of the file: in lower case, up to the first full stop."""
        return self.name.lower().split(".")[0]

    @property
    def be(self) -> str:
        return "may be" if self.pieces is None else "is"

    def is_piece(self, text: str) -> bool:
        """Whether CLIP's vocabulary may hold `text`, whose pieces are of letters alone or one digit or punctuation."""
        return text in self.pieces if self.pieces is not None else text.isalpha() or len(text) == 1


def _capitals(word: Typing) -> str | None:
    if word.vectors > 1 and word.name != word.name.lower():
        return f"of its {word.vectors} vectors only the first is used, since it has capitals"
    return None


def _weights(word: Typing) -> str | None:
    return "two signs + or - in a row are a weight" if re.search(r"[+-]{2}", word.name) else None


def _other_letters(word: Typing) -> str | None:
    return None if word.name.isascii() else "letters beyond a-z are lost where prompts are taken apart"


def _brackets(word: Typing) -> str | None:
    return None if re.fullmatch(r"[a-zA-Z0-9., _-]+", word.name) else "only letters a-z, digits and . , _ - are typed"


def _full_stop(word: Typing) -> str | None:
    return f"it is called {word.cut!r}, up to the full stop" if "." in word.name else None


def _skipped(word: Typing) -> str | None:
    if word.is_piece(word.cut):
        return f"{word.cut!r} {word.be} a piece of CLIP's vocabulary, and such a file is skipped in silence"
    return None


def _weighted_end(word: Typing) -> str | None:
    return "a sign + or - at its end is a weight" if word.cut.endswith(("+", "-")) else None


def _numbered(word: Typing) -> str | None:
    found = re.fullmatch(r"(.+)_\d+", word.cut)
    return f"beside {found[1]!r} it is taken for a further vector of that" if found else None


def _taken(word: Typing) -> str | None:
    if word.is_piece(word.name):
        return f"{word.name!r} {word.be} a piece of CLIP's vocabulary"
    return None


def _inside_words(word: Typing) -> str | None:
    return f"{word.name!r} is found inside other words too" if word.name.isalpha() else None


RULES: dict[str, tuple[Callable[[Typing], str | None], ...]] = {
    "diffusers": (_capitals,),
    "compel": (_capitals, _weights, _other_letters),
    "InvokeAI": (_brackets, _weights),
    "sdkit": (_full_stop, _skipped, _weights, _weighted_end, _other_letters, _numbered),
    "Kohya's scripts": (_taken,),
    "stable-diffusion.cpp": (_inside_words,),
}
"""Program -> what stands against a name there, the first that holds. ComfyUI types every `safe_name`."""


def obstacles(name: str, vectors: int = 1, pieces: Container[str] | None = None) -> dict[str, str]:
    """Program -> why it cannot type this name, for those that cannot. Only what follows the last slash counts.

    `pieces` is CLIP's vocabulary; without it every name that could be in it counts as one that is.
    """
    word = Typing(name.rpartition("/")[2], vectors, pieces)
    found = {program: next(filter(None, (rule(word) for rule in rules)), None) for program, rules in RULES.items()}
    return {program: reason for program, reason in found.items() if reason}


def typed_everywhere(name: str) -> str:
    """The nearest name that every program types, whatever is in the vocabulary; a name that all type stays.

    Takes any text: what no file may be called, such as one with a space, is not offered either.
    """
    last = name.rpartition("/")[2]
    if _is_safe(last) and not obstacles(last, vectors=2):
        return last
    plain = unicodedata.normalize("NFKD", last).encode("ascii", "ignore").decode().lower()
    plain = re.sub(r"_{2,}", "_", re.sub(r"[^a-z0-9_]+", "-", plain))[:LONGEST]
    plain = re.sub(r"_(\d+)$", r"-\1", plain.strip("-_")) or NAMELESS
    return plain if re.search(r"[-_]|[a-z]\d|\d[a-z]", plain) and _is_safe(plain) else ORDINARY + plain


def _is_safe(name: str) -> bool:
    try:
        return safe_name(name) == name
    except ValueError:
        return False


def advice(
    name: str, vectors: int = 1, pieces: Container[str] | None = None, programs: Container[str] = RULES
) -> list[str]:
    """Lines for people: which of `programs` cannot type the name and what all can; none where all can type it."""
    reasons: dict[str, list[str]] = {}
    for program, reason in obstacles(name, vectors, pieces).items():
        if program in programs:
            reasons.setdefault(reason, []).append(program)
    if not reasons:
        return []
    told = "; ".join(f"{', '.join(programs)}: {reason}" for reason, programs in reasons.items())
    return [f"Not every program can type {name!r}. {told}. All can type {typed_everywhere(name)!r}."]
