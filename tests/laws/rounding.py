"""What two computations of one thing may differ by: rounding, which is that of the largest numbers.

A number of 0.01 that is a sum of numbers near 10 is as uncertain as they are, and every processor's kernels add in an
order of their own. So the bound is a share of the largest number of what is compared, for every number of it.
"""

import torch

SHARE = 1e-5
"""Of the largest number: about a hundred roundings in float32."""


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference as a share of the largest number of `theirs`."""
    ours, theirs = ours.detach().double().cpu(), theirs.detach().double().cpu()
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)} and {tuple(theirs.shape)}"
    largest = theirs.abs().max()
    assert bool(largest > 0), "zeros say nothing of rounding: ask for equality"
    return float((ours - theirs).abs().max() / largest)


def equal_but_for_rounding(ours: torch.Tensor, theirs: torch.Tensor, share: float = SHARE, what: str = "it") -> None:
    """Asserts that no number differs by more than `share` of the largest; prints the figure (pytest -rP shows it)."""
    found = difference(ours, theirs)
    print(f"{what}: {found:.1e}")
    assert found < share, f"{what} differs by {found:.1e} of its largest number; rounding is {share:.0e}"
