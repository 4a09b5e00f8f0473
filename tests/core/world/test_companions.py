"""Two things in every picture: both are there, the prompts tell them apart, and the judge can say where a word went."""

from __future__ import annotations

import numpy as np
import pytest

from contextual_inversion.core.inspection.world.word_target import WordTargets, word_targets
from contextual_inversion.core.world.captions import BACKGROUND_PHRASES
from contextual_inversion.core.world.companions import (
    COMPANIONS,
    class_of,
    companion_for,
    description,
    specific_prompts,
)
from contextual_inversion.core.world.concepts import CONCEPTS, concept_scenes
from contextual_inversion.core.world.prompts import EVALUATION_BACKGROUNDS
from contextual_inversion.core.world.render import concept_images, render
from contextual_inversion.core.world.scenes import Scene

PAIRS = [("goblet", "yellow star"), ("castle", "red ball"), ("racer", "horned-cat"), ("moth", "blue house")]


@pytest.mark.parametrize(("concept", "name"), PAIRS)
def test_both_are_on_every_picture_and_apart(concept, name):
    images, masks, word = concept_images(concept, 4, seed=1, companion=companion_for(concept, name))
    assert images.shape == (4, 128, 128, 3)
    assert word == CONCEPTS[concept].super_category
    sides = []
    for mask in masks:
        assert mask.subject.sum() > mask.second.sum() > 500
        assert not (mask.subject & mask.second).any()
        sides.append(np.nonzero(mask.subject)[1].mean() < np.nonzero(mask.second)[1].mean())
    assert sides == [True, False, True, False]


@pytest.mark.parametrize("concept", CONCEPTS)
def test_without_a_companion_nothing_changed(concept):
    scenes = concept_scenes(concept, 3, seed=2)
    assert all(scene.second is None and scene.place == "centre" for scene in scenes)
    images, masks, _ = concept_images(concept, 3, seed=2)
    assert not any(mask.second.any() for mask in masks)
    assert np.array_equal(images, np.stack([render(scene)[0] for scene in scenes]))


def test_two_of_one_class_are_refused():
    with pytest.raises(ValueError, match="both a cat"):
        companion_for("horned-cat", "wizard-cat")
    with pytest.raises(ValueError, match="both a cat"):
        companion_for("horned-cat", "white cat")


@pytest.mark.parametrize("companion", [None, *COMPANIONS])
def test_specific_prompts_name_the_companion_and_no_evaluated_background(companion):
    concept = next(
        name
        for name in CONCEPTS
        if companion is None or class_of(COMPANIONS[companion]) != CONCEPTS[name].super_category
    )
    beside = None if companion is None else companion_for(concept, companion)
    prompts = specific_prompts(concept, beside)
    assert len(set(prompts)) == len(prompts) == (40 if companion is None else 50)
    assert all(prompt.count("{}") == 1 for prompt in prompts)
    assert not any(CONCEPTS[concept].super_category in prompt.split() for prompt in prompts)
    held_out = [phrase for name in EVALUATION_BACKGROUNDS for phrase in BACKGROUND_PHRASES[name]]
    assert not any(prompt.endswith(phrase) for prompt in prompts for phrase in held_out)
    if beside is not None:
        assert sum(description(beside) in prompt for prompt in prompts) == 24


@pytest.mark.parametrize(("concept", "name"), PAIRS)
def test_the_judge_says_where_a_word_went(autoencode, concept, name):
    """On renders through the VAE, where it is known: each alone, both together, and something else."""
    companion = companion_for(concept, name)
    elsewhere = [Scene(CONCEPTS[concept].subject, background=place, seed=7) for place in ("grass", "water", "bricks")]
    other = CONCEPTS[companion.concept] if companion.concept else None
    alone = [
        Scene(other.subject if other else companion.shape, companion.colour, background=place, seed=8)
        for place in ("sand", "night")
    ]
    both = concept_scenes(concept, 4, seed=3, companion=companion)
    neither = [Scene("fish" if concept != "unicorn-fish" else "cup", "red", background="wood", seed=9)]

    def judged(scenes: list[Scene]) -> WordTargets:
        return word_targets(autoencode(np.stack([render(scene)[0] for scene in scenes])), concept, companion)

    assert judged(elsewhere) == WordTargets(3, 0, 0, 0)
    assert judged(alone) == WordTargets(0, 2, 0, 0)
    assert judged(neither) == WordTargets(0, 0, 0, 1)
    # Second objects of the judge's training are shapes: of two concepts it sees the first alone (docs/tiny_model.md).
    seen = judged(both)
    assert (seen.both if companion.concept is None else seen.concept) >= 3
    figures = judged([*elsewhere, *alone, *neither]).figures()
    assert (figures["concept"], figures["companion"], figures["neither"]) == (3 / 6, 2 / 6, 1 / 6)
    low, high = figures["concept_interval"]
    assert low < 0.5 < high
