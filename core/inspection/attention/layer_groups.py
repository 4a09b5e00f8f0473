"""Which cross-attention layers are kept apart and which are added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MOST = 16
"""Groups that are kept: the 16 layers of SD 1 and 2 one by one, SDXL's 70 block by block."""

PARTS = {"down": "down", "input": "down", "mid": "middle", "up": "up", "output": "up", "joint": "joint"}
"""Beginning of a layer's name, of diffusers or of ComfyUI, and the part of the UNet that it lies in; "joint" where text
and image are one sequence ("joint.<group>.<block>")."""


@dataclass(frozen=True)
class LayerPlan:
    """`group_of[layer]` is the group of each layer in forward order; `names` and `parts` describe the groups."""

    group_of: tuple[int, ...]
    names: tuple[tuple[str, ...], ...]
    parts: tuple[str, ...]


def layer_plan(layers: Sequence[str]) -> LayerPlan:
    """Every layer by itself where there are at most 16, else those of one block together, else those of one level.

    Layers of a block, and of a level in one part of the UNet, have maps of one size.
    """
    keys = list(layers)
    for coarser in (block, level):
        if len(set(keys)) > MOST:
            keys = [coarser(name) for name in layers]
    order = list(dict.fromkeys(keys))
    names = [tuple(name for name, key in zip(layers, keys, strict=True) if key == one) for one in order]
    return LayerPlan(
        group_of=tuple(order.index(key) for key in keys),
        names=tuple(names),
        parts=tuple(part(group[0]) for group in names),
    )


def block(name: str) -> str:
    """The spatial transformer that a layer belongs to."""
    return name.partition(".transformer_blocks.")[0]


def level(name: str) -> str:
    """The first two pieces of its name: "down_blocks.1"."""
    return ".".join(name.split(".")[:2])


def part(name: str) -> str:
    """ "down", "middle" or "up". Raises ValueError for a name of neither naming scheme."""
    for beginning, where in PARTS.items():
        if name.startswith(beginning):
            return where
    raise ValueError(f"cannot tell in which part of a UNet {name!r} lies")
