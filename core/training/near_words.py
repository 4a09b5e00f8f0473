"""Near real words and apart from other subjects: METHODS.md D3 and D4, added up over a model's text encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ..maths.contrastive import contrastive_loss, nearest_tokens, norm_penalty

Negatives = tuple[torch.Tensor, torch.Tensor | None]
"""Embeddings (M, d) to stay apart from, and which of them an anchor leaves out, bool (n, M); None: none."""


def contrastive_sum(
    anchors: Mapping[str, torch.Tensor],
    words: Mapping[str, torch.Tensor],
    negatives: Callable[[str, torch.Tensor], Negatives],
    *,
    neighbours: int,
    tau: float,
) -> torch.Tensor:
    """METHODS.md D3 of `anchors` (n, d), everything by text encoder, added up over these: ().

    The positives are the `neighbours` rows of `words` (V, d), unit vectors, nearest to each anchor (D2).
    `negatives(encoder, near)` is asked once these are known, as places (n, K) in `words`.
    """

    def one(name: str, v: torch.Tensor) -> torch.Tensor:
        directions = words[name]
        near = nearest_tokens(v.detach().to(directions), directions, min(neighbours, len(directions)))
        others, excluded = negatives(name, near)
        return contrastive_loss(v, directions[near], others, tau=tau, excluded=excluded)

    return sum(one(name, v) for name, v in anchors.items())


def norm_sum(vectors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """METHODS.md D4 of `vectors` (n, d), by text encoder, added up over these: ()."""
    return sum(map(norm_penalty, vectors.values()))
