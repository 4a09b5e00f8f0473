"""Who can type a name: a table of names, and the law that what is offered is typed by all."""

import pytest
from hypothesis import given

from contextual_inversion.core.files import safe_name
from contextual_inversion.core.files.typed_names import RULES, advice, obstacles, typed_everywhere

from .test_names import any_text

PIECES = {"dog", "flat", "v", "3", "犬"}
ALL = set()
# name, vectors -> who cannot type it (with CLIP's vocabulary at hand), and what all can
TABLE = [
    ("my-dog", 3, ALL, "my-dog"),
    ("dog2", 3, ALL, "dog2"),
    ("my_dog-v2", 1, ALL, "my_dog-v2"),
    ("My-Dog", 1, ALL, "my-dog"),
    ("My-Dog", 2, {"diffusers", "compel"}, "my-dog"),
    ("shelf/My-Dog", 2, {"diffusers", "compel"}, "my-dog"),
    ("My_shelf/my-dog", 2, ALL, "my-dog"),
    ("dog", 1, {"sdkit", "Kohya's scripts", "stable-diffusion.cpp"}, "my-dog"),
    ("flat", 1, {"sdkit", "Kohya's scripts", "stable-diffusion.cpp"}, "my-flat"),
    ("gizmoid", 1, {"stable-diffusion.cpp"}, "my-gizmoid"),
    ("dog.v2", 1, {"sdkit"}, "dog-v2"),
    ("a+b", 1, {"InvokeAI"}, "a-b"),
    ("a--b", 1, {"compel", "InvokeAI", "sdkit"}, "a-b"),
    ("my-dog-", 1, {"sdkit"}, "my-dog"),
    ("gizmo_2", 1, {"sdkit"}, "gizmo-2"),
    ("naïve-dog", 1, {"compel", "InvokeAI", "sdkit"}, "naive-dog"),
    ("犬", 1, {"compel", "InvokeAI", "sdkit", "Kohya's scripts", "stable-diffusion.cpp"}, "my-word"),
]


@pytest.mark.parametrize(("name", "vectors", "who", "offered"), TABLE)
def test_who_cannot_type_a_name(name, vectors, who, offered):
    assert set(obstacles(name, vectors, PIECES)) == who
    if who:
        assert typed_everywhere(name) == offered
        (line,) = advice(name, vectors, PIECES)
        assert f"{offered!r}" in line
        assert all(program in line for program in who)
        assert len(line) < 400
    else:
        assert advice(name, vectors, PIECES) == []
    assert set(obstacles(name, vectors)) >= who, "without the vocabulary every word may be in it"
    assert set(who) <= set(RULES)


@given(any_text)
def test_what_is_offered_is_typed_by_all_and_stays(text):
    try:
        name, safe = safe_name(text), True
    except ValueError:
        name, safe = text, False  # typed_everywhere takes any text
    offered = typed_everywhere(name)
    assert safe_name(offered) == offered
    for vectors in (1, 8):
        assert obstacles(offered, vectors) == {}
    assert typed_everywhere(offered) == offered
    if safe and not obstacles(name, 2):
        assert offered == name


@pytest.mark.parametrize("text", ["0 ", " a", "my dog", "my  dog-2 ", "COM0", "-0", "0,", "my-dog.", "x.pt"])
def test_what_no_file_may_be_called_is_not_offered(text):
    offered = typed_everywhere(text)
    assert safe_name(offered) == offered
    assert obstacles(offered, 1) == {}


def test_advice_is_about_the_programs_asked_for():
    assert advice("dog.v2", programs=("InvokeAI",)) == []
    (line,) = advice("dog.v2", programs=("sdkit",))
    assert "sdkit" in line
