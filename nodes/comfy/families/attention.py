"""How image tokens look at the text, in joint attention or in cross-attention, seen through ComfyUI's override of
attention functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange

from .blocks import BLOCK, Run
from .facts import Family

SECOND = 2
"""In a block with cross-attention the image attends to itself first."""
JOINT = "joint"
Seen = Callable[[int, torch.Tensor, bool], None]
"""Receives the number of a block, the probabilities (B, H, N, T) of N image tokens on T text tokens, and whether this
is the block's second run in a backward pass, which has to compute what the first did. What is missing to 1 in a row is
what they look at in the image: nothing in cross-attention."""


@dataclass(frozen=True)
class Tokens:
    """A picture in a denoiser: `height` x `width` tokens, of which it makes `padded`."""

    height: int
    width: int
    padded: int

    @property
    def count(self) -> int:
        return self.height * self.width


MOST_GROUPS = 8
"""Groups of blocks that are kept apart: each has a map for every token of a text that may have 512."""


def joint_names(count: int) -> list[str]:
    """What a recording calls `count` blocks, in forward order: at most `MOST_GROUPS` groups of neighbours."""
    return [f"{JOINT}.{index * MOST_GROUPS // count}.{index}" for index in range(count)]


def in_attention(name: str) -> bool:
    """Whether a layer of a block, by ComfyUI's name, is one of its attention's projections."""
    parts = name.split(".")
    if parts[-1] in ("linear1", "linear2"):  # of Flux, which are projections of the attention and the MLP in one
        return True
    return any("attn" in part.lower() or "attention" in part.lower() for part in parts[2:])


def tokens_of(denoiser: Any, height: int, width: int) -> Tokens:
    """The tokens of latents (height, width)."""
    size = getattr(denoiser, "patch_size", 2)
    size = size[-1] if isinstance(size, list | tuple) else int(size)
    rows, columns = -(-height // size), -(-width // size)
    several = getattr(denoiser, "pad_tokens_multiple", None) or 1
    return Tokens(rows, columns, -(-rows * columns // several) * several)


@dataclass(frozen=True)
class Looking:
    """An `optimized_attention_override` that shows what the attention of a `family` does and leaves it as it is.

    `blocks` are the numbers of those to look at; where one of them sees the image alone it is passed over. `previous`
    is the override that was there.
    """

    family: Family
    tokens: Tokens
    blocks: frozenset[int]
    seen: Seen
    previous: Callable[..., torch.Tensor] | None = None

    def __call__(
        self,
        function: Callable[..., torch.Tensor],
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        heads: int,
        *rest: Any,
        **keywords: Any,
    ) -> torch.Tensor:
        run = keywords.get("transformer_options", {}).get(BLOCK)
        if run is not None and run.number in self.blocks and self._wanted(run):
            mask = rest[0] if rest else keywords.get("mask")
            probabilities = self._probabilities(query, key, heads, mask, keywords)
            if probabilities is not None:
                self.seen(run.number, probabilities, run.again)
        if self.previous is not None:
            return self.previous(function, query, key, value, heads, *rest, **keywords)
        return function(query, key, value, heads, *rest, **keywords)

    def _wanted(self, run: Run) -> bool:
        """Whether this call of attention is one over text: of blocks with cross-attention it is the second one."""
        run.calls += 1
        return self.family.attends == "joint" or run.calls == SECOND

    def _probabilities(
        self, query: torch.Tensor, key: torch.Tensor, heads: int, mask: Any, keywords: Mapping[str, Any]
    ) -> torch.Tensor | None:
        if not keywords.get("skip_reshape", False):
            query, key = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (query, key))
        found = self._image_and_text(query.shape[2], key.shape[2])
        if found is None:
            return None
        image, text = found
        if key.shape[1] != query.shape[1]:
            key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scores = query[:, :, image].float() @ key.float().mT * keywords.get("scale", query.shape[-1] ** -0.5)
        if mask is not None:
            scores = scores + _added(mask, scores)
        return scores.softmax(dim=-1)[..., text]

    def _image_and_text(self, queries: int, keys: int) -> tuple[slice, slice] | None:
        """Where image tokens are among the queries and text tokens among the keys; None where there is no text."""
        if self.family.attends == "cross":
            return slice(0, self.tokens.count), slice(None)
        text = keys - self.tokens.padded
        if text <= 0 or queries != keys:
            return None
        if self.family.text == "last":
            return slice(0, self.tokens.count), slice(self.tokens.padded, None)
        return slice(text, text + self.tokens.count), slice(0, text)


def _added(mask: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """A mask in any of ComfyUI's shapes, to add to scores (B, H, N, M); one that differs by query is not supported."""
    mask = mask.reshape(mask.shape[0], -1, mask.shape[-1])[:, :1, :]
    mask = mask[:, None]
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -torch.finfo(scores.dtype).max)
    return mask.to(scores.dtype)
