"""Captions beside pictures as prompts."""

import pytest

from contextual_inversion.core.prompts.picture_captions import MOST_BYTES, read_captions, template_of, templates_in


@pytest.mark.parametrize(
    ("caption", "class_word", "template"),
    [
        ("a photo of {} at sea", "dog", "a photo of {} at sea"),
        ("A red Dog,  in the\tsnow", "dog", "A red {}, in the snow"),
        ("a dog looks at a dog", "dog", "a {} looks at a dog"),
        ("hotdogs and doghouses", "dog", None),
        ("two wooden  toys, one wooden toy", "wooden toy", "two wooden toys, one {}"),
        ("{} and {}", "dog", None),
        ("ein Schaf im Café", "café", "ein Schaf im {}"),
        ("c++ code", "c++", "{} code"),
        ("", "dog", None),
    ],
)
def test_a_caption_is_a_prompt_where_it_has_a_place_for_the_word(caption, class_word, template):
    assert template_of(caption, class_word) == template


def test_every_line_is_a_prompt_once():
    text = "a dog\n\nthe sea\na  dog\r\nmy {} at sea\n"
    assert templates_in(text, "dog") == ("a {}", "my {} at sea")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"the sea", r"neither {} nor 'dog'"),
        (b"\xff\xfe\x00a dog", "no text in UTF-8"),
        (b"a dog " * MOST_BYTES, "longer than"),
    ],
)
def test_why_a_caption_is_no_prompt(data, problem, tmp_path):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(ValueError, match=problem):
        read_captions(tmp_path / "a.txt", "dog")


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path):
    (tmp_path / "a.txt").write_text("dog in the snow", encoding="utf-8-sig")
    assert read_captions(tmp_path / "a.txt", "dog") == ("{} in the snow",)
