"""METHODS.md D1: merged and on the fly are one thing, over array libraries and their types."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contextual_inversion.core.maths.low_rank import low_rank, low_rank_approximation, low_rank_weight

seeds = st.integers(0, 2**16)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


@given(seeds, st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.floats(-3, 3))
def test_merged_is_on_the_fly(seed, rank, inputs, outputs, scale):
    x, w = normal(seed, 2, 3, inputs), normal(seed + 1, inputs, outputs)
    a, b = normal(seed + 2, inputs, rank), normal(seed + 3, rank, outputs)
    merged = w + low_rank_weight(a, b, scale)
    np.testing.assert_allclose(x @ merged, x @ w + low_rank(x, a, b, scale), rtol=1e-9, atol=1e-9)
    assert np.linalg.matrix_rank(low_rank_weight(a, b)) <= rank


@given(seeds, st.floats(-3, 3))
def test_the_scale_is_a_factor_and_deltas_add_up(seed, scale):
    x, a, b = normal(seed, 4, 5), normal(seed + 1, 5, 2), normal(seed + 2, 2, 3)
    c, d = normal(seed + 3, 5, 1), normal(seed + 4, 1, 3)
    np.testing.assert_allclose(low_rank(x, a, b, scale), scale * low_rank(x, a, b), rtol=1e-9, atol=1e-12)
    both = low_rank(x, np.concatenate([a, c], 1), np.concatenate([b, d], 0))
    np.testing.assert_allclose(both, low_rank(x, a, b) + low_rank(x, c, d), rtol=1e-9, atol=1e-9)
    assert not low_rank(x, a, 0 * b).any()


@pytest.mark.parametrize("middle", [(), (3,), (3, 2)])
def test_a_delta_for_every_sample(middle):
    x, a, b = normal(0, 4, *middle, 5), normal(1, 4, 5, 2), normal(2, 4, 2, 3)
    expected = np.stack([low_rank(x[i], a[i], b[i], 0.5) for i in range(4)])
    np.testing.assert_allclose(low_rank(x, a, b, 0.5), expected, rtol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_every_library_gives_what_numpy_gives(backend, dtype, tolerance):
    x, w, a, b = normal(0, 4, 3, 5), normal(1, 5, 6), normal(2, 5, 2), normal(3, 2, 6)
    cases = [
        (lambda x, a, b: low_rank(x, a, b, 0.7), (x, a, b)),
        (lambda x, a, b: low_rank(x, a, b, 0.7), (x, normal(4, 4, 5, 2), normal(5, 4, 2, 6))),
        (lambda w, a, b: w + low_rank_weight(a, b, 0.7), (w, a, b)),
    ]
    for function, arrays in cases:
        found = backend.call(function, *backend.tree(list(arrays), dtype))
        assert str(found.dtype).endswith(dtype)
        np.testing.assert_allclose(backend.numpy(found), function(*arrays), rtol=tolerance, atol=10 * tolerance)


@given(seeds, st.integers(1, 4), st.integers(1, 6), st.integers(4, 6))
def test_the_approximation_misses_what_the_smaller_singular_values_hold(seed, rank, own, outputs):
    weight = normal(seed, 5, own) @ normal(seed + 1, own, outputs)
    a, b = low_rank_approximation(weight, rank)
    sizes = np.linalg.svd(weight, compute_uv=False)
    np.testing.assert_allclose(a.T @ a, np.eye(rank), atol=1e-9)
    np.testing.assert_allclose(((weight - a @ b) ** 2).sum(), (sizes[rank:] ** 2).sum(), rtol=1e-8, atol=1e-8)
    if own <= rank:
        np.testing.assert_allclose(a @ b, weight, atol=1e-8)


def test_every_library_approximates_as_numpy_does(backend):
    weight = normal(0, 5, 3) @ normal(1, 3, 6)
    (found,) = backend.tree([weight], "float64")
    # Signs of singular vectors are each library's own; their product is not.
    product = backend.call(lambda w: low_rank_weight(*low_rank_approximation(w, 2)), found)
    np.testing.assert_allclose(backend.numpy(product), low_rank_weight(*low_rank_approximation(weight, 2)), rtol=1e-9)


@pytest.mark.parametrize("rank", [0, 4])
def test_a_rank_that_cannot_be_is_refused(rank):
    with pytest.raises(ValueError, match=r"within 1 \.\. 3"):
        low_rank_approximation(np.ones((3, 5)), rank)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"a \(5, 2\), b \(3, 4\)"):
        low_rank(np.ones((1, 5)), np.ones((5, 2)), np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"x \(1, 4\), a \(5, 2\)"):
        low_rank(np.ones((1, 4)), np.ones((5, 2)), np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"a \(5, 2\), b \(3, 4\)"):
        low_rank_weight(np.ones((5, 2)), np.ones((3, 4)))
