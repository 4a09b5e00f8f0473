"""Who of several processes takes which samples of a batch, and what they share."""

import pytest
import torch

from contextual_inversion.core.training.run.processes import Processes


@pytest.mark.parametrize(("batch", "size"), [(6, 1), (6, 2), (6, 3), (6, 6)])
def test_every_sample_is_taken_by_exactly_one_process(batch, size):
    taken = [Processes(rank, size).samples(batch) for rank in range(size)]
    assert [number for own in taken for number in own] == list(range(batch))
    assert {len(own) for own in taken} == {batch // size}


@pytest.mark.parametrize(("batch", "size"), [(5, 2), (2, 4)])
def test_a_batch_that_cannot_be_shared_is_refused(batch, size):
    with pytest.raises(ValueError, match=f"{size} processes cannot share a batch of {batch} evenly"):
        Processes(0, size).samples(batch)


def test_gradients_are_the_mean_of_all_and_keep_their_shapes():
    parameters = [torch.zeros(2, 3), torch.zeros(4)]
    gradients = [torch.arange(6.0).view(2, 3), torch.arange(4.0)]
    Processes(0, 2, lambda value: value + 3).share_gradients(parameters, gradients)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert torch.equal(parameter.grad, (gradient + 3) / 2)
