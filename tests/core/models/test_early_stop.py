"""A pass that is stopped gives what the whole one would, calls nothing behind it, and leaves no hook."""

import pytest
import torch

from contextual_inversion.core.models.early_stop import itself, outputs_until


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(4)))


def hooks(layers):
    return [len(layer._forward_hooks) for layer in layers]


@pytest.mark.parametrize("last", range(4))
def test_it_sees_what_a_whole_pass_would_and_nothing_is_called_behind_it(layers, last):
    x, called = torch.ones(2, 3), []
    for number, layer in enumerate(layers):
        layer.register_forward_pre_hook(lambda _, __, number=number: called.append(number))
    found = outputs_until(lambda: layers(x), [(layer, itself) for layer in layers[: last + 1]])
    assert called == list(range(last + 1))
    for number, output in enumerate(found):
        assert torch.equal(output, layers[: number + 1](x))
    assert len(found) == last + 1
    assert hooks(layers) == [0] * 4


def test_of_an_output_with_parts_the_wanted_ones_are_seen():
    class Pair(torch.nn.Module):
        def forward(self, x):
            return x, (x + 1, x + 2)

    pair, x = Pair(), torch.zeros(2)
    found = outputs_until(lambda: pair(x), [(pair, lambda output: output[1])])
    assert [value[0].item() for value in found] == [1, 2]


def test_an_error_of_the_pass_goes_on_its_way_and_leaves_no_hook(layers):
    with pytest.raises(RuntimeError, match="shapes"):
        outputs_until(lambda: layers(torch.ones(2, 5)), [(layer, itself) for layer in layers])
    assert hooks(layers) == [0] * 4
