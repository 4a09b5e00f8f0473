"""Attention of a diffusers UNet whose batch is that of its queries, so that hooks of the projections may add rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from .attention import merge_heads, split_heads
from .diffusers_attention import PLAIN_PROCESSORS
from .replay import Replayable


class FlexibleProcessor(Replayable):
    """Ordinary attention, as diffusers' own processors compute it: unmasked, over (B, N, C) features."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        if attention_mask is not None or hidden_states.ndim != 3:
            raise RuntimeError("two paths are for unmasked attention over (B, N, C) features only")
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        query, key, value = (
            split_heads(project(x), attn.heads)
            for project, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        out = merge_heads(F.scaled_dot_product_attention(query, key, value))
        return attn.to_out[1](attn.to_out[0](out.to(query.dtype))) / attn.rescale_output_factor


def attention_modules(unet: torch.nn.Module) -> list[Any]:
    """Every attention of `unet`."""
    return [part for part in unet.modules() if hasattr(part, "set_processor") and hasattr(part, "to_q")]


@contextmanager
def flexible(unet: torch.nn.Module, parts: Sequence[Any] | None = None) -> Iterator[None]:
    """Every attention of `unet` with a `FlexibleProcessor` inside, its own on exit. `parts` are its attentions, for a
    caller that knows them: looking for them takes as long as a layer.

    Raises:
        RuntimeError: an attention has a processor of somebody else; standing in for it would change the picture.
    """
    parts = attention_modules(unet) if parts is None else parts
    before = [part.processor for part in parts]
    foreign = {type(one).__name__ for one in before} - {*PLAIN_PROCESSORS, FlexibleProcessor.__name__}
    if foreign:
        raise RuntimeError(f"two paths cannot go through the attention processors {sorted(foreign)}")
    try:
        for part in parts:
            part.set_processor(FlexibleProcessor())
        yield
    finally:
        for part, processor in zip(parts, before, strict=True):
            part.set_processor(processor)
