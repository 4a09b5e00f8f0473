"""Attention by hand, where its probabilities are wanted and not its output alone."""

from __future__ import annotations

import torch


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, N, H dh) -> (B, H, N, dh)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: torch.Tensor) -> torch.Tensor:
    """(B, H, N, dh) -> (B, N, H dh)."""
    return x.transpose(1, 2).flatten(2)


def attention_probabilities(query: torch.Tensor, key: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """softmax(Q K^T scale) in float32 over the context tokens: (B, H, N, dh), (B, H, L, dh) -> (B, H, N, L).

    `scale` is 1 / sqrt(dh) unless given; it goes to the queries first, or half precision may overflow.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return ((query * scale) @ key.transpose(-1, -2)).float().softmax(dim=-1)
