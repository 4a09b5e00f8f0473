"""Predicted embeddings near real words and apart from each other: METHODS.md D3 and D4 for every text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
import torch.nn.functional as F

from ...maths.contrastive import NEIGHBOURS, TAU, contrastive_loss, nearest_tokens, norm_penalty
from ...models.protocol import TextEncoder, TextToImageModel
from ...models.vocabulary import Candidates, candidates, hard_words, word_of

KnownWords = Mapping[str, torch.Tensor]
"""Ids, by text encoder, of the words that a model was trained on; it knows nothing of the others."""


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
        found = {name: words_of(encoder, self._known(name), readable=False) for name, encoder in every}
        return {name: one.directions.to(self.model.device) for name, one in found.items()}

    def __call__(
        self, vectors: Mapping[str, torch.Tensor], everybody: Mapping[str, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean of D3 over all anchors and of D4 over `vectors`, both ().

        `everybody` is the batch that `vectors` is a share of; its rows are each other's negatives.
        """
        contrastive = l2 = torch.zeros((), device=self.model.device)
        for name, own in vectors.items():
            whole = own if everybody is None else everybody[name]
            contrastive = contrastive + self._contrastive(name, whole.float())
            l2 = l2 + norm_penalty(own)
        return contrastive, l2

    def _known(self, name: str) -> torch.Tensor | None:
        return None if self.known is None else self.known.get(name)

    def _contrastive(self, name: str, anchors: torch.Tensor) -> torch.Tensor:
        words = self._directions[name]
        positives = words[nearest_tokens(anchors.detach(), words, min(self.positives, len(words)))]
        others = anchors.detach() if self.detach_negatives else anchors
        excluded = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
        if name in self.negatives:
            bank = self.negatives[name]
            others = torch.cat([others, bank])
            excluded = F.pad(excluded, (0, len(bank)), value=False)
        return contrastive_loss(anchors, positives, others, tau=self.temperature, excluded=excluded)


class HardWords:
    """v^h: the nearest readable word of predictions, among those that the model knows (METHODS.md 3.4 and 3.6)."""

    def __init__(self, model: TextToImageModel, known: KnownWords | None) -> None:
        self.model, self.known = model, known

    @cached_property
    def _candidates(self) -> Candidates:
        name, encoder = next(iter(self.model.text_encoders.items()))
        return words_of(encoder, None if self.known is None else self.known.get(name), readable=True)

    def __call__(self, vectors: Mapping[str, torch.Tensor]) -> list[str]:
        """One word for each row of `vectors` ((n, d) by text encoder). Several text encoders agree on one."""
        if len(self.model.text_encoders) > 1 and self.known is None:
            return hard_words(self.model.text_encoders, vectors).split(" ")
        name, encoder = next(iter(self.model.text_encoders.items()))
        return [word_of(encoder.token_text(row[0])) for row in self._candidates.nearest(vectors[name].float())]


def words_of(encoder: TextEncoder, known: torch.Tensor | None, *, readable: bool) -> Candidates:
    """`candidates` of the vocabulary, without those that are not `known`. All where that would leave nothing."""
    found = candidates(encoder, readable=readable)
    ids = set() if known is None else set(known.tolist())
    kept = [place for place, token in enumerate(found.ids) if token in ids]
    if not kept:
        return found
    places = torch.tensor(kept, device=found.directions.device)
    return Candidates([found.ids[place] for place in kept], found.directions[places])
