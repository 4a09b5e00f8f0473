"""What words can say: full marks for a model that draws them, none for one that draws another thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from contextual_inversion.core.inspection.world.checks import Judge
from contextual_inversion.core.inspection.world.describing import described, figures, prompts_in_words, two_colours
from contextual_inversion.core.world.concepts import CONCEPTS, RESERVED, TEN
from contextual_inversion.core.world.prompts import EvaluationPrompt
from contextual_inversion.core.world.render import render
from contextual_inversion.core.world.scenes import Scene

N = 24


def test_captions_say_both_colours_and_imitate_no_concept() -> None:
    for one in figures(60, 3):
        assert {one.scene.colour, one.scene.second_colour, one.scene.texture} <= set(one.text.split())
        assert (one.scene.subject, one.scene.colour, one.scene.second_colour) not in RESERVED


def test_renders_of_the_captions_are_right_and_each_others_are_not(judge: Judge) -> None:
    renders = np.stack([render(one.scene)[0] for one in figures(N, 3)])
    found = two_colours(lambda texts, seed: renders, judge, N, 3)
    assert found["right"] == found["on_renders"] >= 0.9
    assert found["n"] == N
    assert two_colours(lambda texts, seed: np.roll(renders, 1, 0), judge, N, 3)["right"] == 0


def scene_of(concept: str, prompt: EvaluationPrompt, seed: int) -> Scene:
    """What the words say, which is not the concept: it has no parts."""
    own = CONCEPTS[concept]
    scene = Scene(
        own.super_category, own.colour, own.texture, own.second_colour, seed=seed, style=prompt.style or "photo"
    )
    place = "left" if prompt.second else "centre"
    return replace(scene, background=prompt.background, second=prompt.second, place=place)


def test_renders_of_the_words_have_their_looks(judge: Judge, autoencode: Callable) -> None:
    known = {p.text: (name, p) for name in TEN for p in prompts_in_words(CONCEPTS[name], 5)}

    def perfect(texts: list[str], seed: int) -> np.ndarray:
        # The judge reads what went through a VAE; raw bricks it takes for wood.
        return autoencode(np.stack([render(scene_of(*known[text], index))[0] for index, text in enumerate(texts)]))

    found = described(perfect, judge, 0, 5)
    assert set(found["concepts"]) == set(TEN)
    assert found["worded"] >= 0.85
    assert found["worded"] <= found["looks"]
    plain = np.stack([render(Scene("star", "red", background="snow"))[0]] * 5)
    assert described(lambda texts, seed: plain[: len(texts)], judge, 0, 5)["looks"] == 0


def test_words_stand_where_the_slot_was() -> None:
    texts = [prompt.text for prompt in prompts_in_words(CONCEPTS["planet"])]
    assert len(set(texts)) == len(texts) == 28
    assert all("orange and blue striped ball" in text and "{" not in text for text in texts)
    assert "a photo of an orange and blue striped ball in the water" in texts
    assert any(text.startswith("the orange and blue striped ball is") for text in texts)
