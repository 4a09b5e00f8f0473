"""Prompts in training: with the concept and its gradient, or with plain words, encoded once and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from ..models.protocol import Conditioning, Encoding, ImageSize, TextToImageModel
from ..prompts.tokens import TokenizedPrompt, input_embeddings, tokenize_prompt

Encoded = tuple[Mapping[str, Encoding], Mapping[str, Sequence[TokenizedPrompt]]]


class PromptEncoder:
    """Encodes templates for one run. `vectors` are the learner's leaves, so a gradient reaches them."""

    def __init__(self, model: TextToImageModel, vectors: Mapping[str, torch.Tensor], size: ImageSize) -> None:
        self.model = model
        self.vectors = vectors
        self.size = size
        self._with_words = lru_cache(maxsize=1024)(self._encode_words)
        self._tokenized = lru_cache(maxsize=1024)(self._tokenize)

    def with_concept(self, templates: Sequence[str]) -> Encoded:
        """Each template with the concept in its placeholder, with gradient."""
        encodings, prompts = {}, {}
        for name, encoder in self.model.text_encoders.items():
            vectors = self.vectors[name]
            rows = [self._tokenized(name, template) for template in templates]
            # One at a time, so that the placement of a template is looked up and not sent to the device every step.
            embedded = [input_embeddings(encoder, [row], vectors) for row in rows]
            inputs, ids = (torch.cat(parts) for parts in zip(*embedded, strict=True))
            encodings[name], prompts[name] = encoder.encode(inputs, ids), rows
        return encodings, prompts

    def with_words(self, templates: Sequence[str], words: str | None) -> Encoded:
        """Each template with plain `words` in its placeholder, without gradient; kept for the next time."""
        if len(templates) == 1:
            return self._with_words(templates[0], words)
        parts = [self._with_words(template, words) for template in templates]
        encodings = {name: _join([part[0][name] for part in parts]) for name in self.model.text_encoders}
        return encodings, {name: [part[1][name][0] for part in parts] for name in self.model.text_encoders}

    def conditioning(self, encodings: Mapping[str, Encoding]) -> Conditioning:
        """What the UNet needs, at the size of the training pictures."""
        return self.model.conditioning(encodings, self.size)

    def _tokenize(self, name: str, template: str) -> TokenizedPrompt:
        return tokenize_prompt(self.model.text_encoders[name], template, rows=self.vectors[name].shape[0])

    @torch.no_grad()
    def _encode_words(self, template: str, words: str | None) -> Encoded:
        encodings, prompts = {}, {}
        for name, encoder in self.model.text_encoders.items():
            row = tokenize_prompt(encoder, template, words=words)
            encodings[name], prompts[name] = encoder.encode(*input_embeddings(encoder, [row], None)), [row]
        return encodings, prompts


@dataclass(frozen=True)
class StepView:
    """The `TrainingStep` that one regularizer sees at one step."""

    model: TextToImageModel
    step: int
    total_steps: int
    latents: torch.Tensor
    timesteps: torch.Tensor
    class_word: str
    length: int
    generator: torch.Generator
    prompts: PromptEncoder

    @property
    def vectors(self) -> Mapping[str, torch.Tensor]:
        return self.prompts.vectors

    def encode_concept(self, templates: Sequence[str]) -> Encoded:
        return self.prompts.with_concept(templates)

    def encode_words(self, templates: Sequence[str], words: str) -> Encoded:
        return self.prompts.with_words(templates, words)

    def conditioning(self, encodings: Mapping[str, Encoding]) -> Conditioning:
        return self.prompts.conditioning(encodings)


def expand(conditioning: Conditioning, batch: int) -> Conditioning:
    """Repeat a batch of one to `batch` rows without copying; a full batch stays as it is."""
    y = conditioning.y
    return Conditioning(conditioning.context.expand(batch, -1, -1), None if y is None else y.expand(batch, -1))


def _join(encodings: Sequence[Encoding]) -> Encoding:
    pooled = [encoding.pooled for encoding in encodings]
    return Encoding(
        torch.cat([encoding.tokens for encoding in encodings]),
        None if pooled[0] is None else torch.cat(pooled),  # type: ignore[arg-type]
    )
