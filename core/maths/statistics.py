"""How sure a measured difference or rate is. Plain NumPy: these run once, on a handful of numbers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A measured value and the ends of its confidence interval."""

    value: float
    low: float
    high: float


def paired_bootstrap(
    treated: Sequence[float] | np.ndarray,
    control: Sequence[float] | np.ndarray,
    *,
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The mean of `treated - control` over the pairs, with its bootstrap percentile interval.

    `groups` (one label a pair, e.g. the concept) makes it a two-level bootstrap: groups are drawn first and pairs
    within each drawn group, because seeds of one concept say little about another concept.
    Raises ValueError unless there are as many of each and at least two pairs.
    """
    difference = np.asarray(treated, dtype=np.float64) - np.asarray(control, dtype=np.float64)
    if difference.ndim != 1 or difference.size < 2 or np.shape(treated) != np.shape(control):
        raise ValueError(f"pairs expected, at least two: {np.shape(treated)} and {np.shape(control)}")
    if groups is not None and len(groups) != difference.size:
        raise ValueError(f"one group a pair expected: {len(groups)} groups, {difference.size} pairs")
    rng = np.random.default_rng(seed)
    if groups is None:
        means = difference[rng.integers(difference.size, size=(resamples, difference.size))].mean(axis=1)
    else:
        means = _two_level_means(difference, groups, resamples, rng)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(difference.mean()), float(low), float(high))


def _two_level_means(
    difference: np.ndarray, groups: Sequence[Hashable], resamples: int, rng: np.random.Generator
) -> np.ndarray:
    members: dict[Hashable, list[float]] = {}
    for label, value in zip(groups, difference, strict=True):
        members.setdefault(label, []).append(value)
    pools = [np.asarray(values) for values in members.values()]
    means = np.empty(resamples)
    for r in range(resamples):
        drawn = [pools[g] for g in rng.integers(len(pools), size=len(pools))]
        means[r] = np.concatenate([pool[rng.integers(pool.size, size=pool.size)] for pool in drawn]).mean()
    return means


def sign_flip_test(
    treated: Sequence[float] | np.ndarray,
    control: Sequence[float] | np.ndarray,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided p-value of "treated and control do not differ": the share of sign patterns of the pairs' differences
    whose mean is at least as far from 0 as the one seen.

    All 2^n patterns where they are no more than `resamples`, else that many at random, the one seen among them.
    Raises ValueError unless there are as many of each and at least one pair.
    """
    difference = np.asarray(treated, dtype=np.float64) - np.asarray(control, dtype=np.float64)
    if difference.ndim != 1 or difference.size == 0 or np.shape(treated) != np.shape(control):
        raise ValueError(f"pairs expected: {np.shape(treated)} and {np.shape(control)}")
    n, seen = difference.size, abs(difference.sum())
    tolerance = 1e-12 * np.abs(difference).sum()  # patterns that differ by rounding alone count as equal
    if 2**n <= resamples:
        signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
        return float(np.mean(np.abs(signs @ difference) >= seen - tolerance))
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(resamples - 1, n))
    return float((1 + np.sum(np.abs(signs @ difference) >= seen - tolerance)) / resamples)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's (1979) adjusted p-values, in the order given: rejecting where they are at most a level keeps the chance of
    even one false rejection among all the comparisons of a table at that level.

    Raises ValueError for a value outside 0 .. 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"p-values between 0 and 1 expected, got {p_values}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (p.size - np.arange(p.size)))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def wilson(successes: int, trials: int, z: float = 1.959964) -> Interval:
    """The share of `successes` in `trials` with Wilson's score interval, 95 % unless `z` says otherwise: honest near 0
    and 1, where bars of 0.95 live. Raises ValueError unless 0 <= successes <= trials and trials > 0."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes in {trials} trials")
    share = successes / trials
    spread = z * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    centre = share + z**2 / (2 * trials)
    scale = 1 + z**2 / trials
    low, high = (centre - spread) / scale, (centre + spread) / scale
    return Interval(share, max(0.0, float(low)), min(1.0, float(high)))
