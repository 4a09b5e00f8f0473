"""Captions tell the truth about their scene and vary."""

from __future__ import annotations

import re

import numpy as np
import pytest

from contextual_inversion.core.inspection.world.report import questions
from contextual_inversion.core.world.captions import BACKGROUND_PHRASES, caption, prompt
from contextual_inversion.core.world.concepts import CONCEPTS, RESERVED
from contextual_inversion.core.world.prompts import (
    EVALUATION_BACKGROUNDS,
    REGULARIZATION_BACKGROUNDS,
    evaluation_prompts,
)
from contextual_inversion.core.world.scenes import BACKGROUNDS, COLOURS, SHAPES, Scene, sample_scene

SAYS_STYLE = {"sketch": ("sketch", "drawing"), "pixelated": ("pixel",)}


def without_background(text: str, scene: Scene) -> str:
    for phrase in sorted(BACKGROUND_PHRASES[scene.background], key=len, reverse=True):
        text = text.replace(phrase, "")
    return text


def test_every_named_attribute_is_the_scenes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(3000):
        scene = sample_scene(rng, RESERVED)
        text = caption(scene, rng)
        rest = without_background(text, scene)
        words = set(re.findall(r"[a-z]+", rest))
        own = {scene.colour} if scene.texture == "plain" else {scene.colour, scene.second_colour}
        shapes = {scene.subject}
        if scene.second is not None:
            own.add(scene.second.colour)
            shapes.add(scene.second.shape)
        assert words & set(COLOURS) <= own, text
        assert words & set(SHAPES) == shapes, text
        for background, phrases in BACKGROUND_PHRASES.items():
            assert background == scene.background or not any(p in rest for p in phrases), text
        for style, marks in SAYS_STYLE.items():
            assert any(m in text for m in marks) == (scene.style == style), text
        for texture, mark in (("striped", "strip"), ("spotted", "spot"), ("two-tone", "two-tone")):
            assert scene.texture == texture or mark not in rest, text
        assert all(worn == scene.worn for worn in ("hat", "crown") if worn in words), text
        for place in ("left", "right"):
            assert place not in words or scene.place == place, text
        for colour, shape in re.findall(r"(\w+) (\w+)", rest):
            if colour in COLOURS and shape in SHAPES:
                possible = own if shape == scene.subject else {scene.second.colour}
                assert colour in possible, text


def test_captions_vary_and_put_the_subject_before_and_after_the_place() -> None:
    rng = np.random.default_rng(1)
    scene = Scene("cat", "red", "striped", "blue", "snow")
    texts = {caption(scene, rng) for _ in range(300)}
    assert len(texts) > 120
    spots = [text.find("snow") - text.find("cat") for text in texts if "snow" in text]
    assert 0.04 < np.mean(np.array(spots) < 0) < 0.5


def test_no_caption_names_a_concept() -> None:
    rng = np.random.default_rng(2)
    names = {word for name in CONCEPTS for word in name.split("-")} - set(SHAPES)
    for _ in range(2000):
        assert not names & set(caption(sample_scene(rng, RESERVED), rng).split())
    with pytest.raises(ValueError, match="held-out"):
        caption(Scene("concept:castle"), rng)


def test_every_background_is_regularised_or_held_out() -> None:
    assert set(REGULARIZATION_BACKGROUNDS) | set(EVALUATION_BACKGROUNDS) == set(BACKGROUNDS)
    assert not set(REGULARIZATION_BACKGROUNDS) & set(EVALUATION_BACKGROUNDS)
    assert all(c.background in REGULARIZATION_BACKGROUNDS for c in CONCEPTS.values())


@pytest.mark.parametrize("name", CONCEPTS)
def test_evaluation_prompts_ask_what_they_say(name: str) -> None:
    prompts = evaluation_prompts("sks", without=CONCEPTS[name].background)
    plain = [p for p in prompts if p.second is None and p.style is None]
    assert len(plain) == 28
    assert {p.style for p in prompts} >= {"sketch", "pixelated"}
    for p in prompts:
        assert p.text.split().count("sks") + p.text.count("sks,") == 1
        assert p.background != CONCEPTS[name].background
        assert any(phrase in p.text for phrase in BACKGROUND_PHRASES[p.background])


def test_questions_ask_only_what_the_caption_says() -> None:
    for q in questions(300, seed=0):
        assert q.background in (None, q.scene.background)
        assert q.subject_colour in (None, q.scene.colour)
        assert (q.background is not None) == any(p in q.text for p in BACKGROUND_PHRASES[q.scene.background])
        if q.subject_colour is not None:
            assert q.subject_colour in without_background(q.text, q.scene)


def test_prompt() -> None:
    assert prompt("red ball", "grass") == "a photo of a red ball on the grass"
    assert prompt("orange cat", "snow") == "a photo of an orange cat in the snow"
