"""Predicted embeddings near real words and apart from each other (METHODS.md 3.4)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
import torch.nn.functional as F

from ...maths.contrastive import NEIGHBOURS, TAU
from ...models.protocol import TextToImageModel
from ...models.vocabulary import KnownWords, candidates, known_to
from ..near_words import Negatives, contrastive_sum, norm_sum


class EmbeddingRegularization:
    """D3 and D4 of predictions (B, d) for each of a model's text encoders, added up.

    `known` limits the neighbours to these words, `negatives` (n, d) are embeddings of other subjects for a single
    picture (METHODS.md 3.4), by text encoder.
    """

    def __init__(
        self,
        model: TextToImageModel,
        *,
        positives: int = NEIGHBOURS,
        temperature: float = TAU,
        detach_negatives: bool = False,
        known: KnownWords | None = None,
        negatives: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.model, self.positives, self.temperature = model, positives, temperature
        self.detach_negatives, self.known = detach_negatives, known
        self.negatives = {name: value.to(model.device) for name, value in (negatives or {}).items()}

    @cached_property
    def _directions(self) -> dict[str, torch.Tensor]:
        """The directions (V, d) of the rows that may be neighbours."""
        every = self.model.text_encoders.items()
        found = {name: candidates(one, readable=False, known=known_to(self.known, name)) for name, one in every}
        return {name: one.directions.to(self.model.device) for name, one in found.items()}

    def __call__(
        self, vectors: Mapping[str, torch.Tensor], everybody: Mapping[str, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean of D3 over all anchors and of D4 over `vectors`, both ().

        `everybody` is the batch that `vectors` is a share of; its rows are each other's negatives.
        """
        anchors = {name: value.float() for name, value in (vectors if everybody is None else everybody).items()}

        def negatives(name: str, _: torch.Tensor) -> Negatives:
            return self._others(name, anchors[name])

        contrastive = contrastive_sum(
            anchors, self._directions, negatives, neighbours=self.positives, tau=self.temperature
        )
        return contrastive, norm_sum(vectors)

    def _others(self, name: str, anchors: torch.Tensor) -> Negatives:
        """Every anchor (n, d) is a negative of the others, and what the bank holds is one of all."""
        others = anchors.detach() if self.detach_negatives else anchors
        excluded = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
        if name not in self.negatives:
            return others, excluded
        bank = self.negatives[name]
        return torch.cat([others, bank]), F.pad(excluded, (0, len(bank)), value=False)
