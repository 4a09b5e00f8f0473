"""What a tuning-encoder predicted, put to use: each picture's word in its prompt, its changes on the UNet's layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from einops import repeat

from ...models.low_rank import LowRankDelta
from ...models.protocol import Conditioning, ImageSize, TextToImageModel
from ...networks.hypernetwork import Factors
from ...prompts.tokens import input_embeddings, tokenize_prompt

PREDICTION_TEMPLATE = "a photo of a {}"


def predicted_conditioning(
    model: TextToImageModel, vectors: Mapping[str, torch.Tensor], templates: Sequence[str], size: ImageSize
) -> Conditioning:
    """Prompt i with row i of `vectors` ((B, d) by text encoder) in its placeholder, differentiably."""
    encodings = {}
    for name, encoder in model.text_encoders.items():
        prompts = [tokenize_prompt(encoder, template, rows=1) for template in templates]
        # Each prompt's one concept row is its own: input_embeddings then places a whole batch of words at once.
        own = [
            replace(prompt, concept_rows=tuple(index if row >= 0 else row for row in prompt.concept_rows))
            for index, prompt in enumerate(prompts)
        ]
        encodings[name] = encoder.encode(*input_embeddings(encoder, own, vectors[name].float()))
    return model.conditioning(encodings, size)


@torch.no_grad()
def worded_conditioning(
    model: TextToImageModel, words: Sequence[str], templates: Sequence[str], size: ImageSize
) -> Conditioning:
    """Prompt i with plain word i in its placeholder."""
    encodings = {}
    for name, encoder in model.text_encoders.items():
        prompts = [tokenize_prompt(encoder, text, words=word) for text, word in zip(templates, words, strict=True)]
        encodings[name] = encoder.encode(*input_embeddings(encoder, prompts, None))
    return model.conditioning(encodings, size)


def deltas_of(factors: Mapping[str, Factors], *, copies: int = 1) -> dict[str, LowRankDelta]:
    """The deltas of every picture (METHODS.md D1) for a batch that holds the pictures `copies` times."""

    def again(factor: torch.Tensor) -> torch.Tensor:
        return repeat(factor, "pictures d r -> (copies pictures) d r", copies=copies).contiguous()

    return {name: LowRankDelta(again(a), again(b)) for name, (a, b) in factors.items()}
