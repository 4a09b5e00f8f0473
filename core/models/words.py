"""What a model's tables say of words: the rows that a word starts from, and whether a concept fits the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..concept import Concept
from ..prompts.tokens import word_tokens
from ..wording import quoted
from .protocol import TextEncoder, TextToImageModel


def starting_vectors(encoder: TextEncoder, class_word: str, length: int) -> torch.Tensor:
    """(length, d) float32 input embeddings of the class word's tokens, taken in order and again from the first where
    there are more vectors than tokens; one vector of a phrase is its first token (METHODS.md 1.4 no. 1).

    Raises ValueError where the class word has no token.
    """
    tokens = word_tokens(encoder, class_word)
    if not tokens:
        raise ValueError(f"the class word {quoted(class_word)} holds no token of {encoder.name}")
    rows = [tokens[index % len(tokens)] for index in range(length)]
    return encoder.table()[rows].detach().float().clone()


def words_vectors(encoder: TextEncoder, words: str) -> torch.Tensor:
    """(tokens, d) float32 input embeddings of all tokens of `words`. Raises ValueError where there is none."""
    return starting_vectors(encoder, words, max(1, len(word_tokens(encoder, words))))


def vectors_of(concept: Concept, model: TextToImageModel, length: int | None = None) -> dict[str, torch.Tensor]:
    """The vectors of a concept to continue from, as many as it has or `length`. Raises ValueError where they do not fit
    the model or the length."""
    found = {name: tuple(value.shape) for name, value in concept.vectors.items()}
    own = {name: shape[0] for name, shape in found.items()} if length is None else {}
    wanted = {name: (own.get(name, length), encoder.width) for name, encoder in model.text_encoders.items()}
    if wanted != found:
        raise ValueError(f"the concept {concept.name!r} has vectors {found}, this training needs {wanted}")
    return {name: concept.vectors[name].detach().float().clone() for name in wanted}


def layer_vectors_of(concept: Concept, model: TextToImageModel) -> dict[str, torch.Tensor] | None:
    """(layers, n, d) of a concept with a vector for every layer, None for any other.

    Raises ValueError where they do not fit the model's text encoders or its number of cross-attention layers.
    """
    if concept.layer_vectors is None:
        return None
    layers = len(model.cross_attention_layers())
    found = {name: tuple(value.shape) for name, value in concept.layer_vectors.items()}
    wanted = {name: (layers, concept.length, encoder.width) for name, encoder in model.text_encoders.items()}
    if wanted != found:
        raise ValueError(
            f"the concept {concept.name!r} has vectors for the layers of another model: {found}, "
            f"this one needs {wanted}"
        )
    return {name: concept.layer_vectors[name].detach().float().clone() for name in wanted}


def one_slot_a_layer(layers: Sequence[str]) -> tuple[int, ...]:
    """P+ / XTI: every cross-attention layer looks at a vector of its own."""
    return tuple(range(len(layers)))


def one_slot_a_block(layers: Sequence[str]) -> tuple[int, ...]:
    """METHODS.md 2.6: layers of one block of the UNet share a vector, which makes 7 for Stable Diffusion 1 and 2.

    `layers` are diffusers' names ("down_blocks.1.attentions.0. ..."); the block is what precedes "attentions".
    """
    slots: dict[str, int] = {}
    return tuple(slots.setdefault(name.partition(".attentions.")[0], len(slots)) for name in layers)
