"""Attention by hand, where its probabilities are wanted and not its output alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from einops import rearrange


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, N, H dh) -> (B, H, N, dh)."""
    return rearrange(x, "b n (h dh) -> b h n dh", h=heads)


def merge_heads(x: torch.Tensor) -> torch.Tensor:
    """(B, H, N, dh) -> (B, N, H dh)."""
    return rearrange(x, "b h n dh -> b n (h dh)")


def attention_probabilities(query: torch.Tensor, key: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """softmax(Q K^T scale) over the context tokens: (B, H, N, dh), (B, H, L, dh) -> (B, H, N, L). `scale` is
    1 / sqrt(dh) unless given.

    All of it in float32, whatever type Q and K have and inside of autocast too: a mean over N pixels sends back to each
    a gradient that float16 rounds to nothing, and Q K^T itself may overflow there.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    with _without_autocast(query.device):
        return ((query.float() * scale) @ key.float().transpose(-1, -2)).softmax(dim=-1)


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()
