"""The hypernetwork: low-rank changes A B of every attention matrix of a UNet (METHODS.md 3.3, D1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from einops import rearrange
from torch import nn

from .trunk import TrunkFeatures

Factors = tuple[torch.Tensor, torch.Tensor]
"""A (B, Din, r) and B (B, r, Dout) of one matrix, one pair for each picture: y = x W + s (x A) B (D1)."""
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
SPREAD = 0.5
"""How far the pictures' A lie around their shape's common one at the start, in units of its own size."""


def targets_of(layers: Mapping[str, nn.Module]) -> dict[str, tuple[int, int]]:
    """name -> (Din, Dout) of q, k, v and out of every self- and cross-attention among a UNet's linear layers, sorted by
    name, which both programs agree on. Raises ValueError where there is none."""
    wanted = [
        name for name in sorted(layers) if any(name.endswith(f"attn{i}.{part}") for i in (1, 2) for part in PROJECTIONS)
    ]
    if not wanted:
        raise ValueError("this UNet has no attention layers that a tuning-encoder could change")
    return {name: (int(layers[name].weight.shape[1]), int(layers[name].weight.shape[0])) for name in wanted}


class Hypernetwork(nn.Module):
    """A transformer decoder in which every matrix asks with a learned query what a picture changes in it.

    The heads that turn an answer into A and B are shared by all matrices of one shape. B's heads start at zero, so that
    an untrained hypernetwork changes nothing.
    """

    def __init__(
        self,
        targets: Mapping[str, Sequence[int]],
        *,
        feature: int,
        token: int,
        width: int,
        layers: int,
        heads: int,
        rank: int,
    ) -> None:
        super().__init__()
        self.rank = rank
        self.targets = {name: (int(a), int(b)) for name, (a, b) in targets.items()}
        self.shapes = sorted(set(self.targets.values()))
        self.queries = nn.Parameter(torch.empty(len(self.targets), width))
        self.from_feature, self.from_tokens = nn.Linear(feature, width), nn.Linear(token, width)
        self.decoder = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width, heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.a_heads = nn.ModuleList(nn.Linear(width, d_in * rank) for d_in, _ in self.shapes)
        self.b_heads = nn.ModuleList(nn.Linear(width, rank * d_out) for _, d_out in self.shapes)
        members = {shape: [] for shape in self.shapes}
        for row, shape in enumerate(self.targets.values()):
            members[shape].append(row)
        self.members = list(members.values())  # known to the host too, which would otherwise wait for the device
        for number, shape in enumerate(self.shapes):
            self.register_buffer(f"rows_{number}", torch.tensor(members[shape]), persistent=False)

    def forward(self, features: TrunkFeatures) -> dict[str, Factors]:
        """The change of every matrix, by its name, for every picture of the batch."""
        memory = torch.cat([self.from_feature(features.pooled)[:, None], self.from_tokens(features.tokens)], dim=1)
        x = self.queries.expand(len(memory), -1, -1)
        for layer in self.decoder:
            x = layer(x, memory)
        x = self.norm(x)
        names, found = list(self.targets), {}
        for number in range(len(self.shapes)):
            rows = getattr(self, f"rows_{number}")
            answers = x.index_select(1, rows)
            a = rearrange(self.a_heads[number](answers), "b m (d_in r) -> b m d_in r", r=self.rank)
            b = rearrange(self.b_heads[number](answers), "b m (r d_out) -> b m r d_out", r=self.rank)
            for place, row in enumerate(self.members[number]):
                found[names[row]] = (a[:, place], b[:, place])
        return {name: found[name] for name in names}

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """B = 0 (METHODS.md 3.3) and A of the size that LoRA starts with, Din^-1/2, the same for a shape but for
        `SPREAD`; queries drawn from N(0, 1)."""

        def normal(parameter: nn.Parameter, std: float) -> None:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)

        normal(self.queries, 1.0)
        width = self.queries.shape[1]
        for (d_in, _), head in zip(self.shapes, self.a_heads, strict=True):
            normal(head.weight, SPREAD * (d_in * width) ** -0.5)
            normal(head.bias, d_in**-0.5)
        for head in self.b_heads:
            head.weight.zero_()
            head.bias.zero_()
