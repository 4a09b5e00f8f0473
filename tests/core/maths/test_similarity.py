"""Cosines against torch's, neighbours against a plain search, divergences against torch's KLDivLoss."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from contextual_inversion.core.maths import similarity

seeds = st.integers(0, 2**32 - 1)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@given(seeds, st.sampled_from([0, 1, -1]))
def test_the_cosine_is_that_of_torch(seed, axis):
    a, b = (torch.asarray(normal(seed + i, 4, 5)) for i in range(2))
    a[0], b[:, 1] = 0, 0
    expected = functional.cosine_similarity(a, b, dim=axis)
    torch.testing.assert_close(similarity.cosine(a, b, axis), expected)
    torch.testing.assert_close(similarity.cosine_distance(a, b, axis), 1 - expected)


@given(seeds, st.floats(1e-9, 1e-5))
def test_the_distance_keeps_its_digits_where_vectors_nearly_agree(seed, angle):
    a = normal(seed, 1, 8)
    a /= np.linalg.norm(a)
    sideways = normal(seed + 1, 1, 8)
    sideways -= (sideways @ a.T) * a
    b = a + np.tan(angle) * sideways / np.linalg.norm(sideways)
    expected = 2 * np.sin(angle / 2) ** 2
    np.testing.assert_allclose(similarity.cosine_distance(a, b), expected, rtol=1e-5)


def test_zero_vectors():
    zero, one = np.zeros((1, 3)), np.ones((1, 3))
    assert similarity.cosine(zero, one) == 0
    assert similarity.cosine_distance(zero, one) == 1
    assert similarity.cosine_distance(one, zero) == 1
    assert similarity.cosine_distance(zero, zero) == 0


@given(seeds, st.integers(1, 5), st.sets(st.integers(0, 19), max_size=10))
def test_the_nearest_rows_are_those_of_a_plain_search(seed, k, exclude):
    v, table = normal(seed, 3, 6), normal(seed + 1, 20, 6)
    indices, cosines = similarity.nearest_rows(v, table, k, exclude=sorted(exclude))
    for row, found, values in zip(v, indices, cosines, strict=True):
        every = {i: row @ t / np.linalg.norm(row) / np.linalg.norm(t) for i, t in enumerate(table) if i not in exclude}
        assert found.tolist() == sorted(every, key=every.get, reverse=True)[:k]
        np.testing.assert_allclose(values, [every[i] for i in found], rtol=1e-10)


@given(seeds, st.integers(0, 19), st.floats(0.1, 10))
def test_a_row_is_nearest_to_itself_whatever_its_length(seed, i, scale):
    table = normal(seed, 20, 6)
    indices, cosines = similarity.nearest_rows(scale * table[[i]], table)
    assert indices.tolist() == [[i]]
    np.testing.assert_allclose(cosines, 1, rtol=1e-12)


@given(seeds, st.integers(0, 6), st.integers(0, 6))
def test_sim1_and_sim2_are_cosines_of_two_tokens(seed, i, j):
    outputs, reference = normal(seed, 7, 5), normal(seed + 1, 9, 5)

    def cos(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    np.testing.assert_allclose(similarity.sim1(outputs, i, j), cos(outputs[i], outputs[j]), rtol=1e-10)
    np.testing.assert_allclose(similarity.sim2(outputs, i, reference, j), cos(outputs[i], reference[j]), rtol=1e-10)
    np.testing.assert_allclose(similarity.sim2(outputs, i, outputs, i), 1, rtol=1e-12)


@given(seeds, st.integers(1, 4))
def test_the_raw_divergence_is_that_of_kldivloss(seed, contexts):
    """The authors' code gives `batchmean` one row a context token, so what it takes is their mean."""
    concept, *others = np.random.default_rng(seed).uniform(0.001, 0.1, (1 + contexts, 16))
    a, b = torch.asarray(concept).expand(contexts, -1), torch.asarray(np.stack(others))
    loss = torch.nn.KLDivLoss(reduction="batchmean")
    expected = (loss(b.log(), a) + loss(a.log(), b)) / 2
    torch.testing.assert_close(similarity.symmetric_kl(a, b).mean(), expected)


@given(seeds, st.floats(0.01, 100))
def test_the_pixel_divergence_is_a_divergence_of_distributions(seed, scale):
    a, b = (np.random.default_rng(seed + i).uniform(0.001, 0.1, (2, 16)) for i in range(2))
    divergence = similarity.pixel_symmetric_kl(a, b)
    p, q = a / a.sum(1, keepdims=True), b / b.sum(1, keepdims=True)
    expected = ((p * np.log(p / q)).sum(1) + (q * np.log(q / p)).sum(1)) / 2
    np.testing.assert_allclose(divergence, expected, rtol=1e-10)
    assert np.all(divergence > 0)
    np.testing.assert_allclose(similarity.pixel_symmetric_kl(scale * a, b), divergence, rtol=1e-9)
    np.testing.assert_allclose(similarity.pixel_symmetric_kl(b, a), divergence, rtol=1e-12)
    assert np.all(similarity.pixel_symmetric_kl(a, a) == 0)


def test_a_map_that_underflowed_has_a_finite_divergence():
    a, b = np.array([0.5, 0.5, 0.0]), np.array([0.5, 0.0, 0.5])
    assert np.isfinite(similarity.symmetric_kl(a, b))
    assert np.isfinite(similarity.pixel_symmetric_kl(a.astype(np.float32), b.astype(np.float32)))


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"v \(2, 3\), table \(5, 4\)"):
        similarity.nearest_rows(np.ones((2, 3)), np.ones((5, 4)))
    with pytest.raises(ValueError, match="k = 4 of 3 allowed rows"):
        similarity.nearest_rows(np.ones((2, 4)), np.ones((5, 4)), 4, exclude=[0, 1])
    with pytest.raises(ValueError, match=r"a \(2, 3\), b \(3,\)"):
        similarity.cosine_distance(np.ones((2, 3)), np.ones(3))
    with pytest.raises(ValueError, match=r"a \(2,\), b \(3,\)"):
        similarity.symmetric_kl(np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match=r"widths differ: \(7, 4\) and \(7, 5\)"):
        similarity.sim2(np.ones((7, 4)), 0, np.ones((7, 5)), 0)
