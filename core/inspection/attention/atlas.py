"""All maps of a recording in one grey picture: a viewer shows any word, layer and step without asking again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch.nn import functional

from ...prompts.words import PromptWord
from .maps import AttentionMaps
from .recorder import pooled

VERSION = 1
MOST_PIXELS = 2**24
"""Of an atlas; a larger one is made of smaller tiles, since browsers refuse pictures that are too large."""
SMALLEST = 8


@dataclass(frozen=True)
class Atlas:
    """`pixels` (rows H, columns W) uint8, tiles row by row.

    A tile's number is ((image * bins + bin) * groups + group) * words + word. A map lies in the upper left corner of
    its tile, `sizes[group]` (h, w) of it, and the rest is 0. A value is pixel / 255 * scale[tile].
    """

    pixels: torch.Tensor
    height: int
    width: int
    columns: int
    sizes: tuple[tuple[int, int], ...]
    scale: tuple[float, ...]


def atlas(maps: AttentionMaps, words: Sequence[PromptWord]) -> Atlas:
    """Every map of every word, each stretched to 255."""
    side = most_cells(maps, len(words))
    groups = [of_words(values, words, side) for values in maps.values]
    sizes = tuple((int(g.shape[-2]), int(g.shape[-1])) for g in groups)
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    padded = [functional.pad(g, (0, width - g.shape[-1], 0, height - g.shape[-2])) for g in groups]
    tiles = rearrange(padded, "groups bins images words h w -> (images bins groups words) h w")
    scale = tiles.amax(dim=(1, 2))
    each = rearrange(scale.clamp_min(torch.finfo(tiles.dtype).tiny), "tiles -> tiles 1 1")
    grey = (tiles / each * 255).round().to(torch.uint8)
    columns = max(1, math.ceil(math.sqrt(len(grey) * height / width)))
    rows = -(-len(grey) // columns)
    sheet = grey.new_zeros(rows * columns, height, width)
    sheet[: len(grey)] = grey
    pixels = rearrange(sheet, "(rows columns) h w -> (rows h) (columns w)", rows=rows)
    return Atlas(pixels.cpu(), height, width, columns, sizes, tuple(scale.tolist()))


def of_words(values: torch.Tensor, words: Sequence[PromptWord], side: int) -> torch.Tensor:
    """Maps (bins, images, L, h, w) as each word's mean (bins, images, words, h', w'), no side longer than `side`."""
    means = torch.stack([values[:, :, list(word.positions)].float().mean(dim=2) for word in words], dim=2)
    small = pooled(rearrange(means, "bins images words h w -> (bins images) words h w"), side)
    return rearrange(small, "(bins images) words h w -> bins images words h w", bins=len(values))


def most_cells(maps: AttentionMaps, words: int) -> int:
    """The largest layer's longer side, halved until the atlas is small enough."""
    height, width = max(g.height for g in maps.groups), max(g.width for g in maps.groups)
    tiles, side = maps.images * len(maps.bins) * len(maps.groups) * words, max(height, width)
    while tiles * side * side > MOST_PIXELS and side >= 2 * SMALLEST:
        side //= 2
    return side


def description(
    maps: AttentionMaps, words: Sequence[PromptWord], sheet: Atlas, prompt: str, layers: Sequence[int]
) -> dict[str, Any]:
    """What a viewer must know beside the atlas' pixels, as plain JSON data. It begins with the size of the maps of
    `layers` where they have one in common, else with all layers."""
    # As recorded, which the atlas may hold smaller.
    sizes = [f"{group.height} x {group.width}" for group in maps.groups]
    first, *others = dict.fromkeys(sizes[layer] for layer in layers)
    groups = [
        {"label": group.label, "depth": group.depth, "size": size, "height": height, "width": width}
        for group, size, (height, width) in zip(maps.groups, sizes, sheet.sizes, strict=True)
    ]
    return {
        "version": VERSION,
        "prompt": prompt,
        "words": [{"text": w.text, "kind": w.kind, "positions": list(w.positions)} for w in words],
        "groups": groups,
        "size": None if others else first,
        "bins": [{"from": start, "to": end} for start, end in maps.bins],
        "tile": {"height": sheet.height, "width": sheet.width, "columns": sheet.columns},
        "scale": list(sheet.scale),
        "images": maps.images,
    }
