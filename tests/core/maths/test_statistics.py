"""The intervals against SciPy's, and against what an interval is for: covering the truth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from contextual_inversion.core.maths import statistics

seeds = st.integers(0, 2**32 - 1)


def test_the_paired_interval_is_that_of_scipy():
    r = np.random.default_rng(0)
    a, b = r.normal(size=30) + 0.3, r.normal(size=30)
    ours = statistics.paired_bootstrap(a, b, resamples=20_000)
    theirs = stats.bootstrap((a - b,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    np.testing.assert_allclose([ours.low, ours.high], [theirs.low, theirs.high], atol=0.03 * (theirs.high - theirs.low))
    assert ours.value == (a - b).mean()


@given(seeds, st.floats(-5, 5))
def test_a_constant_difference_has_no_spread(seed, shift):
    control = np.random.default_rng(seed).normal(size=6)
    for groups in (None, list("aabbcc")):
        interval = statistics.paired_bootstrap(control + shift, control, groups=groups, resamples=100)
        np.testing.assert_allclose(interval, shift, rtol=1e-9, atol=1e-9)


@given(seeds)
def test_swapping_the_sides_mirrors_the_interval(seed):
    r = np.random.default_rng(seed)
    a, b = r.normal(size=8), r.normal(size=8)
    there, back = (statistics.paired_bootstrap(*pair, resamples=300) for pair in ((a, b), (b, a)))
    np.testing.assert_allclose(back, [-there.value, -there.high, -there.low], rtol=1e-9, atol=1e-12)
    assert there.low <= there.value <= there.high
    assert there == statistics.paired_bootstrap(a, b, resamples=300)  # the seed makes it repeatable


def test_seeds_of_one_concept_do_not_pass_for_many_concepts():
    """Where all spread is between groups, pairs drawn one by one understate it by about sqrt(pairs a group)."""
    effect = np.repeat(np.random.default_rng(1).normal(size=8), 9)
    flat = statistics.paired_bootstrap(effect, 0 * effect, resamples=2000)
    grouped = statistics.paired_bootstrap(
        effect, 0 * effect, groups=np.repeat(np.arange(8), 9).tolist(), resamples=2000
    )
    ratio = (grouped.high - grouped.low) / (flat.high - flat.low)
    assert 2.4 < ratio < 3.6


def test_a_grouped_interval_is_that_of_pools_drawn_one_by_one():
    """Groups first, then as many pairs of each as it has; every measure of the same pairs from the same draws."""
    groups, r = list("abbacccc"), np.random.default_rng(3)
    for measure in range(3):
        difference, draws, means = r.normal(size=8), np.random.default_rng(7), []
        pools = [difference[[label == name for label in groups]] for name in "abc"]
        for _ in range(500):
            drawn = [pools[g] for g in draws.integers(3, size=3)]
            means.append(np.concatenate([pool[draws.integers(pool.size, size=pool.size)] for pool in drawn]).mean())
        found = statistics.paired_bootstrap(difference, 0 * difference, groups=groups, resamples=500, seed=7)
        expected = [difference.mean(), *np.quantile(means, [0.025, 0.975])]
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12, err_msg=str(measure))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    r = np.random.default_rng(2)
    covered = 0
    for i in range(200):
        a = r.normal(size=40) + 0.5
        interval = statistics.paired_bootstrap(a, np.zeros(40), resamples=400, seed=i)
        covered += interval.low <= 0.5 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


@given(st.integers(1, 300), st.data())
def test_the_rate_interval_is_that_of_scipy(trials, data):
    successes = data.draw(st.integers(0, trials))
    theirs = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    ours = statistics.wilson(successes, trials)
    np.testing.assert_allclose([ours.low, ours.high], [theirs.low, theirs.high], atol=1e-6)
    assert ours.value == successes / trials


def test_what_is_not_paired_is_refused():
    with pytest.raises(ValueError, match=r"\(3,\) and \(1,\)"):
        statistics.paired_bootstrap([1, 2, 3], [1])
    with pytest.raises(ValueError, match="at least two"):
        statistics.paired_bootstrap([1], [1])
    with pytest.raises(ValueError, match="2 groups, 3 pairs"):
        statistics.paired_bootstrap([1, 2, 3], [1, 2, 3], groups=["a", "b"])
    with pytest.raises(ValueError, match="5 successes in 4 trials"):
        statistics.wilson(5, 4)
