"""What was recorded, and one heat map per word made of it (METHODS.md section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from einops import reduce
from torch.nn import functional


@dataclass(frozen=True)
class LayerGroup:
    """One cross-attention layer, or several of one size. `depth` runs from 0 at the first to 1 at the last."""

    label: str
    part: str
    """ "down", "middle" or "up"."""
    layers: tuple[str, ...]
    depth: float
    height: int
    width: int


@dataclass(frozen=True)
class AttentionMaps:
    """Mean attention probabilities. `values[g]` is (bins, images, L, h_g, w_g) and sums to 1 over the L tokens.

    `bins` are stretches (from, to) of the sampling, 0 to 1; those in which no step fell are not there. `weights` says
    how many passes were averaged in each.
    """

    groups: tuple[LayerGroup, ...]
    bins: tuple[tuple[float, float], ...]
    weights: tuple[int, ...]
    values: tuple[torch.Tensor, ...]
    period: int | None = None
    """The context repeats itself after so many tokens, at the earliest; None where that is not known."""

    @property
    def images(self) -> int:
        return int(self.values[0].shape[1])

    @property
    def tokens(self) -> int:
        return int(self.values[0].shape[2])

    def of_image(self, index: int) -> AttentionMaps:
        """The same for one image alone."""
        return replace(self, values=tuple(v[:, index : index + 1] for v in self.values))

    def for_prompt(self, tokens: int) -> AttentionMaps:
        """The same for a prompt of `tokens` positions: a context repeated for batching is folded back.

        Raises ValueError where the recorded prompt was another, of fewer or of other chunks.
        """
        if self.tokens == tokens:
            return self
        if self.tokens < tokens or self.tokens % tokens or tokens % (self.period or tokens):
            raise ValueError(
                f"the prompt takes {tokens} positions of the text encoder, but attention to {self.tokens} was "
                "recorded: give the prompt that was sampled with; prompts that were put one behind another "
                "(ConditioningConcat) with BREAK between them"
            )
        folded = "bins images (copies tokens) h w -> bins images tokens h w"
        return replace(self, values=tuple(reduce(v, folded, "sum", tokens=tokens) for v in self.values))

    def layers_of(self, part: str | None = None, side: int | None = None) -> list[int]:
        """Indices of the groups in `part` of the UNet whose longer side is nearest to `side`; all where None.

        Of the whole UNet it is the nearest side that a layer on the way down or up has: a picture larger than usual
        would otherwise be seen through the middle alone. Raises ValueError where the part has no cross-attention.
        """
        found = [i for i, group in enumerate(self.groups) if part in (None, group.part)]
        if not found:
            raise ValueError(f"this model has no cross-attention in its {part} part")
        if side is None:
            return found
        sides = {i: max(self.groups[i].height, self.groups[i].width) for i in found}
        outer = [sides[i] for i in found if self.groups[i].part != "middle"] or list(sides.values())
        # In octaves: 8 and 32 are equally far from 16; then the finer one.
        nearest = min(outer, key=lambda one: (max(one, side) / min(one, side), -one))
        return [i for i in found if sides[i] == nearest]


def word_maps(
    maps: AttentionMaps,
    words: Sequence[Sequence[int]],
    *,
    layers: Sequence[int] | None = None,
    steps: tuple[float, float] = (0.0, 1.0),
    size: tuple[int, int] | None = None,
) -> torch.Tensor:
    """METHODS.md section 4: attention to each word, (images, words, H, W) float32.

    A word's sub-tokens are averaged; each layer's map is resized bilinearly to the largest chosen layer's grid, or to
    `size`, and layers and steps are averaged, every one with the same weight. `steps` are shares of the sampling.
    Values stay probabilities: display divides by a maximum (`normalised`), a mask takes what lies between the least and
    the most (`stretched`).

    Raises ValueError for no words, no layers, or a range in which no step was recorded.
    """
    chosen = range(len(maps.groups)) if layers is None else layers
    if not words or not all(words) or not len(chosen):
        raise ValueError("choose at least one word and one layer to look at")
    weights = _bin_weights(maps, steps)
    grid = (max(maps.groups[g].height for g in chosen), max(maps.groups[g].width for g in chosen))
    total: torch.Tensor | float = 0.0
    for g in chosen:
        values = torch.einsum("b,bilhw->ilhw", weights.to(maps.values[g]), maps.values[g].float())
        of_words = torch.stack([values[:, list(positions)].mean(dim=1) for positions in words], dim=1)
        total = total + len(maps.groups[g].layers) * resized(of_words, grid)
    mean = total / sum(len(maps.groups[g].layers) for g in chosen)
    return mean if size is None else resized(mean, size)


def normalised(maps: torch.Tensor, *, in_common: bool = False) -> torch.Tensor:
    """Maps (images, words, H, W) divided by the maximum of each, or of all words of a picture together: 0 to 1."""
    top = maps.amax(dim=(1, 2, 3) if in_common else (2, 3), keepdim=True)
    return maps / top.clamp_min(torch.finfo(maps.dtype).tiny)


def stretched(maps: torch.Tensor) -> torch.Tensor:
    """Maps (images, words, H, W) from the least of each, 0, to the most, 1; a map that is everywhere alike is 0.

    Attention is never 0 anywhere, so a share of the maximum alone would let most of a picture through (METHODS.md
    section 4).
    """
    least, most = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    return (maps - least) / (most - least).clamp_min(torch.finfo(maps.dtype).tiny)


def resized(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear, (..., words, h, w) -> (..., words, H, W)."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    flat = maps.flatten(0, -4) if maps.ndim > 4 else maps
    out = functional.interpolate(flat, size=tuple(size), mode="bilinear", align_corners=False)
    return out.unflatten(0, maps.shape[:-3]) if maps.ndim > 4 else out


def _bin_weights(maps: AttentionMaps, steps: tuple[float, float]) -> torch.Tensor:
    start, end = steps
    inside = [a < end and b > start for a, b in maps.bins]
    if not any(inside):
        raise ValueError(f"no step was recorded between {start:.0%} and {end:.0%} of the sampling")
    weights = torch.tensor([w if ok else 0 for w, ok in zip(maps.weights, inside, strict=True)], dtype=torch.float32)
    return weights / weights.sum()
