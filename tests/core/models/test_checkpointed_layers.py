"""Layers of a text encoder that run again in the backward pass instead of keeping what they computed."""

import weakref

import torch
from torch import nn

from contextual_inversion.core.models.checkpointed_layers import checkpointed_layers


class Casting(nn.Module):
    """A layer whose weight is stored in half precision, as ComfyUI loads a text encoder."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6).half(), requires_grad=False)
        self.copies = []

    def forward(self, x, mask=None, *, scale=1.0):
        wide = self.weight.float()
        self.copies.append(weakref.ref(wide))
        return torch.tanh(x @ wide) * scale + (0 if mask is None else mask)

    @property
    def kept(self):
        return sum(copy() is not None for copy in self.copies)


def through(layers, x):
    for layer in layers:
        x = layer(x, torch.ones(6), scale=0.5)
    return x


def test_no_copy_of_a_weight_is_kept_and_no_bit_changes():
    torch.manual_seed(0)
    layers = [Casting() for _ in range(4)]
    found = []
    for checkpointing in (False, True):
        x = torch.ones(2, 6, requires_grad=True)
        with checkpointed_layers(layers if checkpointing else ()):
            out = through(layers, x)
            kept = sum(layer.kept for layer in layers)
            (gradient,) = torch.autograd.grad(out.sum(), x)
        found.append((out.detach(), gradient))
        assert kept == (0 if checkpointing else 4)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert found[0][1].abs().max() > 0
    assert all("forward" not in vars(layer) for layer in layers)


def test_a_hook_that_was_there_for_one_pass_is_there_again():
    """A delta on a text encoder's layer is gone when the backward pass comes."""
    from contextual_inversion.core.models.replay import Replayable

    class Doubles(Replayable):
        def __call__(self, module, inputs, keywords, output):
            return 2 * output

    layer = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).requires_grad_(False)
    found = []
    for checkpointing in (False, True):
        x = torch.ones(1, 3, requires_grad=True)
        with checkpointed_layers([layer] if checkpointing else ()):
            handle = layer[0].register_forward_hook(Doubles(), with_kwargs=True)
            out = layer(x)
            handle.remove()
            found.append(torch.autograd.grad(out.sum(), x)[0])
    assert torch.equal(*found)
