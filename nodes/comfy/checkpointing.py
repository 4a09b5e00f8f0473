"""Checkpointing the blocks of ComfyUI's UNet, through the official patch seam."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

from ...core.models.checkpointing import checkpoint
from ...core.models.replay import replayed
from .attention import RECOMPUTING


def with_checkpointing(options: Mapping[str, Any]) -> dict[str, Any]:
    """`transformer_options` with every ResBlock and SpatialTransformer checkpointed; what came in is not changed.

    ComfyUI takes the first patch that fits a layer, so those of other nodes come first and stay in force.
    """
    patches = options.get("patches", {})
    existing = patches.get("forward_timestep_embed_patch", [])
    ours = ((ResBlock, SpatialTransformer), checkpointed)
    return {**options, "patches": {**patches, "forward_timestep_embed_patch": [*existing, ours]}}


def checkpointed(
    layer: Any, x: torch.Tensor, emb: torch.Tensor, context: Any, options: dict[str, Any], *_: Any
) -> torch.Tensor:
    """A `forward_timestep_embed_patch`: run one block without keeping its inner activations."""
    if isinstance(layer, ResBlock):
        return checkpoint(replayed(layer), x, emb)
    # The UNet overwrites `options["block"]` on its way; when the block runs again it must see what it saw at first.
    seen, block = dict(options), replayed(layer)
    again = False

    def run(x: torch.Tensor, context: Any) -> torch.Tensor:
        nonlocal again
        recomputing, again = again, True
        return block(x, context, {**seen, RECOMPUTING: recomputing})

    out = checkpoint(run, x, context)
    if "transformer_index" in options:
        options["transformer_index"] += 1
    return out
