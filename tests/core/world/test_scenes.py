"""Laws of the drawn world: equal scenes are equal pictures, masks are exact, styles change the picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from contextual_inversion.core.world.concepts import CONCEPTS, RESERVED
from contextual_inversion.core.world.drawing import FIGURES
from contextual_inversion.core.world.render import concept_images, render
from contextual_inversion.core.world.scenes import (
    BACKGROUNDS,
    COLOURS,
    CREATURES,
    IMAGE_SIZE,
    SHAPES,
    STYLES,
    WORN,
    Scene,
    SecondObject,
    sample_scene,
)


def scenes(n: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, RESERVED) for _ in range(n)]


def test_equal_scenes_give_equal_pictures() -> None:
    for scene in scenes(12):
        (a, masks_a), (b, masks_b) = render(scene), render(replace(scene))
        assert a.dtype == np.uint8
        assert a.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
        assert np.array_equal(a, b)
        assert np.array_equal(masks_a.subject, masks_b.subject)


def test_another_seed_gives_another_picture() -> None:
    for scene in scenes(6):
        assert not np.array_equal(render(scene)[0], render(replace(scene, seed=scene.seed + 1))[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_subject_mask_is_exactly_where_its_colour_matters(shape: str) -> None:
    """Recolouring the subject changes pixels inside its mask alone, and most of those."""
    scene = Scene(shape, "red", background="sand", seed=3)
    (red, masks), (blue, _) = render(scene), render(replace(scene, colour="blue"))
    changed = (red != blue).any(-1)
    assert not changed[~masks.subject].any()
    assert changed[masks.subject].mean() > 0.5
    rows, columns = np.nonzero(masks.subject)
    assert 60 <= max(np.ptp(rows), np.ptp(columns)) <= 110


def test_second_object_mask_is_exact_and_apart_from_the_subject() -> None:
    scene = Scene("cat", second=SecondObject("star", "red"), place="left", seed=5)
    drawn, masks = render(scene)
    recoloured, _ = render(replace(scene, second=SecondObject("star", "blue")))
    changed = (drawn != recoloured).any(-1)
    assert changed.any()
    assert not changed[~masks.second].any()
    assert masks.second.sum() > 400
    assert not (masks.second & masks.subject).any()


def test_without_a_second_object_its_mask_is_empty() -> None:
    assert not render(Scene("ball"))[1].second.any()


def test_backgrounds_and_styles_all_differ() -> None:
    pictures = [render(Scene("ball", background=b, seed=1))[0] for b in BACKGROUNDS]
    pictures += [render(Scene("ball", style=s, seed=1))[0] for s in STYLES[1:]]
    flat = np.stack(pictures).reshape(len(pictures), -1).astype(float)
    distances = np.abs(flat[:, None] - flat[None]).mean(-1) + 1e9 * np.eye(len(flat))
    assert distances.min() > 5


def test_training_world_shows_no_held_out_concept() -> None:
    for scene in scenes(4000):
        assert scene.subject in SHAPES
        assert scene.second is None or scene.second.shape in SHAPES
        for pair in ((scene.colour, scene.second_colour), (scene.second_colour, scene.colour)):
            assert (scene.subject, *pair) not in RESERVED
        assert scene.worn in WORN
        assert scene.colour in COLOURS


def test_concepts_are_enough_of_both_kinds_with_known_classes() -> None:
    creatures = [c for c in CONCEPTS.values() if c.creature]
    assert len(creatures) >= 4
    assert len(CONCEPTS) - len(creatures) >= 4
    assert all(c.super_category in FIGURES for c in CONCEPTS.values())
    assert set(CREATURES) <= set(SHAPES)


@pytest.mark.parametrize("name", CONCEPTS)
def test_concept_images_share_one_background_and_repeat(name: str) -> None:
    images, masks, word = concept_images(name, n=3, seed=1)
    again, _, _ = concept_images(name, n=3, seed=1)
    assert images.shape == (3, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert np.array_equal(images, again)
    assert word == CONCEPTS[name].super_category
    assert not np.array_equal(images[0], images[1])
    assert all(0.1 < m.subject.mean() < 0.7 and not m.second.any() for m in masks)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(KeyError):
        render(Scene("concept:nobody"))
    with pytest.raises(KeyError):
        concept_images("nobody")
    with pytest.raises(ValueError, match="style"):
        render(Scene("ball", style="oil"))
