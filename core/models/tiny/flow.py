"""The tiny flow matching model: noise levels, and latents as the tokens of its transformer."""

from __future__ import annotations

import math

import torch

from . import config


def shifted(u: torch.Tensor) -> torch.Tensor:
    """Sigmas in (0, 1) of even draws `u`: e^mu u / (1 + (e^mu - 1) u), Flux.1's shift towards noise."""
    factor = math.exp(config.FLOW_SHIFT)
    return factor * u / (1 + (factor - 1) * u)


def patches(latents: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, H, W) as tokens (B, H/p W/p, C p p), row by row; within a token channels come first."""
    p = config.FLOW_PATCH
    batch, channels, height, width = latents.shape
    cut = latents.reshape(batch, channels, height // p, p, width // p, p)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, (height // p) * (width // p), channels * p * p)


def unpatched(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The inverse of `patches`: (B, H/p W/p, C p p) to (B, C, H, W)."""
    p = config.FLOW_PATCH
    batch = len(tokens)
    cut = tokens.reshape(batch, height // p, width // p, -1, p, p)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, height, width)


def places(height: int, width: int) -> torch.Tensor:
    """Rotary positions (H/p W/p, 3) of the tokens of an image: 0, row, column."""
    rows, columns = torch.meshgrid(
        torch.arange(height // config.FLOW_PATCH), torch.arange(width // config.FLOW_PATCH), indexing="ij"
    )
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()
