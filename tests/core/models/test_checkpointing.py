"""Checkpointed blocks: the gradient of keeping everything, whatever a block does to its tensors, and less kept."""

import weakref

import pytest
import torch

from contextual_inversion.core.models.checkpointing import checkpoint

torch.set_num_threads(1)


def leaf(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


WEIGHT = leaf(6, 6, seed=9).detach().requires_grad_()


def tidy(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x @ WEIGHT) * other.sin()


def writes_into_saved(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """`y` is saved by its own product, and then half of it is something else (as FreeU_V2 does it)."""
    y = x @ WEIGHT
    y[:, :3] = y[:, :3] * other[:, :3] * 3
    return y * y + other


def adds_in_place(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """As ComfyUI's CLIPLayer does it."""
    y = x * 1.0
    y += (torch.nn.functional.layer_norm(y, (6,)) @ WEIGHT).tanh()
    y += torch.nn.functional.layer_norm(y, (6,)) ** 2 * other
    return y


def exact(block: object, x: torch.Tensor, other: torch.Tensor) -> list[torch.Tensor]:
    """With everything kept as it was when it was saved."""
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        return list(torch.autograd.grad(block(x, other).square().sum(), [x, other, WEIGHT]))


def through(call: object, x: torch.Tensor, other: torch.Tensor) -> list[torch.Tensor]:
    for value in (x, other, WEIGHT):
        value.grad = None
    call(x, other).square().sum().backward()
    return [value.grad for value in (x, other, WEIGHT)]


@pytest.mark.parametrize("block", [tidy, writes_into_saved, adds_in_place])
def test_the_gradient_is_that_of_keeping_everything(block: object) -> None:
    x, other = leaf(4, 6), leaf(4, 6, seed=1)
    expected = exact(block, x, other)
    found = through(lambda *given: checkpoint(block, *given), x, other)
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(one, two)


def test_without_it_the_same_block_raises_or_goes_wrong_in_silence() -> None:
    """What this module is for; the day this fails, torch's own will do."""
    x, other = leaf(4, 6), leaf(4, 6, seed=1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        through(writes_into_saved, x, other)
    torchs = through(
        lambda *given: torch.utils.checkpoint.checkpoint(writes_into_saved, *given, use_reentrant=False), x, other
    )
    assert not torch.allclose(torchs[1], exact(writes_into_saved, x, other)[1], rtol=0.01)


def test_an_input_that_is_written_into_afterwards_is_refused() -> None:
    """The next block takes what a skip connection still holds; autograd would refuse it as well."""
    x, other = leaf(4, 6), leaf(4, 6, seed=1)
    between = x * 2
    out = checkpoint(tidy, between, other)
    between[:, :3] *= 2
    with pytest.raises(RuntimeError, match="changed in place after it had run"):
        out.sum().backward()


def test_a_block_that_does_something_else_the_second_time_is_refused() -> None:
    calls = []

    def block(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        return x.sin().cos() if len(calls) == 1 else x.sin()

    out = checkpoint(block, leaf(3))
    with pytest.raises(RuntimeError, match="kept 2 tensors at first and 1"):
        out.sum().backward()


def test_only_the_inputs_are_kept_and_what_the_second_run_computed_goes_with_the_backward_pass() -> None:
    kept, computed = [], []

    def block(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        inner = tidy(x, other)
        computed.append(weakref.ref(inner))
        return inner * inner

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    x, other = leaf(4, 6), leaf(4, 6, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        out = checkpoint(block, x, other)
        assert not kept
        assert [found() for found in computed] == [None]
        block(x, other)
    assert kept
    kept.clear()
    out.sum().backward()
    assert len(computed) == 3
    assert [found() for found in computed] == [None] * 3


def test_random_numbers_and_autocast_are_those_of_the_first_run() -> None:
    def block(x: torch.Tensor) -> torch.Tensor:
        return (x @ WEIGHT) * torch.rand(x.shape[0], 6) * x

    x = leaf(4, 6)
    found = []
    for call in (block, lambda given: checkpoint(block, given)):
        x.grad = None
        torch.manual_seed(4)
        with torch.autocast("cpu", torch.bfloat16):
            out = call(x)
        after = torch.rand(1)
        out.float().square().sum().backward()
        found.append((out, x.grad, after, torch.rand(1)))
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


def test_without_a_gradient_it_is_a_call() -> None:
    x = leaf(4, 6)
    with torch.no_grad():
        assert torch.equal(checkpoint(tidy, x, x), tidy(x, x))
    assert checkpoint(lambda given: given, 3) == 3


def test_a_second_backward_pass_runs_it_once_more() -> None:
    x, other = leaf(4, 6), leaf(4, 6, seed=1)
    out = checkpoint(writes_into_saved, x, other).sum()
    first = torch.autograd.grad(out, x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(out, x)[0], first)
