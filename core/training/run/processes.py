"""Processes that share every batch of a pretraining, whatever started them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Processes:
    """This process among those that share a batch. `add` sums a tensor over all of them."""

    rank: int = 0
    size: int = 1
    add: Callable[[torch.Tensor], torch.Tensor] = lambda value: value

    @property
    def first(self) -> bool:
        return self.rank == 0

    def samples(self, batch: int) -> range:
        """The numbers of this process's samples in a batch. Raises ValueError where it cannot be shared evenly."""
        if batch % self.size:
            raise ValueError(f"{self.size} processes cannot share a batch of {batch} evenly")
        share = batch // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Of a tensor of any shape, over the processes."""
        return value if self.size == 1 else self.add(value) / self.size

    def share_gradients(self, parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> None:
        """Give each of the parameters its gradient, averaged over the processes in one exchange."""
        if self.size > 1:
            flat = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
            parts = flat.split([gradient.numel() for gradient in gradients])
            gradients = [part.view_as(one) for part, one in zip(parts, gradients, strict=True)]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
