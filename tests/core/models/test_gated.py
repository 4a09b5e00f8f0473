"""GEGLU without what can be computed again: the same bits, a third less kept."""

import copy

import pytest
import torch
from diffusers.models.activations import GEGLU

from contextual_inversion.core.models.gated import gates_computed_again

KEPT_OF_NUMBERS = 5 * 3 * 16


def run(part, x, kept):
    """Output, and gradients of the input and of the weights."""
    x = x.clone().requires_grad_(True)
    part = copy.deepcopy(part)

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), gates_computed_again([part], GEGLU):
        own = part(x)
    own.square().sum().backward()
    return own.detach(), x.grad, part.proj.weight.grad, part.proj.bias.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_outputs_and_gradients_are_the_same_bits_and_less_is_kept(dtype, monkeypatch):
    torch.manual_seed(0)
    part, x = GEGLU(8, 16).to(dtype), torch.randn(3, 5, 8, dtype=dtype)
    less, more = {}, {}
    ours = run(part, x, less)
    part.forward = part.forward  # a forward of its own stays
    theirs = run(part, x, more)
    for own, other in zip(ours, theirs, strict=True):
        assert own.dtype == dtype
        assert torch.equal(own, other)
    assert sum(more.values()) - sum(less.values()) == KEPT_OF_NUMBERS * x.element_size()


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(1)
    part, x = GEGLU(3, 4).double(), torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    with gates_computed_again([part], GEGLU):
        assert torch.autograd.gradcheck(part, (x,))


def test_afterwards_it_is_as_it_was_and_others_are_left_alone():
    class Other(GEGLU):
        def forward(self, hidden_states):
            return hidden_states

    both = torch.nn.ModuleList([GEGLU(3, 4), Other(3, 4)])
    with gates_computed_again([both], GEGLU):
        assert "forward" in vars(both[0])
        assert "forward" not in vars(both[1])
        with torch.no_grad():
            assert both[0](torch.ones(1, 3)).grad_fn is None
    assert "forward" not in vars(both[0])
