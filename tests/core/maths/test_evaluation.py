"""The measures against plain NumPy float64 over all pairs, on every array library."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contextual_inversion.core.maths import evaluation

seeds = st.integers(0, 2**32 - 1)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def pair_cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(sum(x * y for x, y in zip(a, b, strict=True)) / np.sqrt((a**2).sum() * (b**2).sum()))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_library_gives_the_mean_of_all_pairs(backend, dtype):
    pictures, references = normal(1, 5, 7), normal(2, 3, 7)
    expected = [[pair_cosine(p, r) for r in references] for p in pictures]
    found = backend.numpy(backend.call(evaluation.reference_similarity, *backend.tree([pictures, references], dtype)))
    np.testing.assert_allclose(found, np.mean(expected, axis=1), atol=1e-6 if dtype == "float32" else 1e-12)
    captions = normal(3, 5, 7)
    found = backend.numpy(backend.call(evaluation.text_similarity, *backend.tree([pictures, captions], dtype)))
    clipped = [max(0.0, pair_cosine(p, c)) for p, c in zip(pictures, captions, strict=True)]
    assert 0 in clipped, "the example is meant to have a caption that points away"
    np.testing.assert_allclose(found, clipped, atol=1e-6 if dtype == "float32" else 1e-12)


def test_every_library_cuts_out_the_same_foreground(backend):
    picture, mask = abs(normal(1, 4, 6, 3)), (normal(2, 4, 6) > 0).astype(np.float64)
    found = backend.numpy(evaluation.foreground(*backend.tree([picture, mask], "float64"), 0.25))
    for y in range(4):
        for x in range(6):
            np.testing.assert_array_equal(found[y, x], picture[y, x] if mask[y, x] else [0.25] * 3)


@given(seeds, st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_lengths_of_features_do_not_count(seed, a, b):
    pictures, references = normal(seed, 4, 6), normal(seed + 1, 3, 6)
    similarity = evaluation.reference_similarity(pictures, references)
    np.testing.assert_allclose(evaluation.reference_similarity(a * pictures, b * references), similarity, atol=1e-12)


@given(seeds)
def test_a_picture_among_copies_of_itself_has_similarity_one(seed):
    picture = normal(seed, 1, 6)
    np.testing.assert_allclose(evaluation.reference_similarity(picture, np.repeat(picture, 3, axis=0)), 1)
    np.testing.assert_allclose(evaluation.text_similarity(picture, picture), 1)
    assert evaluation.text_similarity(picture, -picture) == 0


def test_the_background_does_not_count():
    mask = np.zeros((2, 3))
    mask[0, 0] = 1
    one, other = np.zeros((2, 3, 3)), np.full((2, 3, 3), 0.7)
    one[0, 0] = other[0, 0] = 0.9
    np.testing.assert_array_equal(evaluation.foreground(one, mask, 0.5), evaluation.foreground(other, mask, 0.5))


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        evaluation.reference_similarity(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ValueError, match="shapes differ"):
        evaluation.text_similarity(np.ones((2, 3)), np.ones((1, 3)))
    with pytest.raises(ValueError, match="as large as its picture"):
        evaluation.foreground(np.ones((2, 3, 3)), np.ones((3, 2)), 0)
