"""Prompts in training: with the concept and its gradient, or with plain words, encoded once and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from ..models.protocol import Conditioning, Encoding, ImageSize, TextToImageModel
from ..models.text import encode_layers
from ..prompts.tokens import TokenizedPrompt, Words, input_embeddings, tokenize_prompt
from .run.remembered import remembered
from .weights import TrainableWeights
from .word import Word

Encoded = Mapping[str, Encoding]
"""What each text encoder of a model says."""


class PromptEncoder:
    """Encodes templates for one run. `word` is the learner's, so a gradient reaches it.

    Plain words are encoded once and kept, by the model as it came, also where a text encoder itself is learning.
    """

    def __init__(
        self, model: TextToImageModel, word: Word, size: ImageSize, weights: TrainableWeights | None = None
    ) -> None:
        self.model = model
        self.word = word
        self.size = size
        self.weights = weights
        self._with_words = remembered(self._encode_words, 1024)
        self._still = remembered(self._encode_still, 1024)
        self._tokenized = remembered(self._tokenize, 1024)

    def with_concept(self, templates: Sequence[str]) -> Encoded:
        """Each template with the concept in its placeholder, with gradient."""
        encodings, slots = {}, self.word.slots
        for name, encoder in self.model.text_encoders.items():
            if self._is_still(name):
                encodings[name] = _join([self._still(name, template) for template in templates])
                continue
            vectors = self.word.vectors[name]
            rows = [self._tokenized(name, template) for template in templates]
            if slots is not None:
                encodings[name] = encode_layers(encoder, rows, vectors, slots[name], self.word.slot_of_layer)
                continue
            # One at a time, so that the placement of a template is looked up and not sent to the device every step.
            embedded = [input_embeddings(encoder, [row], vectors) for row in rows]
            inputs, ids = (torch.cat(parts) for parts in zip(*embedded, strict=True))
            encodings[name] = encoder.encode(inputs, ids)
        return encodings

    def require_room(self, templates: Sequence[str]) -> None:
        """Raises ValueError that names the first of `templates` which does not fit a text encoder with the word."""
        for name in self.model.text_encoders:
            for template in templates:
                self._tokenized(name, template)

    def with_words(self, templates: Sequence[str], words: Words | None) -> Encoded:
        """Each template with plain `words` in its placeholder, without gradient; kept for the next time."""
        if len(templates) == 1:
            return self._with_words(templates[0], words)
        parts = [self._with_words(template, words) for template in templates]
        return {name: _join([part[name] for part in parts]) for name in self.model.text_encoders}

    def conditioning(self, encodings: Mapping[str, Encoding]) -> Conditioning:
        """What the UNet needs, at the size of the training pictures."""
        return self.model.conditioning(encodings, self.size)

    def model_as_it_came(self) -> AbstractContextManager[None]:
        """Nothing that was learned changes the model inside."""
        return nullcontext() if self.weights is None else self.weights.off()

    def _is_still(self, name: str) -> bool:
        """Whether what a text encoder says stays the same all through the training, and can be kept: nothing learns in
        it, and it encodes one prompt after another, so that company changes no last digit."""
        changed = () if self.weights is None else self.weights.leaves
        learns = name in self.word.learned or any(key.startswith(f"{name}.") for key in changed)
        return not learns and getattr(self.model.text_encoders[name], "one_by_one", False)

    @torch.no_grad()
    def _encode_still(self, name: str, template: str) -> Encoding:
        encoder = self.model.text_encoders[name]
        row = self._tokenized(name, template)
        return encoder.encode(*input_embeddings(encoder, [row], self.word.vectors[name]))

    def _tokenize(self, name: str, template: str) -> TokenizedPrompt:
        return tokenize_prompt(self.model.text_encoders[name], template, rows=self.word.rows)

    @torch.no_grad()
    def _encode_words(self, template: str, words: Words | None) -> Encoded:
        encodings = {}
        for name, encoder in self.model.text_encoders.items():
            row = tokenize_prompt(encoder, template, words=words)
            with self.model_as_it_came():
                encodings[name] = encoder.encode(*input_embeddings(encoder, [row], None))
        return encodings


@dataclass(frozen=True)
class StepView:
    """The `TrainingStep` that one regularizer sees at one step."""

    model: TextToImageModel
    latents: torch.Tensor
    timesteps: torch.Tensor
    class_word: Words
    generator: torch.Generator
    prompts: PromptEncoder

    @property
    def copies(self) -> Mapping[str, torch.Tensor]:
        return self.prompts.word.copies

    def encode_concept(self, templates: Sequence[str]) -> Encoded:
        return self.prompts.with_concept(templates)

    def encode_words(self, templates: Sequence[str], words: Words) -> Encoded:
        return self.prompts.with_words(templates, words)

    def conditioning(self, encodings: Mapping[str, Encoding]) -> Conditioning:
        return self.prompts.conditioning(encodings)

    def model_as_it_came(self) -> AbstractContextManager[None]:
        return self.prompts.model_as_it_came()


def _join(encodings: Sequence[Encoding]) -> Encoding:
    pooled = [encoding.pooled for encoding in encodings]
    return Encoding(
        torch.cat([encoding.tokens for encoding in encodings]),
        None if pooled[0] is None else torch.cat(pooled),  # type: ignore[arg-type]
        raw=tuple(one for encoding in encodings for one in encoding.raw),
    )
