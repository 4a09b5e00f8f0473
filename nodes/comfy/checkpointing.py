"""Checkpointing the blocks of ComfyUI's UNet, through the official patch seam."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

from ...core.models.checkpointed_layers import checkpointed_layers
from ...core.models.checkpointing import checkpoint
from ...core.models.replacing import instead
from ...core.models.replay import replayed
from .attention import RECOMPUTING


def with_checkpointing(options: Mapping[str, Any]) -> dict[str, Any]:
    """`transformer_options` with every ResBlock and every block of a SpatialTransformer checkpointed; what came in is
    not changed.

    ComfyUI takes the first patch that fits a layer, so those of other nodes come first and stay in force.
    """
    patches = options.get("patches", {})
    existing = patches.get("forward_timestep_embed_patch", [])
    ours = ((ResBlock, SpatialTransformer), checkpointed)
    return {**options, "patches": {**patches, "forward_timestep_embed_patch": [*existing, ours]}}


def checkpointed(
    layer: Any, x: torch.Tensor, emb: torch.Tensor, context: Any, options: dict[str, Any], *_: Any
) -> torch.Tensor:
    """A `forward_timestep_embed_patch`: run one layer without keeping its inner activations.

    Of a SpatialTransformer each block is one by itself: SDXL's have ten, and all of them at once would hold the
    weights of ten that are cast while the layer runs again, 1.3 GiB in float32.
    """
    if isinstance(layer, ResBlock):
        return checkpoint(replayed(layer), x, emb)
    with ExitStack() as stack:
        stack.enter_context(checkpointed_layers([layer.proj_in, layer.proj_out]))
        for block in layer.transformer_blocks:
            stack.enter_context(instead(block, "forward", partial(_run, block, block.forward)))
        out = layer(x, context, options)
    if "transformer_index" in options:
        options["transformer_index"] += 1
    return out


def _run(
    block: torch.nn.Module,
    forward: Callable[..., torch.Tensor],
    x: torch.Tensor,
    context: Any = None,
    transformer_options: Mapping[str, Any] | None = None,
) -> torch.Tensor:
    # The UNet overwrites `options["block"]` on its way; when the block runs again it must see what it saw at first.
    seen, again = dict(transformer_options or {}), False
    same = replayed(forward, of=block)

    def run(x: torch.Tensor, context: Any) -> torch.Tensor:
        nonlocal again
        recomputing, again = again, True
        return same(x, context=context, transformer_options={**seen, RECOMPUTING: recomputing})

    return checkpoint(run, x, context)
