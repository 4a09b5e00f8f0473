"""The laws of the norm modes (METHODS.md C5, 1.11, 6.1)."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contextual_inversion.core.maths import norms

seeds = st.integers(0, 2**32 - 1)
MODES = ("none", "core_window", "fixed_mean", "spherical", "dti")


def rows(seed: int, n: int = 3, d: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def train(mode: str, steps: int, window: tuple[int, int], seed: int, vocabulary_norm: float) -> list[np.ndarray]:
    """The rows before the first step and after each, under a random walk for an optimiser."""
    v, norm = norms.enter(mode, rows(seed), vocabulary_norm)
    path = [v]
    for step in range(1, steps + 1):
        v = v - 0.1 * norms.direct(mode, rows(seed + step), v)
        v, norm = norms.constrain(mode, v, norm, step=step, window=window)
        path.append(v)
    return path


@given(seeds, st.floats(0.1, 10))
def test_the_window_keeps_the_norm_it_was_entered_with(seed, vocabulary_norm):
    path = train("core_window", 20, (8, 12), seed, vocabulary_norm)
    free = train("none", 20, (8, 12), seed, vocabulary_norm)
    for step in range(9):
        np.testing.assert_array_equal(path[step], free[step])  # the window has not begun
    entry = norms.row_norms(path[8])
    for step in range(9, 13):
        np.testing.assert_allclose(norms.row_norms(path[step]), entry, rtol=1e-6)
        assert not np.allclose(path[step], path[step - 1])  # it still turns
    assert not np.allclose(norms.row_norms(path[20]), entry, rtol=1e-6)  # and is free again


@given(seeds, st.sampled_from(["fixed_mean", "spherical", "dti"]), st.floats(0.1, 10))
def test_the_sphere_is_never_left(seed, mode, vocabulary_norm):
    for v in train(mode, 10, (4, 6), seed, vocabulary_norm):
        np.testing.assert_allclose(norms.row_norms(v), vocabulary_norm, rtol=1e-12)


@given(seeds, st.floats(0.1, 10))
def test_rescaling_keeps_the_direction_and_sets_the_norm(seed, norm):
    v = rows(seed)
    scaled = norms.rescale(v, norm)
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=1), norm, rtol=1e-12)
    np.testing.assert_allclose(scaled / norm, v / np.linalg.norm(v, axis=1, keepdims=True), rtol=1e-12)
    np.testing.assert_allclose(norms.rescale(scaled, norms.row_norms(v)), v, rtol=1e-12)
    assert np.all(norms.rescale(np.zeros((1, 4)), norm) == 0)


@given(seeds)
def test_the_tangent_is_the_part_at_right_angles(seed):
    g, v = rows(seed), rows(seed + 1)
    t = norms.tangent(g, v)
    np.testing.assert_allclose((t * v).sum(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(norms.tangent(t, v), t, atol=1e-12)  # a projection
    rest = g - t
    np.testing.assert_allclose(rest * norms.row_norms(v) ** 2, (rest * v).sum(1, keepdims=True) * v, atol=1e-10)


def held(v, move):
    """What a step of `move` in mode "spherical" makes of rows that keep their norms."""
    return norms.constrain("spherical", v + move, norms.row_norms(v), step=1)[0]


def along_the_great_circle(v, move):
    """The exponential map of the sphere: from `v` in the direction of a tangent `move`, for its length."""
    radius, length = norms.row_norms(v), norms.row_norms(move)
    direction = move / np.where(length > 0, length, 1)
    return np.cos(length / radius) * v + np.sin(length / radius) * radius * direction


@given(seeds)
def test_a_held_step_agrees_with_the_great_circle_for_small_moves(seed):
    v = rows(seed)
    move = norms.direct("spherical", rows(seed + 1), v)
    for way in (held, along_the_great_circle):
        np.testing.assert_allclose(norms.row_norms(way(v, move)), norms.row_norms(v), rtol=1e-12)
        np.testing.assert_allclose(way(v, 0 * move), v, rtol=1e-12)
        derivative = (way(v, 1e-6 * move) - way(v, -1e-6 * move)) / 2e-6
        np.testing.assert_allclose(derivative, move, rtol=1e-6, atol=1e-8)
    small = 1e-3 * move
    np.testing.assert_allclose(held(v, small), along_the_great_circle(v, small), atol=1e-7)


@given(seeds)
def test_the_great_circle_is_walked_as_far_as_it_is_told(seed):
    v = rows(seed)
    radius = norms.row_norms(v)
    move = norms.rescale(norms.tangent(rows(seed + 1), v), radius * np.pi / 2)  # a quarter of the great circle
    there = along_the_great_circle(v, move)
    np.testing.assert_allclose((there * v).sum(axis=1), 0, atol=1e-10)
    np.testing.assert_allclose(along_the_great_circle(v, 2 * move), -v, atol=1e-10)


@given(st.integers(1, 2000), st.floats(0, 1), st.floats(0, 1))
def test_the_window_lies_in_the_training(steps, one, other):
    start, end = sorted((one, other))
    first, last = norms.rescale_window(steps, start, end)
    assert 1 <= first <= last <= steps
    inside = [s for s in range(1, steps + 1) if norms.in_window(s, (first, last))]
    assert inside == list(range(first + 1, last + 1))


def test_the_default_window_is_that_of_the_paper():
    assert norms.rescale_window(300) == (120, 180)
    assert [norms.in_window(s, (120, 180)) for s in (119, 120, 121, 180, 181)] == [False, False, True, True, False]


@given(seeds)
def test_the_vocabulary_norm_leaves_out_what_it_is_told(seed):
    table = rows(seed, 8)
    table[[0, 7]] *= 1000
    expected = np.linalg.norm(table[1:7], axis=1).mean()
    np.testing.assert_allclose(norms.vocabulary_norm(table, [0, 7]), expected, rtol=1e-12)
    np.testing.assert_allclose(norms.vocabulary_norm(table, [0, -1]), expected, rtol=1e-12)
    with pytest.raises(ValueError, match=r"no row left of table \(8, 6\)"):
        norms.vocabulary_norm(table, range(8))


@pytest.mark.parametrize("mode", MODES)
def test_nothing_that_came_in_is_changed(mode):
    v, g = (torch.asarray(rows(seed)) for seed in range(2))
    before = v.clone(), g.clone()
    started, norm = norms.enter(mode, v, 2.0)
    norms.direct(mode, g, started)
    for step in (8, 9):
        _, norm = norms.constrain(mode, started, norm, step=step, window=(8, 12))
    assert torch.equal(v, before[0])
    assert torch.equal(g, before[1])


def test_what_cannot_be_held_is_refused():
    v = rows(0)
    with pytest.raises(ValueError, match="needs the vocabulary's mean norm"):
        norms.enter("spherical", v)
    with pytest.raises(ValueError, match="no norm to hold at step 150"):
        norms.constrain("core_window", v, None, step=150)
    with pytest.raises(ValueError, match=r"gradient \(3, 6\), v \(2, 6\)"):
        norms.direct("spherical", v, v[:2])
    with pytest.raises(ValueError, match=r"start 0\.7, end 0\.6"):
        norms.rescale_window(300, 0.7, 0.6)
    for refuse in (
        lambda: norms.enter("sphere", v, 1.0),
        lambda: norms.direct("sphere", v, v),
        lambda: norms.constrain("sphere", v, 1.0, step=1),
    ):
        with pytest.raises(ValueError, match="unknown norm mode 'sphere'"):
            refuse()
