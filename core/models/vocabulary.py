"""Which words a model knows, and which of them a learned vector is nearest to: the hard token v^h of METHODS.md 3.4 and
3.6."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ..maths.contrastive import nearest_tokens
from ..maths.similarity import unit
from .families import is_narrow
from .protocol import TextEncoder, TextToImageModel
from .tiny.weights import trained_rows

END_OF_WORD = "</w>"
DEGENERATE = 10.0
"""A row this many times longer or shorter than the median is no word's."""
KnownWords = Mapping[str, torch.Tensor]
"""Ids, by text encoder, of the words that a model was trained on; it knows nothing of the others."""


@dataclass(frozen=True)
class Candidates:
    """The words that may be named: their `ids`, and their `directions` (V', d), unit rows on the table's device."""

    ids: Sequence[int]
    directions: torch.Tensor

    def nearest(self, vectors: torch.Tensor, k: int = 1) -> list[list[int]]:
        """METHODS.md D2: the ids of the `k` words nearest to each of `vectors` (n, d), best first."""
        found = nearest_tokens(vectors.detach().to(self.directions), self.directions, k)
        return [[self.ids[place] for place in row] for row in found.tolist()]


def candidates(encoder: TextEncoder, *, readable: bool = True, known: torch.Tensor | None = None) -> Candidates:
    """METHODS.md 3.4: every row of the table but BOS, EOT, padding and rows of degenerate norm; with `readable`, only
    whole words of letters, so that what is named can be read and typed. Of these only the `known` ids (n,), and all
    where that would leave nothing."""
    table = encoder.table().detach().float()
    norms = table.norm(dim=1).cpu().numpy()
    middle = float(np.median(norms))
    allowed = (norms > middle / DEGENERATE) & (norms < middle * DEGENERATE)
    allowed[[encoder.bos, encoder.eos, encoder.pad]] = False
    ids = [int(token) for token in np.flatnonzero(allowed)]
    if readable:
        ids = [token for token in ids if is_readable(encoder.token_text(token))]
    if known is not None:
        ids = _only(ids, known) or ids
    with torch.inference_mode(False), torch.no_grad():
        return Candidates(ids, unit(table.clone()[torch.tensor(ids, device=table.device)]))


def _only(ids: Sequence[int], known: torch.Tensor) -> list[int]:
    wanted = set(known.tolist())
    return [token for token in ids if token in wanted]


def known_words(model: TextToImageModel) -> dict[str, torch.Tensor] | None:
    """The words that the bundled tiny model has learned. None for any other model, which is taken to know its whole
    vocabulary."""
    if not is_narrow(model):
        return None
    found, (ids, rows) = {}, trained_rows()
    for name, encoder in model.text_encoders.items():
        table = encoder.table().detach()
        if table.shape[1] != rows.shape[1] or len(table) <= int(ids.max()):
            return None
        if not torch.equal(table[ids.to(table.device)].half().cpu(), rows.half()):
            return None
        found[name] = ids
    return found


def known_to(known: KnownWords | None, name: str) -> torch.Tensor | None:
    """The ids that text encoder `name` knows; None: all."""
    return None if known is None else known.get(name)


def is_readable(text: str) -> bool:
    """Whether a token is a whole word of at least two plain letters."""
    word = text.removesuffix(END_OF_WORD)
    return text.endswith(END_OF_WORD) and len(word) > 1 and word.isascii() and word.isalpha()


def hard_words(encoders: Mapping[str, TextEncoder], vectors: Mapping[str, torch.Tensor]) -> str:
    """METHODS.md 3.6: the nearest words of a concept, one a vector. Of several text encoders, which share their
    vocabulary and read the same prompt, the words with the highest mean cosine over all."""
    every = {name: candidates(encoder) for name, encoder in encoders.items()}
    first = next(iter(encoders.values()))
    common = sorted(set.intersection(*(set(one.ids) for one in every.values())))
    score = sum(_cosines(every[name], vectors[name], common) for name in every)
    return " ".join(word_of(first.token_text(common[place])) for place in score.argmax(dim=1).tolist())


class HardWords:
    """v^h: the nearest readable word of predictions, among those that the model knows (METHODS.md 3.4 and 3.6)."""

    def __init__(self, model: TextToImageModel, known: KnownWords | None) -> None:
        self.model, self.known = model, known

    @cached_property
    def _candidates(self) -> Candidates:
        name, encoder = next(iter(self.model.text_encoders.items()))
        return candidates(encoder, known=known_to(self.known, name))

    def __call__(self, vectors: Mapping[str, torch.Tensor]) -> list[str]:
        """One word for each row of `vectors` ((n, d) by text encoder). Several text encoders agree on one."""
        if len(self.model.text_encoders) > 1 and self.known is None:
            return hard_words(self.model.text_encoders, vectors).split(" ")
        name, encoder = next(iter(self.model.text_encoders.items()))
        return [word_of(encoder.token_text(row[0])) for row in self._candidates.nearest(vectors[name].float())]


def word_of(text: str) -> str:
    """A token's text without its end-of-word mark."""
    return text.removesuffix(END_OF_WORD)


def _cosines(one: Candidates, vectors: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
    places = {token: place for place, token in enumerate(one.ids)}
    rows = one.directions[torch.tensor([places[token] for token in ids], device=one.directions.device)]
    return (unit(vectors.detach().to(rows)) @ rows.mT).cpu()
