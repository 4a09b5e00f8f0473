"""What autograd keeps stays as it was, against the same computation that writes into nothing."""

import gc
import weakref

import pytest
import torch

from contextual_inversion.core.models.kept import Writes, kept_for_backward

X = torch.linspace(-1.0, 2.0, 12, dtype=torch.float64).reshape(3, 4)


def added(h, x):
    h += x
    return h


def set_row(h, x):
    h[0] = x[1]
    return h


def behind_a_view(h, x):
    h.view(-1)[2:5].mul_(3.0)
    return h


def in_place_activation(h, x):
    return torch.nn.functional.relu(h, inplace=True)


def over_a_list(h, x):
    torch._foreach_mul_([h], 2.0)
    return h


def into_a_result(h, x):
    return torch.add(h, x, out=h)


def several_times(h, x):
    for factor in (2.0, 3.0):
        h.mul_(x).add_(factor)
    return h


WRITERS = {
    added: lambda h, x: h + x,
    set_row: lambda h, x: torch.cat([x[1:2], h[1:]]),
    behind_a_view: lambda h, x: (h.flatten() * torch.tensor([1, 1, 3, 3, 3] + [1] * 7)).view(3, 4),
    in_place_activation: lambda h, x: h.clamp(min=0),
    over_a_list: lambda h, x: h * 2,
    into_a_result: lambda h, x: h + x,
    several_times: lambda h, x: (h * x + 2) * x + 3,
}


def gradient(write):
    x = X.clone().requires_grad_()
    h = x.exp()
    early = h.sin()  # of which autograd keeps h
    (early.sum() + write(h, x).square().sum()).backward()
    return x.grad


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_code_that_writes_has_the_gradient_of_code_that_does_not(write):
    with kept_for_backward():
        with Writes():
            x = X.clone().requires_grad_()
            h = x.exp()
            loss = h.sin().sum() + write(h, x).square().sum()
        loss.backward()
    assert torch.allclose(x.grad, gradient(WRITERS[write]), atol=1e-12)


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_without_it_such_code_raises(write):
    with pytest.raises(RuntimeError, match=r"inplace|out="):
        gradient(write)


def test_a_write_that_was_not_seen_is_an_error_and_no_wrong_gradient():
    x = X.clone().requires_grad_()
    with kept_for_backward():
        h = x.exp()
        loss = h.sin().sum()
        h.detach().mul_(2.0)
        with pytest.raises(RuntimeError, match="written into by code that this pack does not see"):
            loss.backward()


def test_nothing_is_kept_longer_than_its_graph():
    with kept_for_backward() as kept:
        for _ in range(3):
            x = X.clone().requires_grad_()
            with Writes():
                h = x.exp()
                loss = (h.sin() + added(h, x)).sum()
            known = weakref.ref(h)
            loss.backward()
            del h, loss
            assert len(kept) == 0
            assert known() is None
        loss = X.clone().requires_grad_().exp().exp().sum()
        assert len(kept) > 0
        del loss  # a graph that nobody asked for a gradient
        gc.collect()
        assert len(kept) == 0
