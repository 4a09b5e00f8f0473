"""What stands in a method's place for a while leaves the module as it was."""

import pytest
import torch

from contextual_inversion.core.models.replacing import instead


@pytest.mark.parametrize("taken", [False, True])
def test_the_module_is_as_it_was_also_after_an_error(taken):
    module, other, x = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.ones(1, 2)
    if taken:  # as another program would have it
        module.forward = lambda x: x + 7
    before, held = module(x), dict(vars(module))

    def fails():
        with instead(module, "forward", lambda x: x - 1):
            assert torch.equal(module(x), x - 1)
            assert not torch.equal(other(x), x - 1), "this one object alone"
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert torch.equal(module(x), before)
    assert vars(module) == held
