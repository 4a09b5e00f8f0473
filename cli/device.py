"""Where a command computes: refused before the work where this PyTorch cannot."""

from __future__ import annotations

import torch


def chosen_device(name: str | None) -> torch.device:
    """The device called `name`, or the GPU where there is one and none is named.

    Raises ValueError where PyTorch has no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA asserts
        raise ValueError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    return torch.device(name)
