"""The Gaussian posterior of an autoencoder."""

from __future__ import annotations

import torch


def draw(mean: torch.Tensor, std: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """A sample of a Gaussian posterior, its mean without a generator. A CPU generator draws alike on every device."""
    if generator is None:
        return mean
    noise = torch.randn(mean.shape, generator=generator, device=generator.device, dtype=torch.float32)
    return mean + std * noise.to(mean.device, mean.dtype)
