"""The numbers of `numpy.random.default_rng(seed)`, at a tenth of the price where a seed gives only a dozen of them.

A caption has a generator of its own, so that any one can be drawn alone; to make one of NumPy's takes longer than all
that is asked of it. Seeds become states for all at once (`SeedSequence`), and a state becomes numbers in plain Python
(PCG64, O'Neill 2014; bounded integers by Lemire 2019), bit for bit as NumPy has them and promises to keep them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

FEW = 8
"""Below so many seeds NumPy's own generators are as fast."""
MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645
BITS_32, BITS_64, BITS_128 = 2**32 - 1, 2**64 - 1, 2**128 - 1
POOL = 4


class Draws(Protocol):
    """As much of a NumPy generator as captions and scenes use."""

    def random(self) -> float: ...

    def integers(self, below: int) -> int: ...

    def choice(self, below: int, *, p: Sequence[float] | None = None) -> int: ...


def streams(seeds: Sequence[int]) -> Sequence[Draws]:
    """A generator for each of `seeds` (0 .. 2**64 - 1), whose numbers are those of `numpy.random.default_rng`."""
    if len(seeds) < FEW:
        return [np.random.default_rng(seed) for seed in seeds]
    return [Stream((a << 64) | b, (c << 64) | d) for a, b, c, d in seed_states(seeds).tolist()]


class Stream:
    """PCG64 (XSL-RR), set up from the two 128-bit numbers that NumPy's SeedSequence gives it."""

    __slots__ = ("_half", "_increment", "_state")

    def __init__(self, start: int, sequence: int) -> None:
        self._increment = ((sequence << 1) | 1) & BITS_128
        self._state = ((self._increment + start) * MULTIPLIER + self._increment) & BITS_128
        self._half = -1

    def _next(self) -> int:
        """64 bits."""
        state = self._state = (self._state * MULTIPLIER + self._increment) & BITS_128
        mixed, turn = ((state >> 64) ^ state) & BITS_64, state >> 122
        return ((mixed >> turn) | (mixed << (64 - turn))) & BITS_64

    def _next_half(self) -> int:
        """32 bits: first the lower half of 64, then the upper one."""
        if self._half >= 0:
            half, self._half = self._half, -1
            return half
        whole = self._next()
        self._half = whole >> 32
        return whole & BITS_32

    def random(self) -> float:
        """In [0, 1)."""
        return (self._next() >> 11) * 2.0**-53

    def integers(self, below: int) -> int:
        """In 0 .. below - 1, for `below` up to 2**32 - 1."""
        if below == 1:
            return 0
        product = self._next_half() * below
        if product & BITS_32 < below:
            threshold = (2**32 - below) % below
            while product & BITS_32 < threshold:
                product = self._next_half() * below
        return product >> 32

    def choice(self, below: int, *, p: Sequence[float] | None = None) -> int:
        """In 0 .. below - 1, each with its probability in `p`."""
        return self.integers(below) if p is None else bisect_right(_cumulative(tuple(p)), self.random())


@lru_cache(maxsize=64)
def _cumulative(p: tuple[float, ...]) -> list[float]:
    shares = np.cumsum(p)
    return (shares / shares[-1]).tolist()


def seed_states(seeds: Sequence[int]) -> np.ndarray:
    """`SeedSequence(seed).generate_state(4, uint64)` of every seed, (n, 4)."""
    words = np.array(seeds, dtype=np.uint64)
    entropy = [words.astype(np.uint32), (words >> np.uint64(32)).astype(np.uint32)]
    entropy += [np.zeros_like(entropy[0])] * (POOL - len(entropy))
    pool, hashed = [], _Hash(0x43B0D7E5, 0x931E8875)
    for word in entropy:
        pool.append(hashed(word))
    for source in range(POOL):
        for target in range(POOL):
            if source != target:
                mixed = pool[target] * np.uint32(0xCA01F9DD) - hashed(pool[source]) * np.uint32(0x4973F715)
                pool[target] = mixed ^ (mixed >> np.uint32(16))
    hashed = _Hash(0x8B51F9DD, 0x58F38DED)
    state = [hashed(pool[index % POOL]).astype(np.uint64) for index in range(2 * POOL)]
    return np.stack([low | (high << np.uint64(32)) for low, high in zip(state[::2], state[1::2], strict=True)], axis=1)


class _Hash:
    """SeedSequence's hash of 32-bit words, whose constant is another one each time."""

    def __init__(self, constant: int, factor: int) -> None:
        self.constant, self.factor = constant, factor

    def __call__(self, word: np.ndarray) -> np.ndarray:
        word = word ^ np.uint32(self.constant)
        self.constant = self.constant * self.factor & BITS_32
        word = word * np.uint32(self.constant)
        return word ^ (word >> np.uint32(16))
