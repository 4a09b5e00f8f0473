"""DTI's step (METHODS.md 5.1) and slerp, against NumPy in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contextual_inversion.core.maths import norms, sphere

seeds = st.integers(0, 2**32 - 1)


def rows(seed, n=3, d=8):
    return np.random.default_rng(seed).normal(size=(n, d))


def rule(e, gradient, toward, rate, kappa):
    """METHODS.md 5.1 row by row, as it is written there: v on the unit sphere, e = m v."""
    found = []
    for row, slope, other in zip(e, gradient, toward, strict=True):
        m = np.linalg.norm(row)
        v, mu = row / m, other / np.linalg.norm(other)
        g = m * slope - kappa * mu
        g = g - (g @ v) * v
        g = g / np.linalg.norm(g)
        v = v - rate * g
        found.append(m * v / np.linalg.norm(v))
    return np.array(found)


def step(e, gradient, toward, rate, kappa):
    moved = sphere.dti_step(e, gradient, toward, rate=rate, kappa=kappa)
    return norms.constrain("dti", moved, norms.row_norms(e), step=1)[0]


@given(seeds, st.floats(1e-3, 0.5), st.sampled_from([0.0, 1e-4, 0.3, 50.0]), st.sampled_from(["numpy", "torch"]))
def test_a_step_is_that_of_the_rule(seed, rate, kappa, library):
    e, gradient, toward = (3 * rows(seed + number) for number in range(3))
    given_ = [torch.from_numpy(one) for one in (e, gradient, toward)] if library == "torch" else [e, gradient, toward]
    found = np.asarray(step(*given_, rate, kappa))
    np.testing.assert_allclose(found, rule(e, gradient, toward, rate, kappa), rtol=1e-9, atol=1e-12)


@given(seeds, st.floats(1e-3, 0.5), st.floats(1e-6, 1e6))
def test_every_step_turns_by_one_angle_whatever_the_gradient_is(seed, rate, size):
    e, gradient = rows(seed), size * rows(seed + 1)
    found = step(e, gradient, e, rate, 0.0)
    cosines = (norms.rescale(e, 1.0) * norms.rescale(found, 1.0)).sum(1)
    np.testing.assert_allclose(np.degrees(np.arccos(np.clip(cosines, -1, 1))), math.degrees(math.atan(rate)), rtol=1e-4)
    assert math.degrees(math.atan(0.04)) == pytest.approx(2.29, abs=0.01), "DTI's own: rate 0.01 times a batch of 4"
    np.testing.assert_allclose(norms.row_norms(found), norms.row_norms(e), rtol=1e-12)


@given(seeds)
def test_without_a_gradient_the_pull_alone_leads_to_the_class_word(seed):
    e, toward = rows(seed), rows(seed + 1)
    for _ in range(200):
        e = step(e, np.zeros_like(e), toward, 0.05, 1e-4)
    apart = np.degrees(np.arccos(np.clip((norms.rescale(e, 1.0) * norms.rescale(toward, 1.0)).sum(1), -1, 1)))
    assert (apart < 3).all()  # as near as steps of one angle can end
    here = rows(seed)
    np.testing.assert_allclose(step(here, np.zeros_like(here), toward, 0.05, 0.0), here, rtol=1e-12)


def test_where_there_is_no_slope_along_the_sphere_nothing_moves():
    e = rows(0)
    np.testing.assert_allclose(step(e, np.zeros_like(e), e, 0.1, 0.0), e, rtol=1e-12)
    with pytest.raises(ValueError, match=r"gradient \(2, 8\)"):
        sphere.dti_step(e, e[:2], e, rate=0.1)


@given(seeds, st.floats(0, 1))
def test_slerp_goes_the_great_circle_evenly(seed, share):
    a, b = 2 * rows(seed), rows(seed + 1)
    found = sphere.slerp(a, b, share)
    one, other = norms.rescale(a, 1.0), norms.rescale(b, 1.0)
    angle = np.arccos(np.clip((one * other).sum(1, keepdims=True), -1, 1))
    expected = (np.sin((1 - share) * angle) * one + np.sin(share * angle) * other) / np.sin(angle)
    length = (1 - share) * norms.row_norms(a) + share * norms.row_norms(b)
    np.testing.assert_allclose(found, length * expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(sphere.slerp(b, a, 1 - share), found, rtol=1e-6, atol=1e-9)


@given(seeds)
def test_slerp_begins_and_ends_at_the_words(seed):
    a, b = rows(seed), rows(seed + 1)
    for share, end in ((0.0, a), (1.0, b)):
        np.testing.assert_allclose(sphere.slerp(a, b, share), end, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(sphere.slerp(a, 3 * a, 0.5), 2 * a, rtol=1e-9)
    with pytest.raises(ValueError, match="no shortest way"):
        sphere.slerp(a, -a, 0.5)
