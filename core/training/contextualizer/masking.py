"""Rows of token ids with some of them masked, as one text encoder takes them in (METHODS.md M3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from einops import rearrange

from ...maths.mlm import draw_mask, maskable_positions
from ...models.protocol import TextEncoder
from ...prompts.tokens import ORDINARY, TokenizedPrompt, computing_dtype
from ..run.draws import send


@dataclass(frozen=True)
class MaskableRow:
    """One row of `ids` (L,), where it may be masked, bool (L,), and the row of the concept's vectors at each position
    (`ORDINARY` where there is none). `end` is the position of the first EOT."""

    ids: torch.Tensor
    maskable: torch.Tensor
    concept_rows: torch.Tensor
    end: int

    def of_copy(self, copy: int, length: int) -> MaskableRow:
        """This row for one of several copies of the concept's `length` vectors that lie one after another."""
        if copy == 0:
            return self
        ordinary = self.concept_rows == ORDINARY
        return replace(self, concept_rows=torch.where(ordinary, self.concept_rows, self.concept_rows + copy * length))


@dataclass(frozen=True)
class MaskedBatch:
    """Rows on their way through the encoder. `ids` (B, L) are unmasked; `masked` (M,) and `concept` (K,) are flat
    positions in B * L; `targets` (M,) the ids behind the masks; `concept_rows` (K,) which vector goes where."""

    ids: torch.Tensor
    masked: torch.Tensor
    targets: torch.Tensor
    concept: torch.Tensor
    concept_rows: torch.Tensor

    def to(self, device: torch.device) -> MaskedBatch:
        """On `device` in one copy that nothing waits for."""
        parts = [self.ids.flatten(), self.masked, self.targets, self.concept, self.concept_rows]
        ids, *rest = send(torch.cat(parts), device).split([part.numel() for part in parts])
        return MaskedBatch(ids.view_as(self.ids), *rest)


def nameable_ids(rows: torch.Tensor) -> np.ndarray:
    """Which vocabulary ids a contextualizer with output `rows` (V,) can name, bool (V,) on the CPU."""
    return (rows >= 0).cpu().numpy()


def caption_row(encoder: TextEncoder, caption: str, nameable: np.ndarray) -> MaskableRow:
    """METHODS.md M3: a caption between BOS and EOT, truncated to the encoder's length, as a row without a concept."""
    special = (encoder.bos, encoder.eos)
    tokens = [token for token in encoder.tokenize(caption) if token not in special][: encoder.max_length - 2]
    end = len(tokens) + 1
    ids = np.full(encoder.max_length, encoder.pad)
    ids[: end + 1] = [encoder.bos, *tokens, encoder.eos]
    return _row(ids, [ORDINARY] * encoder.max_length, encoder.eos, (), end, nameable)


def prompt_row(
    encoder: TextEncoder, prompt: TokenizedPrompt, class_word: str | None, nameable: np.ndarray
) -> MaskableRow:
    """METHODS.md M3: a prompt with the concept in it. Neither the concept's positions nor those of the `class_word`
    that follows it may be masked; None: it stands alone.

    Raises ValueError where the class word does not follow the concept.
    """
    protected = list(prompt.fill)
    if class_word is not None:
        tokens = list(encoder.tokenize(class_word))
        for position in (position for position in prompt.fill if position + 1 not in prompt.fill):
            beside = range(position + 1, position + 1 + len(tokens))
            if [prompt.ids[place] for place in beside if place < prompt.eot] != tokens:
                raise ValueError(f"the class word {class_word!r} does not follow the concept in {prompt.text!r}")
            protected += beside
    return _row(np.asarray(prompt.ids), prompt.concept_rows, encoder.eos, protected, prompt.eot, nameable)


def mask_rows(rows: Sequence[MaskableRow], uniform: torch.Tensor, rho: float) -> MaskedBatch:
    """Mask `rows` by the numbers `uniform` (B, L) in [0, 1), all on the CPU."""
    ids = torch.stack([row.ids for row in rows])
    masked = draw_mask(uniform, torch.stack([row.maskable for row in rows]), rho).flatten().nonzero()[:, 0]
    concept_rows = torch.stack([row.concept_rows for row in rows]).flatten()
    concept = (concept_rows != ORDINARY).nonzero()[:, 0]
    return MaskedBatch(ids, masked, ids.flatten()[masked], concept, concept_rows[concept])


def masked_inputs(
    table: torch.Tensor, batch: MaskedBatch, mask: torch.Tensor, vectors: torch.Tensor | None = None
) -> torch.Tensor:
    """Input embeddings (B, L, d) of a batch, on its device: the table's rows without gradient, the row `mask` (d,)
    where masked, the concept's `vectors` (n, d) in their places; differentiable in both."""
    rows = table.detach()[batch.ids.to(table.device)]
    inputs = rows.to(batch.ids.device, computing_dtype(table.dtype))
    flat = rearrange(inputs, "b l d -> (b l) d")
    if vectors is not None:
        flat = flat.index_copy(0, batch.concept, vectors.to(flat.dtype).index_select(0, batch.concept_rows))
    flat = flat.index_copy(0, batch.masked, mask.to(flat.dtype).expand(len(batch.masked), -1))
    return flat.view_as(inputs)


def _row(
    ids: np.ndarray, concept_rows: Sequence[int], eot: int, protected: Sequence[int], end: int, nameable: np.ndarray
) -> MaskableRow:
    allowed = maskable_positions(ids, eot, protected) & nameable[ids]
    return MaskableRow(
        torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(allowed), torch.tensor(concept_rows), end
    )
