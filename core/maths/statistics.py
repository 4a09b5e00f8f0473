"""How sure a measured difference or rate is. Plain NumPy: these run once, on a handful of numbers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache
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
    if groups is None:
        rng = np.random.default_rng(seed)
        means = difference[rng.integers(difference.size, size=(resamples, difference.size))].mean(axis=1)
    else:
        means = _two_level_weights(tuple(groups), resamples, seed) @ difference
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(difference.mean()), float(low), float(high))


@lru_cache(maxsize=4)
def _two_level_weights(groups: tuple[Hashable, ...], resamples: int, seed: int) -> np.ndarray:
    """How much each pair counts in each resample (resamples, pairs): the same for everything that is measured of them,
    so that a table of many measures draws once."""
    rng = np.random.default_rng(seed)
    members: dict[Hashable, list[int]] = {}
    for index, label in enumerate(groups):
        members.setdefault(label, []).append(index)
    pools = [np.asarray(indices) for indices in members.values()]
    weights = np.empty((resamples, len(groups)))
    for r in range(resamples):
        drawn = [pools[g] for g in rng.integers(len(pools), size=len(pools))]
        own = np.concatenate([pool[rng.integers(pool.size, size=pool.size)] for pool in drawn])
        weights[r] = np.bincount(own, minlength=len(groups)) / own.size
    weights.flags.writeable = False
    return weights


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
