"""The judge against renders that went through the model's VAE: right at least 95 times of 100, check by check."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from contextual_inversion.core.inspection.world.checks import KINDS, Judge, subject_similarity, to_batch
from contextual_inversion.core.inspection.world.report import questions, world_report
from contextual_inversion.core.models.tiny import tiny_weights_path
from contextual_inversion.core.world.concepts import CONCEPTS
from contextual_inversion.core.world.render import concept_images, render
from contextual_inversion.core.world.scenes import BACKGROUNDS, Scene

pytest.importorskip("diffusers")
N = 100


@pytest.fixture(scope="module")
def rendered_report(judge: Judge, autoencode: Callable) -> dict:
    """A world report on a perfect model: one that answers a caption with the render of its scene."""
    asked = {q.text: q.scene for q in questions(N, seed=12345)}

    def perfect(texts: list[str], seed: int) -> np.ndarray:
        return autoencode(np.stack([render(asked[text])[0] for text in texts]))

    return world_report(perfect, n=N, seed=12345, autoencode=autoencode, judge=judge)


@pytest.mark.parametrize("key", ["background", "subject_colour", "subject_shape", "second_object", "style"])
def test_right_on_renders(rendered_report: dict, key: str) -> None:
    assert rendered_report["judge_on_renders"][key] >= 0.95
    assert rendered_report[key] == rendered_report["judge_on_renders"][key]


@pytest.mark.parametrize("key", ["background", "subject_colour", "subject_shape"])
def test_shuffled_captions_score_near_chance(rendered_report: dict, key: str) -> None:
    assert rendered_report["shuffled_floor"][key] < 0.35


def test_sees_no_second_object_where_there_is_none(rendered_report: dict) -> None:
    assert rendered_report["nothing_else"] >= 0.95


def test_recognises_every_concept_on_every_background(judge: Judge, autoencode: Callable) -> None:
    scenes = [
        Scene(c.subject, background=b, seed=7000 + i) for i, c in enumerate(CONCEPTS.values()) for b in BACKGROUNDS
    ]
    verdicts = judge.read(autoencode(np.stack([render(s)[0] for s in scenes])))
    assert np.mean([v.subject == s.subject for v, s in zip(verdicts, scenes, strict=True)]) >= 0.95
    assert np.mean([v.background == s.background for v, s in zip(verdicts, scenes, strict=True)]) >= 0.95


def test_the_class_is_not_taken_for_the_concept(judge: Judge, autoencode: Callable) -> None:
    scenes = [Scene(c.super_category, c.colour, background=b) for c in CONCEPTS.values() for b in BACKGROUNDS[:3]]
    verdicts = judge.read(autoencode(np.stack([render(s)[0] for s in scenes])))
    assert np.mean([v.subject == s.subject for v, s in zip(verdicts, scenes, strict=True)]) >= 0.95


def test_foreground_mask_agrees_with_the_render(judge: Judge, autoencode: Callable) -> None:
    drawn = [render(q.scene) for q in questions(40, seed=99)]
    verdicts = judge.read(autoencode(np.stack([image for image, _ in drawn])))
    overlaps = []
    for verdict, (_, masks) in zip(verdicts, drawn, strict=True):
        true = masks.subject | masks.second
        overlaps.append((verdict.mask & true).sum() / (verdict.mask | true).sum())
    assert np.mean(overlaps) >= 0.9


def test_similarity_prefers_the_concept_and_ignores_the_background(judge: Judge) -> None:
    """The concept in a new place is nearer to its pictures than its class in the old place."""
    for name, concept in CONCEPTS.items():
        references, _, word = concept_images(name)
        elsewhere = "water" if concept.background != "water" else "sand"
        same = render(Scene(concept.subject, background=elsewhere, seed=11))[0]
        other = render(Scene(word, "green", background=concept.background, seed=11))[0]
        verdicts = judge.read(np.stack([same, other]))
        near, far = subject_similarity(verdicts, judge.read(references))
        assert near > far
        assert near <= 1 + 1e-5
        scores = judge.concept_score(verdicts, name)
        assert 0 <= scores[1] < scores[0] <= 1


def test_both_forms_of_input_agree(judge: Judge) -> None:
    images = np.stack([render(Scene("cat", seed=i))[0] for i in range(2)])
    as_float = (to_batch(images) + 1) / 2
    for a, b in zip(judge.read(images), judge.read(as_float), strict=True):
        assert (a.subject, a.background) == (b.subject, b.background)
        assert np.allclose(a.kinds, b.kinds, atol=1e-4)
    assert len(judge.read(images)[0].kinds) == len(KINDS)
    with pytest.raises(ValueError, match="128 x 128"):
        judge.read(np.zeros((1, 64, 64, 3), np.uint8))


def test_its_file_is_small() -> None:
    assert tiny_weights_path("judge").stat().st_size <= 1_400_000
