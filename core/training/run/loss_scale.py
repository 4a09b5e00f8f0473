"""Gradients through a UNet in fp16: scaled up, so that they do not vanish on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

LOSS_SCALE = 2.0**16
LOSS_SCALE_PATIENCE = 2000
"""Steps without an overflow after which the scale of fp16 losses doubles (torch's GradScaler takes the same)."""


class LossScale:
    """What a loss is multiplied by before its backward pass, on the device; 1 and without effect for any type but fp16.

    It changes as `rescaled` says.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.on = dtype == torch.float16
        self.value = torch.tensor(LOSS_SCALE if self.on else 1.0, device=device)
        self.calm = torch.zeros((), device=device)

    def __call__(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss to go backward from."""
        return loss * self.value if self.on else loss

    def undone(self, gradient: torch.Tensor) -> torch.Tensor:
        """A gradient of the scaled loss as one of the loss itself."""
        return gradient / self.value if self.on else gradient

    def hopeless(self) -> torch.Tensor:
        """Whether no smaller scale is left to help against an overflow, a flag () on the device."""
        return self.value <= 1

    def adapt(self, finite: torch.Tensor) -> None:
        """Take note of a step whose gradients were `finite`, a flag () on the device, or not."""
        if self.on:
            self.value, self.calm = rescaled(self.value, self.calm, finite)

    @torch.no_grad()
    def unscale(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """Make the gradients, in place, those of the loss itself, and zero where one overflowed.

        Returns whether none did, a flag () on the device.
        """
        if not self.on:
            return torch.ones((), dtype=torch.bool, device=self.value.device)
        finite = torch.isfinite(torch.stack([one.abs().sum() for one in gradients]).sum())
        for one in gradients:
            one.copy_(torch.where(finite, self.undone(one), torch.zeros_like(one)))
        self.adapt(finite)
        return finite

    def state(self) -> dict[str, torch.Tensor]:
        """For a checkpoint."""
        return {"value": self.value, "calm": self.calm}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what `state` gave, on any device."""
        self.value, self.calm = (state[name].to(self.value.device) for name in ("value", "calm"))


def rescaled(scale: torch.Tensor, calm: torch.Tensor, finite: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The next scale and its count of calm steps, all () on the device, after a step whose gradients were `finite` or
    not: halved where not, doubled after `LOSS_SCALE_PATIENCE` such steps on end, as PyTorch's own."""
    calm = torch.where(finite, calm + 1, torch.zeros_like(calm))
    long = calm >= LOSS_SCALE_PATIENCE
    scale = torch.where(finite, torch.where(long, scale * 2, scale), scale / 2)
    return scale, torch.where(long, torch.zeros_like(calm), calm)
