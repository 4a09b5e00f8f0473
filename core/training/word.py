"""The word of a training: the input embeddings in its place, which of them are learned, and in how many copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from einops import repeat

from ..concept import Concept
from ..models.protocol import TextToImageModel
from ..models.words import (
    layer_vectors_of,
    one_slot_a_block,
    one_slot_a_layer,
    starting_vectors,
    vectors_of,
    words_vectors,
)
from ..prompts.tokens import ConceptRows
from .methods import WordPart
from .settings import TrainSettings


class Word:
    """Input embeddings of a word, for each text encoder.

    `learned` are the leaves that training moves: the first rows of the word, (k, d), or (S, k, d) where the word has
    one copy of them for each slot of the UNet (XTI). `fixed` (m, d) or (S, m, d) are the rows after them, which stay as
    they are. Either may be empty, not both. `kept` are whole words, (n, d), of text encoders that learn nothing.
    `parts` are the rows of each placeholder's word where several concepts are trained together, by text encoder where
    these differ; () where every placeholder takes all of them.
    """

    def __init__(
        self,
        learned: Mapping[str, torch.Tensor],
        fixed: Mapping[str, torch.Tensor] | None = None,
        slot_of_layer: Sequence[int] | None = None,
        parts: Sequence[range] | Mapping[str, tuple[range, ...]] = (),
        kept: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.learned = learned
        self.fixed = fixed or {}
        self.kept = kept or {}
        self.parts = parts if isinstance(parts, Mapping) else tuple(parts)
        self.slot_of_layer = () if slot_of_layer is None else tuple(slot_of_layer)

    @property
    def rows(self) -> ConceptRows:
        """What it fills the placeholders of a prompt with."""
        if self.parts:
            return self.parts
        rows: dict[str, int] = {}
        for part in (self.learned, self.fixed, self.kept):
            for name, value in part.items():
                rows[name] = rows.get(name, 0) + value.shape[-2]
        return rows if len(set(rows.values())) > 1 else next(iter(rows.values()))

    @property
    def vectors(self) -> Mapping[str, torch.Tensor]:
        """(n, d) for each encoder, part of the graph; of several copies their mean, for all that wants one word."""
        if not self.slot_of_layer and not self.fixed:
            return {**self.learned, **self.kept} if self.kept else self.learned
        return {name: copies.mean(0) if len(copies) > 1 else copies[0] for name, copies in self.copies.items()}

    @property
    def slots(self) -> Mapping[str, torch.Tensor] | None:
        """(S, n, d) for each encoder, part of the graph; None where all layers see the same vectors."""
        return self.copies if self.slot_of_layer else None

    @property
    def copies(self) -> Mapping[str, torch.Tensor]:
        """(S, n, d) for each encoder, part of the graph; S = 1 where all layers see the same vectors."""
        learned, fixed = (
            {name: value if value.ndim == 3 else value[None] for name, value in part.items()}
            for part in (self.learned, self.fixed)
        )
        kept = {name: value[None] for name, value in self.kept.items()}
        if not learned or not fixed:
            return {**(learned or fixed), **kept}
        whole = {
            name: torch.cat([value, fixed[name].expand(len(value), -1, -1)], dim=1) for name, value in learned.items()
        }
        return {**whole, **kept}


def starting_word(model: TextToImageModel, settings: TrainSettings, initial: Concept | None) -> Word:
    """The word that a training begins with: made of the class word, of identifier and class word, or of a concept.

    Raises ValueError where words have no token, or where a concept does not fit the model or the method.
    """
    part, encoders = settings.trains.word, model.text_encoders
    slots = slots_of_layers(part, model.cross_attention_layers())
    if initial is not None:
        return _learning(_continued(model, settings, initial, slots), model, settings)
    if settings.identifier:
        rows = {name: words_vectors(encoder, settings.identifier) for name, encoder in encoders.items()}
        beside = {name: words_vectors(encoder, settings.class_word) for name, encoder in encoders.items()}
    else:
        rows = {
            name: starting_vectors(encoder, settings.class_word, settings.vectors) for name, encoder in encoders.items()
        }
        beside = {}
    if part == "nothing":
        fixed = {name: torch.cat([value, beside[name]]) if beside else value for name, value in rows.items()}
        return Word({}, fixed)
    return _learning(Word(rows if slots is None else _copied(rows, slots), beside, slots), model, settings)


def _learning(word: Word, model: TextToImageModel, settings: TrainSettings) -> Word:
    """The word as it is to learn: in the text encoders that were chosen, in those that suit the model, or in all.

    Raises ValueError for a text encoder that the model has not, and where only some are to learn and the word has
    vectors for each layer.
    """
    chosen = settings.encoders or tuple(getattr(model, "learns", ()))
    unknown = [name for name in chosen if name not in model.text_encoders]
    if unknown:
        raise ValueError(
            f"{model.name} has no text encoder {unknown[0]!r} for a word to learn in; it has "
            f"{', '.join(model.text_encoders)}"
        )
    others = [name for name in word.learned if name not in chosen] if chosen else []
    if not others:
        return word
    if word.slot_of_layer:
        raise ValueError("a word with a vector for every layer learns in all text encoders: leave encoders empty")
    whole = word.vectors
    learned, fixed = ({name: part[name] for name in part if name in chosen} for part in (word.learned, word.fixed))
    return Word(learned, fixed, None, word.parts, {name: whole[name] for name in others})


def _continued(
    model: TextToImageModel, settings: TrainSettings, concept: Concept, slots: tuple[int, ...] | None
) -> Word:
    """The word of a concept. One with a vector for every layer goes on only in methods that have them."""
    if concept.lora:
        raise ValueError(
            f"the concept {concept.name!r} changes the model's weights already, and only a word can be trained on: "
            "begin with the concept as it was before that"
        )
    layers = layer_vectors_of(concept, model)
    rows = vectors_of(concept, model, settings.vectors if settings.trains.learns_word else None)
    if settings.trains.word == "nothing":
        return Word({}, rows) if layers is None else Word({}, layers, one_slot_a_layer(model.cross_attention_layers()))
    if slots is None:
        if layers is not None:
            raise ValueError(f"the concept {concept.name!r} has a vector for every layer: train it on with XTI")
        return Word(rows)
    if layers is None:
        return Word(_copied(rows, slots), None, slots)
    first = [slots.index(slot) for slot in range(max(slots) + 1)]
    return Word({name: value[first] for name, value in layers.items()}, None, slots)


def _copied(rows: Mapping[str, torch.Tensor], slots: Sequence[int]) -> dict[str, torch.Tensor]:
    """The same (n, d) for each slot of the UNet: (S, n, d)."""
    return {name: repeat(value, "n d -> slots n d", slots=max(slots) + 1) for name, value in rows.items()}


def slots_of_layers(part: WordPart, layers: Sequence[str]) -> tuple[int, ...] | None:
    """Which copy of the word each cross-attention layer looks at; None where all look at the same."""
    if part == "layers":
        return one_slot_a_layer(layers)
    return one_slot_a_block(layers) if part == "blocks" else None
