"""A module that leaves memory and comes again."""

import weakref

import pytest
import torch

from contextual_inversion.core.models.resting import Resting


def linear():
    torch.manual_seed(0)
    return torch.nn.Linear(2, 3)


def again(dtype):
    return linear().to(dtype)


def test_what_leaves_is_gone_and_comes_again_the_same():
    resting = Resting(linear(), again)
    first = weakref.ref(resting.get())
    weight = resting.get().weight.detach().clone()
    resting.leave()
    assert first() is None
    assert torch.equal(resting.get().weight, weight)
    assert resting.get() is resting.get()


def test_it_comes_again_in_the_type_that_it_had():
    resting = Resting(linear(), again)
    resting.get().half()
    resting.leave()
    assert resting.get().weight.dtype == torch.float16


def test_what_cannot_come_again_stays():
    module = linear()
    resting = Resting(module)
    resting.leave()
    assert resting.get() is module


@pytest.mark.parametrize("left", [False, True])
def test_it_is_frozen_only_between_begin_and_end(left):
    resting = Resting(linear(), again)
    resting.begin(torch.device("cpu"))
    if left:
        resting.leave()
    inside = resting.get()
    assert not inside.training
    assert not inside.weight.requires_grad
    resting.end()
    assert resting.get() is inside
    assert inside.training
    assert inside.weight.requires_grad


def test_it_is_on_the_device_whenever_it_is_there():
    resting = Resting(linear(), again)
    resting.begin(torch.device("meta"))
    assert resting.get().weight.device.type == "meta"
    resting.leave()
    assert resting.get().weight.device.type == "meta"
    resting.leave()
    resting.end()
    assert resting.get().weight.device.type == "cpu"
