"""Signs that Pillow's own font lacks, and where lines break."""

import pytest
from PIL import ImageFont

from contextual_inversion.core.inspection import letters

TEXTS = ["a photo of a cup", "一张雪地里的杯子", "雪の中のカップ", "кружка на снегу"]


def test_ordinary_texts_are_in_pillows_own_font():
    own = ImageFont.load_default(20)
    assert letters.font_for(TEXTS[:1], 20).getname() == own.getname()
    assert letters.font_for([], 20).getname() == own.getname()


@pytest.mark.parametrize("text", TEXTS)
def test_no_sign_is_a_box_where_a_font_has_it(text, monkeypatch):
    font = letters.font_for([text], 20)
    lacking = bytes(font.getmask(letters.NOBODYS))
    boxes = [sign for sign in text if sign != " " and bytes(font.getmask(sign)) == lacking]
    has_one = letters._font_with(frozenset(text) - {" "}) is not None or text.isascii()
    assert not boxes or not has_one
    monkeypatch.setattr(letters, "SYSTEM_FONTS", ("no such font.ttf",))
    letters._font_with.cache_clear()
    assert letters.font_for([text], 20).getname() == ImageFont.load_default(20).getname()
    letters._font_with.cache_clear()


def test_a_font_that_draws_boxes_is_not_taken(monkeypatch):
    own, tried = ImageFont.load_default(16), []
    monkeypatch.setattr(letters.ImageFont, "load_default", lambda size: own)

    def truetype(name, size, **_):
        tried.append(name)
        if name == "second":
            return own  # has no Chinese
        raise OSError

    monkeypatch.setattr(letters, "SYSTEM_FONTS", ("first", "second"))
    monkeypatch.setattr(letters.ImageFont, "truetype", truetype)
    letters._font_with.cache_clear()
    assert letters._font_with(frozenset("杯")) is None
    assert tried == ["first", "second"]
    letters._font_with.cache_clear()


@pytest.mark.parametrize("text", [*TEXTS, "红色的 cup 在雪地里", "a  b"])
@pytest.mark.parametrize("width", [0, 40, 100, 1000])
def test_lines_hold_every_sign_and_break_where_they_may(text, width):
    font = letters.font_for([text], 13)
    lines = letters.wrapped(text, font, width)
    assert "".join("".join(lines).split()) == "".join(text.split()), "nothing is lost"
    assert all(font.getlength(line) <= width or len(letters.wrapped(line, font, 0)) == 1 for line in lines)
    if width == 1000:
        assert lines == [" ".join(text.split())]
