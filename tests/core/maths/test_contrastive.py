"""METHODS.md D2 to D7: NumPy in float64 is the reference; the laws of 3.4 and 3.6."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contextual_inversion.core.maths import contrastive, dual_path
from contextual_inversion.core.maths.similarity import nearest_rows, unit

seeds = st.integers(0, 2**16)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def cos(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def literal(v, positives, negatives, tau, excluded):
    """The formula as it stands in METHODS.md D3."""
    losses = []
    for i, anchor in enumerate(v):
        near = sum(np.exp(cos(anchor, t) / tau) for t in positives[i])
        far = sum(np.exp(cos(anchor, t) / tau) for j, t in enumerate(negatives) if not excluded[i, j])
        losses.append(-np.log(near / (near + far)))
    return np.mean(losses)


@given(seeds, st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.floats(0.05, 2))
def test_the_loss_is_its_formula(seed, n, k, m, tau):
    v, positives, negatives = normal(seed, n, 6), normal(seed + 1, n, k, 6), normal(seed + 2, m, 6)
    excluded = np.random.default_rng(seed).random((n, m)) < 0.3
    found = contrastive.contrastive_loss(v, positives, negatives, tau=tau, excluded=excluded)
    np.testing.assert_allclose(found, literal(v, positives, negatives, tau, excluded), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_loss_on_every_library(backend, dtype):
    arrays = [normal(0, 3, 6), normal(1, 3, 4, 6), normal(2, 5, 6)]
    excluded = np.random.default_rng(0).random((3, 5)) < 0.3
    found = backend.call(
        lambda v, p, n, e: contrastive.contrastive_loss(v, p, n, excluded=e),
        *backend.tree(arrays, dtype),
        backend.array(excluded),
    )
    assert str(found.dtype).endswith(dtype)
    expected = literal(*arrays, contrastive.TAU, excluded)
    np.testing.assert_allclose(backend.numpy(found), expected, rtol=1e-8 if dtype == "float64" else 1e-4)


@given(seeds, st.floats(0.1, 10))
def test_only_directions_count_and_the_loss_is_never_negative(seed, scale):
    v, positives, negatives = normal(seed, 3, 6), normal(seed + 1, 3, 4, 6), normal(seed + 2, 5, 6)
    loss = contrastive.contrastive_loss(v, positives, negatives)
    assert loss >= 0
    np.testing.assert_allclose(contrastive.contrastive_loss(scale * v, positives, negatives), loss, rtol=1e-9)
    np.testing.assert_allclose(contrastive.contrastive_loss(v, positives, scale * negatives), loss, rtol=1e-9)
    more = np.concatenate([negatives, normal(seed + 3, 1, 6)])
    assert contrastive.contrastive_loss(v, positives, more) >= loss


def test_without_a_negative_the_loss_and_its_gradient_are_zero(autograd):
    v, positives = normal(0, 1, 6), normal(1, 1, 4, 6)

    def alone(v, positives):
        return contrastive.contrastive_loss(v, positives, v, excluded=autograd.array(np.ones((1, 1), dtype=bool)))

    for gradient in autograd.gradient(alone, v, positives):
        assert np.array_equal(gradient, np.zeros_like(gradient))
    assert contrastive.contrastive_loss(v, positives, v, excluded=np.ones((1, 1), dtype=bool)) == 0
    assert contrastive.contrastive_loss(v, positives, np.zeros((0, 6))) == 0


def test_gradients_agree_with_central_differences(autograd):
    arrays = normal(0, 3, 5), normal(1, 3, 4, 5), normal(2, 6, 5)
    gradients = autograd.gradient(lambda *a: contrastive.contrastive_loss(*a, tau=0.5), *arrays)
    for i, array in enumerate(arrays):
        direction, h = normal(9 + i, *array.shape), 1e-6
        ends = [
            contrastive.contrastive_loss(
                *[a + s * h * direction if j == i else a for j, a in enumerate(arrays)], tau=0.5
            )
            for s in (1, -1)
        ]
        np.testing.assert_allclose(
            (gradients[i] * direction).sum(), (ends[0] - ends[1]) / (2 * h), rtol=1e-5, atol=1e-9
        )


def test_following_the_loss_moves_towards_a_word_and_away_from_others(autograd):
    v, positives, negatives = normal(0, 1, 8), normal(1, 1, 3, 8), normal(2, 4, 8)
    start = v

    def loss(v):
        return contrastive.contrastive_loss(v, autograd.array(positives), autograd.array(negatives), tau=0.5)

    for _ in range(20):
        v = v - 2 * autograd.gradient(loss, v)[0]
    before, after = (contrastive.contrastive_loss(x, positives, negatives, tau=0.5) for x in (start, v))
    assert after < before / 2
    # Being near one of the words is enough; being far from all of the others is wanted.
    assert max(cos(v[0], t) for t in positives[0]) > max(cos(start[0], t) for t in positives[0])
    assert max(cos(v[0], t) for t in negatives) < max(cos(start[0], t) for t in negatives)


@given(seeds, st.integers(1, 5))
def test_the_nearest_tokens_are_the_nearest_rows(seed, k):
    v, table = normal(seed, 3, 6), normal(seed + 1, 20, 6)
    expected, _ = nearest_rows(v, table, k)
    assert np.array_equal(contrastive.nearest_tokens(v, unit(table), k), expected)


def test_the_nearest_tokens_on_every_library(backend):
    v, table = normal(0, 3, 6), unit(normal(1, 20, 6))
    found = contrastive.nearest_tokens(*backend.tree([v, table]), 4)
    assert np.array_equal(backend.numpy(found), contrastive.nearest_tokens(v, table, 4))


@given(seeds)
def test_the_other_subjects_of_a_batch_are_its_negatives(seed):
    v, positives, subjects = normal(seed, 4, 6), normal(seed + 1, 4, 3, 6), np.array([0, 0, 1, 2])
    excluded = subjects[:, None] == subjects
    found = contrastive.contrastive_loss(v, positives, v, excluded=excluded)
    np.testing.assert_allclose(found, literal(v, positives, v, contrastive.TAU, excluded), rtol=1e-8)


def test_the_penalty(backend):
    v = normal(0, 3, 5)
    np.testing.assert_allclose(backend.numpy(contrastive.norm_penalty(backend.array(v))), (v**2).sum(1).mean())


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_the_blend_is_linear_and_exact_at_its_ends(backend, alpha):
    soft, hard = normal(0, 2, 3), normal(1, 2, 3)
    given = backend.tree([soft, hard])
    found = backend.numpy(dual_path.blend(*given, alpha))
    np.testing.assert_allclose(found, hard + alpha * (soft - hard), rtol=1e-9, atol=1e-12)
    assert np.array_equal(backend.numpy(dual_path.blend(*given, 0.0)), hard)
    assert np.array_equal(backend.numpy(dual_path.blend(*given, 1.0)), soft)
    same = backend.numpy(dual_path.blend(given[0], given[0], alpha))
    np.testing.assert_allclose(same, soft, rtol=1e-12)


def test_what_cannot_be_is_refused():
    v, words = np.ones((2, 3)), np.ones((2, 4, 3))
    with pytest.raises(ValueError, match="shapes differ"):
        contrastive.contrastive_loss(v, words, np.ones((5, 4)))
    with pytest.raises(ValueError, match="shapes differ"):
        contrastive.contrastive_loss(v, words, v, excluded=np.ones((1, 1), dtype=bool))
    with pytest.raises(ValueError, match="k = 6 of 5 words"):
        contrastive.nearest_tokens(v, np.ones((5, 3)), 6)
    for alpha in (-0.01, 1.01, float("nan")):
        with pytest.raises(ValueError, match="between 0"):
            dual_path.blend(v, v, alpha)
    with pytest.raises(ValueError, match=r"soft \(2, 3\)"):
        dual_path.blend(v, v[:1], 0.5)
