"""Letters for pictures: Pillow's own font, or one of the system's where a text has signs that it lacks."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from PIL import ImageFont

SYSTEM_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "NotoSansCJKjp-Regular.otf",
    "SourceHanSansSC-Regular.otf",
    "msyh.ttc",
    "msgothic.ttc",
    "YuGothM.ttc",
    "malgun.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc",
    "Arial Unicode.ttf",
    "wqy-microhei.ttc",
    "NotoSans-Regular.ttf",
    "DejaVuSans.ttf",
    "segoeui.ttf",
)
"""Files that Linux, Windows and macOS bring, those with the most signs first; Pillow knows where each keeps them."""
NOBODYS = "\U0010fffe"
"""A place of Unicode that no letter may have: what a font draws for it, it draws for all that it lacks."""


def font_for(texts: Iterable[str], size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font with letters of `size` pixels that has every sign of `texts`; Pillow's own where none has."""
    signs = frozenset("".join(texts)) - {" ", "\n"}
    name = _font_with(signs)
    return ImageFont.load_default(size) if name is None else ImageFont.truetype(name, round(size))


@lru_cache(maxsize=64)
def _font_with(signs: frozenset[str]) -> str | None:
    if all(sign.isascii() for sign in signs) or _has(ImageFont.load_default(16), signs):
        return None
    for name in SYSTEM_FONTS:
        try:
            if _has(ImageFont.truetype(name, 16), signs):
                return name
        except OSError:  # not on this system
            continue
    return None


def _has(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, signs: frozenset[str]) -> bool:
    lacking = bytes(font.getmask(NOBODYS))
    return not any(bytes(font.getmask(sign)) == lacking for sign in signs)


def wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """`text` in lines of at most `width` pixels, broken between words, and anywhere beside a sign as wide as it is high
    (Chinese, Japanese, Korean); a single longer word keeps a line of its own."""
    lines: list[str] = []
    for word, space in _pieces(text):
        longer = f"{lines[-1]}{space}{word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _pieces(text: str) -> list[tuple[str, str]]:
    """What must not be broken, each with what stands before it where it goes on in the same line."""
    pieces: list[tuple[str, str]] = []
    for word in text.split():
        before, run = " ", ""
        for sign in word:
            if unicodedata.east_asian_width(sign) in "WF":
                if run:
                    pieces.append((run, before))
                    before, run = "", ""
                pieces.append((sign, before))
                before = ""
            else:
                run += sign
        if run:
            pieces.append((run, before))
    return pieces
