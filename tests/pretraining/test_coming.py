"""The development concepts to come are unlike the ten, and nothing that the candidate sees imitates them."""

from __future__ import annotations

from contextual_inversion.core.world.coming import COMING
from contextual_inversion.core.world.concepts import CONCEPTS, RESERVED
from contextual_inversion.core.world.drawing import FIGURES
from contextual_inversion.pretraining.coming import RESERVED_TOO
from contextual_inversion.pretraining.pictures import scene


def test_they_differ_from_the_ten_in_look_and_parts() -> None:
    assert not COMING.keys() & CONCEPTS.keys()
    looks = {(c.super_category, frozenset((c.colour, c.second_colour))) for c in CONCEPTS.values()}
    shown = {tuple(map(str, c.parts())) for c in CONCEPTS.values()}
    for concept in COMING.values():
        assert (concept.super_category, frozenset((concept.colour, concept.second_colour))) not in looks
        assert tuple(map(str, concept.parts())) not in shown
        assert len(concept.parts()) > len(FIGURES[concept.super_category]())


def test_no_training_scene_combines_their_class_and_colours() -> None:
    assert len(RESERVED_TOO) == len(RESERVED) + len(COMING)
    drawn = [scene(split, index) for split in ("train", "test") for index in range(1500)]
    seen = {(s.subject, s.colour, s.second_colour) for s in drawn}
    assert len(seen) > 400
    assert not any((shape, a, b) in seen or (shape, b, a) in seen for shape, a, b in RESERVED_TOO)
