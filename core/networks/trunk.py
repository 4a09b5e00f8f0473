"""The tuning-encoder's trunk: one feature and a few tokens from a picture's CLIP and UNet features (METHODS.md 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

GROUPS = 8


@dataclass(frozen=True)
class TrunkFeatures:
    """`pooled` (B, F), METHODS.md 3.3's f, and `tokens` (B, T, C), the last grid before pooling."""

    pooled: torch.Tensor
    tokens: torch.Tensor

    @staticmethod
    def mean(parts: Sequence[TrunkFeatures]) -> TrunkFeatures:
        """Average over predictions at several timesteps: of the features, never of A B (METHODS.md 3.2)."""
        pooled, tokens = ([getattr(part, name) for part in parts] for name in ("pooled", "tokens"))
        return TrunkFeatures(torch.stack(pooled).mean(0), torch.stack(tokens).mean(0))


class Stage(nn.Module):
    """A residual block of two convolutions that halves the grid."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(GROUPS, before), nn.GroupNorm(GROUPS, after)])
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.Conv2d(after, after, 3, padding=1)]
        )
        self.skip = nn.Conv2d(before, after, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, before, h, w) -> (B, after, h / 2, w / 2)"""
        y = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            y = convolution(F.silu(norm(y)))
        return self.skip(F.avg_pool2d(x, 2)) + y


class Trunk(nn.Module):
    """CLIP's patch grid and every map of the UNet's encoder, each normalised, projected to `map_width` channels on one
    `grid` x `grid`, and halved by a residual stage for each width of `stages` after the first."""

    def __init__(
        self,
        clip_width: int,
        clip_vectors: int,
        maps: Sequence[int],
        *,
        grid: int,
        map_width: int,
        stages: Sequence[int],
        feature: int,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.projections = nn.ModuleList(nn.Conv2d(width, map_width, 1) for width in (clip_width, *maps))
        self.join = nn.Conv2d(map_width * (1 + len(maps)), stages[0], 1)
        self.stages = nn.ModuleList(Stage(a, b) for a, b in pairwise(stages))
        self.norm = nn.LayerNorm(stages[-1])
        self.clip_norm = nn.LayerNorm(clip_width)
        self.feature = nn.Linear(stages[-1] + clip_vectors * clip_width, feature)

    def forward(self, vectors: torch.Tensor, grid: torch.Tensor, maps: Sequence[torch.Tensor]) -> TrunkFeatures:
        """CLIP `vectors` (B, V, w) and `grid` (B, w, g, g), UNet `maps` (B, c, h, w): METHODS.md 3.2 and 3.3."""
        if len(maps) != len(self.projections) - 1:
            raise ValueError(f"this encoder reads {len(self.projections) - 1} UNet maps, got {len(maps)}")
        # A 1 x 1 convolution and a resize commute, so the cheap order is taken.
        resized = [self._fit(F.group_norm(one, 1)) for one in (grid, *maps)]
        projected = [project(one) for project, one in zip(self.projections, resized, strict=True)]
        x = self.join(F.silu(torch.cat(projected, dim=1)))
        for stage in self.stages:
            x = stage(x)
        tokens = self.norm(rearrange(x, "b c h w -> b (h w) c"))
        clip = rearrange(self.clip_norm(vectors), "b v w -> b (v w)")
        summary = torch.cat([tokens.mean(1), clip], dim=1)
        return TrunkFeatures(self.feature(summary), tokens)

    def _fit(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] >= self.grid:
            return F.adaptive_avg_pool2d(x, self.grid)
        return F.interpolate(x, size=(self.grid, self.grid), mode="bilinear", align_corners=False)
