"""Predicted embeddings near real words and apart from each other: METHODS.md D3 and D4 for every text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
import torch.nn.functional as F

from ..maths.contrastive import NEIGHBOURS, TAU, contrastive_loss, nearest_tokens, norm_penalty
from ..models.protocol import TextEncoder, TextToImageModel

DEGENERATE = 1e-3
"""Rows shorter than this share of the mean length are no words."""


class EmbeddingRegularization:
    """D3 and D4 of predictions (B, d) for each of a model's text encoders, added up.

    `candidates` limits the neighbours to these ids, `negatives` (n, d) are embeddings of other subjects for a single
    picture (METHODS.md 3.4). Both by text encoder.
    """

    def __init__(
        self,
        model: TextToImageModel,
        *,
        positives: int = NEIGHBOURS,
        temperature: float = TAU,
        detach_negatives: bool = False,
        candidates: Mapping[str, torch.Tensor] | None = None,
        negatives: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.model, self.positives, self.temperature = model, positives, temperature
        self.detach_negatives, self.candidates = detach_negatives, candidates
        self.negatives = {name: value.to(model.device) for name, value in (negatives or {}).items()}

    @cached_property
    def _words(self) -> dict[str, torch.Tensor]:
        """The directions (V, d) of the rows that may be neighbours."""
        found = {}
        for name, encoder in self.model.text_encoders.items():
            ids = word_ids(encoder, None if self.candidates is None else self.candidates.get(name))
            rows = encoder.table().detach()[ids.to(encoder.table().device)].float().clone()
            found[name] = F.normalize(rows, dim=-1).to(self.model.device)
        return found

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

    def nearest(self, vectors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """v^h of each prediction: the row (B, d) of its nearest readable word, without gradient."""
        return {name: hard_rows(self.model, name, value, self.candidates)[0] for name, value in vectors.items()}

    def _contrastive(self, name: str, anchors: torch.Tensor) -> torch.Tensor:
        words = self._words[name]
        positives = words[nearest_tokens(anchors.detach(), words, min(self.positives, len(words)))]
        others = anchors.detach() if self.detach_negatives else anchors
        excluded = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
        if name in self.negatives:
            bank = self.negatives[name]
            others = torch.cat([others, bank])
            excluded = F.pad(excluded, (0, len(bank)), value=False)
        return contrastive_loss(anchors, positives, others, tau=self.temperature, excluded=excluded)


def word_ids(encoder: TextEncoder, candidates: torch.Tensor | None, *, readable: bool = False) -> torch.Tensor:
    """Ids of the vocabulary's words: no special token, no degenerate row; `readable` asks for whole words of letters
    (METHODS.md 3.4)."""
    table = encoder.table().detach()
    norms = table.float().norm(dim=-1).cpu()
    good = norms > DEGENERATE * norms.mean()
    good[[encoder.bos, encoder.eos, encoder.pad]] = False
    if candidates is not None:
        known = torch.zeros_like(good)
        known[candidates.cpu()] = True
        good &= known
    ids = good.nonzero()[:, 0]
    if not readable:
        return ids
    kept = [i for i in ids.tolist() if encoder.token_text(i).endswith("</w>") and encoder.token_text(i)[:-4].isalpha()]
    return torch.tensor(kept or ids.tolist())


def hard_rows(
    model: TextToImageModel, name: str, vectors: torch.Tensor, candidates: Mapping[str, torch.Tensor] | None
) -> tuple[torch.Tensor, list[str]]:
    """The table's rows (B, d) nearest to `vectors` (B, d), and their words."""
    encoder = model.text_encoders[name]
    ids = word_ids(encoder, None if candidates is None else candidates.get(name), readable=True)
    table = encoder.table().detach()
    rows = table[ids.to(table.device)].float().to(vectors.device)
    best = nearest_tokens(vectors.detach().float(), F.normalize(rows, dim=-1), 1)[:, 0]
    words = [encoder.token_text(int(ids[i])).removesuffix("</w>") for i in best.tolist()]
    return rows[best], words


def hard_words(
    model: TextToImageModel, vectors: Mapping[str, torch.Tensor], candidates: Mapping[str, torch.Tensor] | None
) -> dict[str, str]:
    """The hard tokens of a word, by text encoder: one for each of its vectors, joined."""
    return {name: " ".join(hard_rows(model, name, value, candidates)[1]) for name, value in vectors.items()}
