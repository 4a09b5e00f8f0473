"""The four concepts for development alone are unlike the ten, and nothing that the model sees imitates them."""

from __future__ import annotations

from contextual_inversion.core.world.concepts import CONCEPTS, RESERVED, TEN
from contextual_inversion.core.world.development import FOUR
from contextual_inversion.core.world.drawing import FIGURES
from contextual_inversion.pretraining.pictures import scene


def test_they_differ_from_the_ten_in_look_and_parts() -> None:
    assert not FOUR.keys() & TEN.keys()
    looks = {(c.super_category, frozenset((c.colour, c.second_colour))) for c in TEN.values()}
    shown = {tuple(map(str, c.parts())) for c in TEN.values()}
    for concept in FOUR.values():
        assert (concept.super_category, frozenset((concept.colour, concept.second_colour))) not in looks
        assert tuple(map(str, concept.parts())) not in shown
        assert len(concept.parts()) > len(FIGURES[concept.super_category]())


def test_no_training_scene_combines_their_class_and_colours() -> None:
    assert len(RESERVED) == len(CONCEPTS) == len(TEN) + len(FOUR)
    drawn = [scene(split, index) for split in ("train", "test") for index in range(1500)]
    seen = {(s.subject, s.colour, s.second_colour) for s in drawn}
    assert len(seen) > 400
    assert not any((shape, a, b) in seen or (shape, b, a) in seen for shape, a, b in RESERVED)
