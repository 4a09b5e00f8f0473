"""Stay near real words while learning: the contrastive loss of METHODS.md D3 and the norm penalty D4."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from einops import rearrange

from ...maths.contrastive import LAMBDA_CONTRASTIVE, LAMBDA_NORM, NEIGHBOURS, TAU
from ...maths.finite import require_finite
from ...models.protocol import TextToImageModel, fingerprint
from ...models.vocabulary import KnownWords, candidates
from ...prompts.tokens import ConceptRows, Words
from ..near_words import Negatives, contrastive_sum, norm_sum
from .seam import LossTerm, Terms, TrainingStep


class NearestTokenRegularizer:
    """lambda_c L_c + lambda_2 L_2 (METHODS.md D3, D4, D5) on the concept's own vectors, those of every layer where it
    has them (XTI); added up over text encoders, as in the tuning-encoder's training.

    The positives are the `neighbours` words nearest to each vector, chosen anew every step. The negatives are `bank`,
    encoder name -> (M, d): embeddings of other subjects, which a tuning-encoder's pretraining leaves behind. Without
    one, `words` random words stand in for them: METHODS.md 3.4 leaves a single subject undefined. With neither, L_c is
    0. `known` limits all these words to those that a model was trained on. A weight of 0 costs nothing and changes
    nothing.
    """

    name = "nearest"

    def __init__(
        self,
        *,
        weight: float = LAMBDA_CONTRASTIVE,
        norm_weight: float = LAMBDA_NORM,
        neighbours: int = NEIGHBOURS,
        tau: float = TAU,
        bank: Mapping[str, torch.Tensor] | None = None,
        words: int = 64,
        readable: bool = False,
        known: KnownWords | None = None,
    ) -> None:
        require_finite(weight=weight, norm_weight=norm_weight, temperature=tau)
        if weight < 0 or norm_weight < 0 or words < 0:
            raise ValueError(f"weights and words cannot be negative: {weight}, {norm_weight}, {words}")
        if neighbours < 1 or tau <= 0:
            raise ValueError(f"at least one neighbour and a tau above 0 are needed: {neighbours}, {tau}")
        self.weight, self.norm_weight = weight, norm_weight
        self.neighbours, self.tau, self.words, self.readable = neighbours, tau, words, readable
        self.bank, self.known = dict(bank or {}), dict(known or {})
        self._directions: dict[str, torch.Tensor] = {}
        self._negatives: dict[str, torch.Tensor] = {}

    def prepare(self, model: TextToImageModel, class_word: Words, rows: ConceptRows) -> None:
        """Collect the words that may be neighbours. Raises ValueError where the bank is for another model."""
        self._directions, self._negatives = {}, {}
        if self.weight == 0:
            return
        self.require_fit(model)
        for name, encoder in model.text_encoders.items():
            bank = self.bank.get(name)
            found = candidates(encoder, readable=self.readable, known=self.known.get(name))
            self._directions[name] = found.directions
            if bank is not None:
                self._negatives[name] = bank.detach().float().to(self._directions[name].device, copy=True)

    def require_fit(self, model: TextToImageModel) -> None:
        """Raises ValueError that names both where the bank is that of another model's tuning-encoder."""
        for name, encoder in model.text_encoders.items() if self.bank and self.weight > 0 else ():
            bank = self.bank.get(name)
            if bank is None or bank.ndim != 2 or bank.shape[1] != encoder.width:
                have = {key: tuple(value.shape) for key, value in self.bank.items()}
                raise ValueError(
                    f"the bank of other subjects has no (M, {encoder.width}) for {name} but {have}: its tuning-encoder "
                    f"is for another model than {model.name}; load one of this model, or none"
                )

    def __call__(self, step: TrainingStep) -> Terms:
        losses, own = {}, {name: rearrange(copies, "slots n d -> (slots n) d") for name, copies in step.copies.items()}
        if self.weight > 0:
            negatives = partial(self._others, step.generator)
            loss = contrastive_sum(own, self._directions, negatives, neighbours=self.neighbours, tau=self.tau)
            losses["nearest/contrastive"] = LossTerm(loss, self.weight)
        if self.norm_weight > 0:
            losses["nearest/norm"] = LossTerm(norm_sum(own), self.norm_weight)
        return Terms(losses)

    def state(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weight": self.weight,
            "norm_weight": self.norm_weight,
            "neighbours": self.neighbours,
            "tau": self.tau,
            "words": self.words,
            "readable": self.readable,
            "bank": fingerprint(self.bank) if self.bank else None,
            "known": {name: len(ids) for name, ids in self.known.items()},
        }

    def _others(self, generator: torch.Generator, name: str, near: torch.Tensor) -> Negatives:
        """The bank's embeddings or, without one, random words, of which those that are `near` (n, K) do not count."""
        if name in self._negatives:
            return self._negatives[name], None
        directions = self._directions[name]
        # Drawn on the CPU like every random choice, and sent without waiting.
        drawn = torch.randint(len(directions), (self.words,), generator=generator)
        drawn = drawn.to(directions.device, non_blocking=True)
        return directions[drawn], (drawn[None, :, None] == near[:, None, :]).any(-1)


__all__ = ["NearestTokenRegularizer"]
