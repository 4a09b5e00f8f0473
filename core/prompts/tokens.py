"""From a template such as "a photo of a {}" to the token ids and input embeddings of one text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce

import torch
from einops import rearrange

from ..concept import PLACEHOLDER
from ..maths.context import context_positions
from ..models.protocol import TextEncoder
from ..wording import quoted

OneEncodersRows = int | tuple[range, ...]
"""What a concept fills the placeholders of a prompt with: its first n vectors, the same in each; or, where several
concepts lie one after another, the rows of each placeholder's own."""

ConceptRows = OneEncodersRows | Mapping[str, OneEncodersRows]
"""The same for all text encoders, or by their names, where they cut a word into different numbers of tokens."""

Words = str | tuple[str, ...]
"""What plain words fill them with: the same in each, or one entry for each placeholder."""

LONGEST = 2000
"""Characters of a prompt that is too long, where it is said; nodes and commands cut the message further."""
ORDINARY = -1
"""In `TokenizedPrompt.concept_rows`: this position holds a token of the vocabulary."""


@dataclass(frozen=True)
class TokenizedPrompt:
    """A filled template as one text encoder sees it: BOS, tokens, first EOT, padding.

    `ids` has `max_length` entries; where a concept sits it holds an ordinary id that means nothing. `concept_rows` has
    as many: the row of the concept's vectors that goes there, or `ORDINARY`. `fill` are the positions taken by whatever
    replaced the placeholder, `eot` the position of the first EOT, `text` the template as it was given.
    """

    ids: tuple[int, ...]
    concept_rows: tuple[int, ...]
    fill: tuple[int, ...]
    eot: int
    text: str

    @property
    def context(self) -> tuple[int, ...]:
        """Positions of the context tokens: BOS to the first EOT, both included, without the filled slot.

        METHODS.md 1.2. Two fillings of one template have equally many, in the same order, whatever their lengths.
        """
        return tuple(context_positions(self.ids, self.fill, self.ids[self.eot]).tolist())


def tokenize_prompt(
    encoder: TextEncoder,
    template: str,
    *,
    rows: ConceptRows | None = None,
    words: Words | None = None,
) -> TokenizedPrompt:
    """Fill every placeholder of `template` with a concept of `rows` vectors or with plain `words`, and tokenize.

    A tuple fills the first placeholder with its first entry and so on: prompts with several concepts, whose vectors
    lie one after another. The text around a placeholder is tokenized on its own, so both fillings keep exactly the same
    context tokens. A template without a placeholder, such as an empty negative prompt, needs neither.

    Raises:
        ValueError: both or neither of `rows` and `words` given; nothing to fill in, or another number of fillings than
            placeholders; special tokens in the text; or the filled prompt does not fit the encoder (the message names
            prompt, tokens and limit).
    """
    if rows is not None and words is not None:
        raise ValueError("fill a prompt with either the concept's rows or plain words, not both")
    if isinstance(rows, Mapping):
        rows = rows[encoder.name]
    pieces = template.split(PLACEHOLDER)
    if len(pieces) > 1 and rows is None and words is None:
        raise ValueError(f"the prompt {quoted(template)} has a {PLACEHOLDER} and nothing was given to fill it with")
    given = rows if rows is not None else words
    several = given if isinstance(given, Sequence) and not isinstance(given, str) else None
    if several is not None and len(several) != len(pieces) - 1:
        raise ValueError(
            f"the prompt {quoted(template)} has {len(pieces) - 1} {PLACEHOLDER} for {len(several)} fillings"
        )
    fillings = [_filling(encoder, one) for one in several or [given] * (len(pieces) - 1)]

    ids, concept_rows, fill = [encoder.bos], [ORDINARY], []
    for index, piece in enumerate(pieces):
        if index > 0:
            filling = fillings[index - 1]
            fill += range(len(ids), len(ids) + len(filling))
            ids += [token for token, _ in filling]
            concept_rows += [row for _, row in filling]
        tokens = _plain_tokens(encoder, piece)
        ids += tokens
        concept_rows += [ORDINARY] * len(tokens)

    limit, taken = encoder.max_length - 2, len(ids) - 1
    if taken > limit:
        raise ValueError(
            f"the prompt {quoted(template, LONGEST)} takes {taken} tokens of {encoder.name}, which has room for {limit}"
        )
    eot = len(ids)
    padding = encoder.max_length - eot - 1
    return TokenizedPrompt(
        ids=(*ids, encoder.eos, *[encoder.pad] * padding),
        concept_rows=(*concept_rows, *[ORDINARY] * (padding + 1)),
        fill=tuple(fill),
        eot=eot,
        text=template,
    )


def input_embeddings(
    encoder: TextEncoder, prompts: Sequence[TokenizedPrompt], vectors: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Input embeddings (B, L, d) and token ids (B, L) of `prompts`, the concept's `vectors` (n, d) in their places.

    Differentiable in `vectors` alone. The table's rows are looked up without gradient and the concept's rows copied
    over them, so autograd never builds a gradient the size of the vocabulary and nothing has to be masked or restored.
    At least float32, also with a half-precision table, so that both branches of a loss are treated alike. The ids are
    shared between calls: do not write to them.

    Raises:
        ValueError: no prompts, `vectors` missing where a prompt needs them, or of another shape.
    """
    if not prompts:
        raise ValueError("there are no prompts to embed")
    table = encoder.table()
    placement = _placement(tuple(prompts), table.device)
    dtype = computing_dtype(table.dtype, *([] if vectors is None else [vectors.dtype]))
    inputs = table.detach()[placement.ids].to(dtype)
    if placement.needed == 0:
        return inputs, placement.ids
    if vectors is None:
        raise ValueError(f"the prompt {quoted(prompts[0].text)} was tokenized for a concept, but no vectors were given")
    if vectors.ndim != 2 or vectors.shape[1] != encoder.width or vectors.shape[0] != placement.needed:
        raise ValueError(
            f"{encoder.name} needs {placement.needed} vectors here, of width {encoder.width}, "
            f"got a tensor of shape {tuple(vectors.shape)}"
        )
    rows = vectors.to(table.device, dtype).index_select(0, placement.rows)
    placed = rearrange(inputs, "b l d -> (b l) d").index_copy(0, placement.positions, rows)
    return placed.view_as(inputs), placement.ids


def computing_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """The widest of `dtypes`, float32 at least. 8-bit floats only store: PyTorch promotes them to nothing."""
    wide = [dtype for dtype in dtypes if dtype.itemsize > 1]
    return reduce(torch.promote_types, wide, torch.float32)


@dataclass(frozen=True)
class _Placement:
    """Index tensors of a batch: `ids` (B, L), flat `positions` (K,) in B * L, `rows` (K,), and the vectors needed."""

    ids: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor
    needed: int


@lru_cache(maxsize=512)
def _placement(prompts: tuple[TokenizedPrompt, ...], device: torch.device) -> _Placement:
    # Cached: a training step would otherwise wait for three small copies to the device. Never as inference tensors,
    # which autograd refuses to keep for the backward pass even when the next caller is outside inference mode.
    flat = [row for prompt in prompts for row in prompt.concept_rows]
    positions = [position for position, row in enumerate(flat) if row != ORDINARY]
    rows = [flat[position] for position in positions]
    with torch.inference_mode(False):
        return _Placement(
            ids=torch.tensor([prompt.ids for prompt in prompts], dtype=torch.long, device=device),
            positions=torch.tensor(positions, dtype=torch.long, device=device),
            rows=torch.tensor(rows, dtype=torch.long, device=device),
            needed=max(rows, default=-1) + 1,
        )


def _filling(encoder: TextEncoder, given: int | range | str) -> list[tuple[int, int]]:
    """(token id, concept row) of each position that replaces the placeholder."""
    if not isinstance(given, str):
        rows = range(given) if isinstance(given, int) else given
        if len(rows) < 1:
            raise ValueError(f"a concept has at least one vector, not {given}")
        return [(_meaningless_id(encoder), row) for row in rows]
    tokens = word_tokens(encoder, given)
    if not tokens:
        raise ValueError(f"the words {quoted(given)} hold no token of {encoder.name}")
    return [(token, ORDINARY) for token in tokens]


def word_tokens(encoder: TextEncoder, words: str) -> list[int]:
    """The ids of plain `words` as they stand inside a sentence: to some tokenizers a word at the beginning of a text,
    with no space before it, is another one, and often no whole one."""
    own = getattr(encoder, "tokenize_word", None)
    return _plain_tokens(encoder, words) if own is None else list(own(words))


def _meaningless_id(encoder: TextEncoder) -> int:
    # Encoders look for EOT by id, and some mask padding by id: a concept's position must look like neither.
    return next(id for id in range(4) if id not in (encoder.bos, encoder.eos, encoder.pad))


def _plain_tokens(encoder: TextEncoder, text: str) -> list[int]:
    if not text.strip():
        return []
    tokens = list(encoder.tokenize(text))
    if encoder.bos in tokens or encoder.eos in tokens:
        raise ValueError(f"the text {quoted(text)} holds a special token of {encoder.name}; write ordinary words only")
    return tokens
