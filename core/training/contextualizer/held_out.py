"""How well a contextualizer guesses masked tokens of captions that it was never trained on, and what that is worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ...maths.statistics import wilson
from ...models.protocol import TextEncoder
from ...networks.contextualizer import Contextualizer
from ...prompts.captions import CaptionSource
from ..run.draws import generator_for
from .masking import MaskableRow, MaskedBatch, caption_row, mask_rows, masked_inputs, nameable_ids

BATCH = 64


def nothing() -> None:
    """Between two pieces of work, where nobody wants to stop."""


def drawn(
    source: CaptionSource, count: int, generator: torch.Generator, between: Callable[[], None] = nothing
) -> Iterator[str]:
    """`count` captions, a few at a time; those of `SplitCaptions` are the same as all at once."""
    for start in range(0, count, BATCH):
        between()
        yield from source.draw(min(BATCH, count - start), generator)


@dataclass(frozen=True)
class HeldOut:
    """Counts of masked tokens of held-out captions: all, guessed right, and right by two floors.

    `most_frequent` always says the token that is masked most often in training captions. `shuffled_context` is the same
    contextualizer with the unmasked tokens of all held-out captions dealt out anew among their places: what length,
    position and habit give without a context to read.
    """

    captions: int
    masked: int
    right: int
    most_frequent: int
    shuffled_context: int

    @property
    def accuracy(self) -> float:
        return self.right / self.masked

    def summary(self) -> str:
        """The three shares in one line."""
        shares = {name: count / self.masked for name, count in self._named().items()}
        return (
            f"held-out masked tokens guessed right: {shares['accuracy']:.1%}; "
            f"always the most frequent one: {shares['floor_most_frequent']:.1%}; "
            f"with the context shuffled: {shares['floor_shuffled_context']:.1%}"
        )

    def figures(self) -> dict[str, float | int | list[float]]:
        """Shares for a table, each with its 95 % interval."""
        shares = {name: wilson(count, self.masked) for name, count in self._named().items()}
        figures: dict[str, float | int | list[float]] = {name: one.value for name, one in shares.items()}
        figures |= {f"{name}_interval": [one.low, one.high] for name, one in shares.items()}
        return {**figures, "captions": self.captions, "masked_tokens": self.masked}

    def _named(self) -> dict[str, int]:
        return {
            "accuracy": self.right,
            "floor_most_frequent": self.most_frequent,
            "floor_shuffled_context": self.shuffled_context,
        }


@dataclass(frozen=True)
class Questions:
    """Captions with some tokens masked: the rows, and all of them as one batch."""

    rows: Sequence[MaskableRow]
    batch: MaskedBatch

    @classmethod
    def of(
        cls, encoder: TextEncoder, psi: Contextualizer, source: CaptionSource, captions: int, *, rho: float, seed: int,
        stream: str = "held out", between: Callable[[], None] = nothing,
    ) -> Questions:  # fmt: skip
        """`captions` of `source`, which raises where it has none; all choices are seeded. `between` is called often."""
        generator, nameable = generator_for(seed, stream, 0), nameable_ids(psi.rows)
        rows = []
        for text in drawn(source, captions, generator, between):
            between()
            rows.append(caption_row(encoder, text, nameable))
        return cls(rows, mask_rows(rows, torch.rand((captions, encoder.max_length), generator=generator), rho))


def held_out_accuracy(
    encoder: TextEncoder, psi: Contextualizer, training: CaptionSource, asked: Questions, *, rho: float, seed: int = 0,
    between: Callable[[], None] = nothing,
) -> HeldOut:  # fmt: skip
    """Guess what was masked in `asked`, held-out captions. As many of `training` give the most frequent token; all
    choices are seeded. `between` is called often."""
    captions, batch = len(asked.rows), asked.batch
    options = {"rho": rho, "seed": seed, "stream": "most frequent", "between": between}
    seen = Questions.of(encoder, psi, training, captions, **options).batch
    frequent = Counter(seen.targets.tolist()).most_common(1)
    shuffled = _with_ids(batch, shuffled_context(asked.rows, batch, generator_for(seed, "shuffle", 0)))
    return HeldOut(
        captions,
        len(batch.targets),
        _right(encoder, psi, batch, between),
        int((batch.targets == frequent[0][0]).sum()) if frequent else 0,
        _right(encoder, psi, shuffled, between),
    )


def shuffled_context(rows: Sequence[MaskableRow], batch: MaskedBatch, generator: torch.Generator) -> torch.Tensor:
    """The ids (B, L) of `batch` with all unmasked tokens between BOS and EOT permuted over all rows."""
    place = torch.arange(batch.ids.shape[1])
    ends = torch.tensor([row.end for row in rows])
    context = ((place > 0) & (place < ends[:, None])).flatten()
    context[batch.masked] = False
    positions = context.nonzero()[:, 0]
    ids = batch.ids.flatten().clone()
    ids[positions] = ids[positions[torch.randperm(len(positions), generator=generator)]]
    return ids.view_as(batch.ids)


def _with_ids(batch: MaskedBatch, ids: torch.Tensor) -> MaskedBatch:
    return MaskedBatch(ids, batch.masked, batch.targets, batch.concept, batch.concept_rows)


@torch.no_grad()
def _right(encoder: TextEncoder, psi: Contextualizer, batch: MaskedBatch, between: Callable[[], None]) -> int:
    """How many targets have the largest logit."""
    table, length = encoder.table(), batch.ids.shape[1]
    right = torch.zeros((), dtype=torch.long, device=table.device)
    for start in range(0, len(batch.ids), BATCH):
        between()
        ids = batch.ids[start : start + BATCH]
        own = (batch.masked >= start * length) & (batch.masked < start * length + ids.numel())
        none = batch.concept
        part = MaskedBatch(ids, batch.masked[own] - start * length, batch.targets[own], none, none).to(table.device)
        outputs = encoder.encode(masked_inputs(table, part, psi.mask), part.ids).tokens
        right += (psi(outputs, part.masked).argmax(dim=-1) == psi.rows[part.targets]).sum()
    return int(right)
