"""The contextualizer psi: guesses masked words from the text encoder's outputs, looking both ways (METHODS.md 2.1).

The text encoder is causal, so a masked word *before* the concept cannot see it there. psi is not, and that is what lets
the concept help or hinder the guess and what carries the gradient back to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import nn

if TYPE_CHECKING:
    from ..models.protocol import TextEncoder

POSITION_STD = 0.02
OUTPUT_STD = 768**-0.5


@dataclass(frozen=True)
class ContextualizerShape:
    """Attention stages, heads, and the feed-forwards' hidden width in units of d. Between two attentions sits one
    feed-forward, so there is one fewer of them.

    `positions` is how many of the text encoder's outputs are read, None all (77). That encoder is causal, so the first
    ones are the same without those behind them, which in most prompts are padding and four fifths of the work.
    """

    attentions: int = 4
    heads: int = 4
    hidden: int = 4
    positions: int | None = None

    def __post_init__(self) -> None:
        if min(self.attentions, self.heads, self.hidden) < 1:
            raise ValueError(f"at least one attention, head and hidden unit, not {self}")
        if self.positions is not None and self.positions < 3:
            raise ValueError(f"BOS, a token and EOT need 3 positions, not {self.positions}")


PRESETS: Mapping[str, ContextualizerShape] = {
    "paper": ContextualizerShape(),
    "short": ContextualizerShape(positions=24),
    "tiny": ContextualizerShape(attentions=2, heads=4, hidden=2, positions=32),
}
"""METHODS.md 2.1; the same for prompts of at most 22 tokens, which every built-in one about pets and objects is beside
a class word of up to three, and for which MLM costs a third; and a small one for narrow encoders such as the bundled
tiny model's."""


@dataclass(frozen=True)
class EncoderIdentity:
    """The text encoder that a contextualizer belongs to. Another one speaks another language, whatever its width.

    `output` is the encoder's; "" where it is not known, as in files from before it was kept. SD 1 and SDXL share the
    words of one encoder and read it at different layers.
    """

    name: str
    fingerprint: str
    width: int
    max_length: int
    vocabulary: int
    output: str = ""

    @classmethod
    def of(cls, encoder: TextEncoder) -> EncoderIdentity:
        size = (encoder.width, encoder.max_length, int(encoder.table().shape[0]))
        return cls(encoder.name, encoder.fingerprint, *size, encoder.output)

    def __str__(self) -> str:
        output = f", {self.output}" if self.output else ""
        return f"{self.name} ({self.fingerprint}, {self.width} wide, {self.vocabulary} tokens{output})"

    def require(self, encoder: TextEncoder) -> None:
        """Raises ValueError that names both unless `encoder` is this one (METHODS.md 2.8 no. 4)."""
        other = EncoderIdentity.of(encoder)
        if other != (self if self.output else replace(self, output=other.output)):
            raise ValueError(
                f"this contextualizer was trained on the text encoder {self}, but here is {other}; "
                "load one of this text encoder or train it with `contextual-inversion pretrain-contextualizer`"
            )


class ShortEncoder:
    """A causal text encoder that takes only its first `length` positions; otherwise the same."""

    def __init__(self, encoder: TextEncoder, length: int) -> None:
        self.encoder, self.max_length = encoder, min(length, encoder.max_length)

    def __getattr__(self, name: str) -> Any:
        if name == "encoder":  # while it is unpickled in a worker
            raise AttributeError(name)
        return getattr(self.encoder, name)


class Attention(nn.Module):
    """Multi-head self-attention of every position to every position: no dropout, no causal and no padding mask."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, d) -> (B, L, d)"""
        q, k, v = rearrange(self.in_proj(x), "b l (qkv heads d) -> qkv b heads l d", qkv=3, heads=self.heads)
        # Written out: with 77 positions the maps are small, and this has the faster backward pass on a CPU.
        probabilities = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
        return self.out_proj(rearrange(probabilities @ v, "b heads l d -> b l (heads d)"))


class FeedForward(nn.Module):
    """W2 ReLU(W1 x), *without* a residual around it (METHODS.md M1)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(self.w1(x).relu())


class Contextualizer(nn.Module):
    """psi, and the embedding of [MASK] that is trained with it.

    `token_ids` are the vocabulary ids that the output layer can name, in the order of its rows; None: all. The last row
    is [MASK] itself. A token without a row is neither masked nor guessed. `provenance` is plain data: how and on what
    it was trained.
    """

    def __init__(
        self,
        encoder: EncoderIdentity,
        shape: ContextualizerShape = PRESETS["paper"],
        token_ids: Sequence[int] | torch.Tensor | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.shape, self.provenance = encoder, shape, dict(provenance or {})
        self.sparse = token_ids is not None
        ids = torch.arange(encoder.vocabulary) if token_ids is None else torch.as_tensor(token_ids, dtype=torch.long)
        self.register_buffer("token_ids", ids, persistent=False)
        rows = _rows(ids, encoder.vocabulary) if self.sparse else ids.clone()
        self.register_buffer("rows", rows, persistent=False)
        d, stages = encoder.width, range(shape.attentions)
        self.mask = nn.Parameter(torch.zeros(d))
        self.positions = nn.Parameter(torch.zeros(min(shape.positions or encoder.max_length, encoder.max_length), d))
        with torch.random.fork_rng(devices=[]):  # what `initialise` or a file replaces must not move anyone's numbers
            self.attentions = nn.ModuleList(Attention(d, shape.heads) for _ in stages)
            self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in stages)
            self.feed_forwards = nn.ModuleList(FeedForward(d, shape.hidden * d) for _ in stages[1:])
            self.output = nn.Linear(d, len(ids) + 1)

    @property
    def classes(self) -> int:
        """|V| + 1: the tokens that can be named, and [MASK]."""
        return self.output.out_features

    def trunk(self, outputs: torch.Tensor) -> torch.Tensor:
        """METHODS.md M1: the text encoder's outputs (B, L, d) to features (B, L, d)."""
        x = outputs.to(self.positions.dtype) + self.positions[: outputs.shape[1]]
        for stage, (attention, norm) in enumerate(zip(self.attentions, self.norms, strict=True)):
            x = norm(x + attention(x))
            if stage < len(self.feed_forwards):
                x = self.feed_forwards[stage](x)
        return x

    def forward(self, outputs: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """METHODS.md M2: logits (B, L, C). With flat `positions` (K,) in B * L only those: (K, C), which spares the
        output layer, the largest part by far, everywhere else."""
        x = self.trunk(outputs)
        return self.output(x if positions is None else rearrange(x, "b l d -> (b l) d").index_select(0, positions))


def _rows(ids: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Output row of every vocabulary id, -1 where it has none. Raises ValueError for ids that repeat or are unknown."""
    values = ids.tolist()
    if not values or len(set(values)) != len(values) or not 0 <= min(values) <= max(values) < vocabulary:
        raise ValueError(f"token ids are different numbers within 0..{vocabulary - 1}, at least one")
    rows = torch.full((vocabulary,), -1, dtype=torch.long)
    rows[ids] = torch.arange(len(values))
    return rows


@torch.no_grad()
def initialise(contextualizer: Contextualizer, table: torch.Tensor, generator: torch.Generator) -> Contextualizer:
    """The starting weights of METHODS.md 2.1 and the mask row of 2.2, drawn on the CPU; the same module.

    2.1 does not say how the feed-forwards start; they keep PyTorch's uniform draw, with biases of 0.
    """

    def normal(parameter: nn.Parameter, std: float) -> None:
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)

    d = contextualizer.encoder.width
    for module in contextualizer.modules():
        if isinstance(module, nn.Linear):
            module.bias.zero_()
    normal(contextualizer.positions, POSITION_STD)
    for attention in contextualizer.attentions:
        normal(attention.in_proj.weight, d**-0.5 * (2 * 8) ** -0.5)
        normal(attention.out_proj.weight, d**-0.5)
    for feed_forward in contextualizer.feed_forwards:
        for linear in (feed_forward.w1, feed_forward.w2):
            bound = linear.in_features**-0.5
            linear.weight.copy_((2 * torch.rand(linear.weight.shape, generator=generator) - 1) * bound)
    normal(contextualizer.output.weight, OUTPUT_STD)
    contextualizer.mask.copy_(mask_embedding(table, generator))
    return contextualizer


def mask_embedding(table: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """METHODS.md 2.2: the first row (d,) of [MASK]: a random one with the average L1 norm of the `table` (V, d)."""
    row = torch.randn(table.shape[1], generator=generator)
    return row / row.abs().sum() * table.detach().float().cpu().abs().sum(dim=1).mean()
