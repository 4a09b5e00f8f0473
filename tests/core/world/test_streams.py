"""Streams are NumPy's own generators, bit for bit."""

import numpy as np
import pytest

from contextual_inversion.core.world.captions import caption
from contextual_inversion.core.world.concepts import RESERVED
from contextual_inversion.core.world.scenes import sample_scene
from contextual_inversion.core.world.streams import FEW, Stream, seed_states, streams

SEEDS = [0, 1, 2**32 - 1, 2**32, 2**62 - 1, 2**64 - 1, *range(7, 7 * 300, 7), *(2**61 + 3**k for k in range(30))]


def test_a_seed_becomes_the_state_that_numpy_makes_of_it():
    expected = [np.random.SeedSequence(seed).generate_state(4, np.uint64) for seed in SEEDS]
    np.testing.assert_array_equal(seed_states(SEEDS), np.stack(expected))


@pytest.mark.parametrize("below", [1, 2, 3, 8, 10, 1000, 2**31, 2**32 - 1, 3 * 2**30])
def test_numbers_are_numpy_s_in_any_order(below):
    p = [0.58, 0.14, 0.14, 0.14]
    for seed, stream in zip(SEEDS[:40], streams(SEEDS[:40]), strict=True):
        assert isinstance(stream, Stream)
        numpy = np.random.default_rng(seed)
        for index in range(40):
            if index % 3 == 0:
                assert stream.random() == numpy.random()
            if index % 5 == 0:
                assert stream.choice(4, p=p) == numpy.choice(4, p=p)
            assert stream.integers(below) == numpy.integers(below)
            assert stream.choice(7) == numpy.choice(7)


def test_a_caption_is_the_same_by_either():
    for seed, stream in zip(SEEDS, streams(SEEDS), strict=True):
        numpy = np.random.default_rng(seed)
        assert caption(sample_scene(stream, RESERVED), stream) == caption(sample_scene(numpy, RESERVED), numpy)


def test_few_seeds_are_numpy_s_own():
    few = streams(SEEDS[: FEW - 1])
    assert all(isinstance(one, np.random.Generator) for one in few)
