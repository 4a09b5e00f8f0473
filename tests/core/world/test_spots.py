"""Spots of a figure counted from pixels: the same picture keeps them all, and every kind of damage is noticed."""

from __future__ import annotations

import numpy as np
import pytest

from contextual_inversion.core.world.concepts import CONCEPTS, TEN
from contextual_inversion.core.world.render import concept_images
from contextual_inversion.core.world.scenes import COLOURS
from contextual_inversion.core.world.spots import SMALLEST, colour_name, compare_spots, patches, spot_labels


@pytest.fixture(scope="module")
def goblet() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A goblet, its mask, and the labels of its whole spots."""
    images, masks, _ = concept_images("goblet", 1)
    labels = spot_labels(images[0], masks[0].subject, "orange", "blue")
    for i in range(1, labels.max() + 1):
        if (labels == i).sum() < SMALLEST:
            labels[labels == i] = 0
    return images[0], masks[0].subject, labels


def count(goblet: tuple, copy: np.ndarray) -> object:
    return compare_spots(goblet[0], copy, goblet[1], "orange", "blue")


def test_patches_join_over_edges_only() -> None:
    where = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 1, 1]], bool)
    assert patches(where).tolist() == [[1, 1, 0, 0], [0, 0, 2, 0], [3, 0, 2, 2]]
    assert not patches(np.zeros((3, 3), bool)).any()


def test_colours_have_their_own_names() -> None:
    assert all(colour_name(np.array(rgb)) == name for name, rgb in COLOURS.items())


@pytest.mark.parametrize("name", [c.name for c in TEN.values() if c.texture == "spotted"])
def test_a_picture_keeps_its_own_spots(name: str) -> None:
    images, masks, _ = concept_images(name, 4)
    for image, mask in zip(images, masks, strict=True):
        same = compare_spots(image, image, mask.subject, CONCEPTS[name].second_colour, CONCEPTS[name].colour)
        assert same.kept
        assert same.number >= 8
        assert same.worst == 0


def test_a_lost_spot_is_missed(goblet: tuple) -> None:
    image, _, labels = goblet
    copy = image.copy()
    copy[labels == labels.max()] = COLOURS["blue"]
    seen, before = count(goblet, copy), count(goblet, image)
    assert (seen.found, seen.named, seen.added) == (before.number - 1, before.number - 1, 0)
    assert not seen.kept


def test_a_faded_spot_is_no_longer_its_colour(goblet: tuple) -> None:
    image, _, labels = goblet
    copy = image.copy()
    copy[labels == labels.max()] = COLOURS["pink"]
    seen = count(goblet, copy)
    assert seen.named == seen.number - 1
    assert seen.worst > 60
    assert not seen.kept


def test_spots_that_run_into_one_are_not_found(goblet: tuple) -> None:
    image, figure, labels = goblet
    copy = image.copy()
    copy[figure & (labels.max(1) > 0)[:, None]] = COLOURS["orange"]
    assert count(goblet, copy).found < count(goblet, copy).number / 2


def test_a_new_spot_is_counted(goblet: tuple) -> None:
    image, figure, _ = goblet
    body = figure & (np.square(image.astype(float) - COLOURS["blue"]).sum(-1) < 100)
    y, x = next((y, x) for y, x in zip(*np.nonzero(body), strict=True) if body[y : y + 8, x : x + 8].all())
    copy = image.copy()
    copy[y + 1 : y + 7, x + 1 : x + 7] = COLOURS["orange"]
    seen = count(goblet, copy)
    assert (seen.found, seen.added) == (seen.number, 1)
    assert not seen.kept
