"""T-LoRA's rank by timestep, against its definition in plain Python."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contextual_inversion.core.maths.timestep_rank import active_rank, rank_mask

ranks = st.integers(1, 64).flatmap(lambda rank: st.tuples(st.just(rank), st.integers(1, rank)))


@given(ranks, st.sampled_from([10, 999, 1000]), st.data())
def test_the_rank_is_its_definition_and_the_mask_a_prefix_of_that_length(ranks, steps, data):
    rank, least = ranks
    timesteps = np.array(data.draw(st.lists(st.integers(0, steps - 1), min_size=1, max_size=5)))
    expected = [math.floor((rank - least) * (steps - t) / steps + 1e-9) + least for t in timesteps.tolist()]
    assert active_rank(timesteps, steps, rank, least).tolist() == expected
    mask = rank_mask(torch.from_numpy(timesteps), steps, rank, least)
    assert mask.tolist() == rank_mask(timesteps, steps, rank, least).tolist()
    assert mask.tolist() == [[row < active for row in range(rank)] for active in expected]


@given(ranks)
def test_noise_takes_rank_away_from_all_of_it_to_the_least(ranks):
    rank, least = ranks
    active = active_rank(np.arange(1000), 1000, rank, least)
    assert active[0] == rank
    assert active[-1] == least
    assert (np.diff(active) <= 0).all()


@pytest.mark.parametrize("least", [0, 5, -1])
def test_a_least_rank_that_cannot_be_is_refused(least):
    with pytest.raises(ValueError, match=r"1 \.\. 4"):
        active_rank(np.zeros(1, int), 1000, 4, least)
