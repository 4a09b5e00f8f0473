"""From prompt templates to what every text encoder of a model says about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..prompts.tokens import input_embeddings, tokenize_prompt
from .protocol import Encoding, TextToImageModel


def encode_prompts(
    model: TextToImageModel,
    templates: Sequence[str],
    *,
    vectors: Mapping[str, torch.Tensor] | None = None,
    words: str | None = None,
) -> dict[str, Encoding]:
    """Encode `templates`, each "{}" filled with a concept's `vectors` (encoder name -> (n, d)) or with plain `words`.

    Differentiable in `vectors`. Templates without a placeholder need neither.

    Raises:
        ValueError: `vectors` lacks one of the model's encoders, or a prompt cannot be filled (see `tokenize_prompt`).
    """
    encodings = {}
    for name, encoder in model.text_encoders.items():
        if vectors is not None and name not in vectors:
            raise ValueError(f"the concept has vectors for {sorted(vectors)}, the model also needs {name}")
        own = None if vectors is None else vectors[name]
        rows = None if own is None else int(own.shape[0])
        prompts = [tokenize_prompt(encoder, template, rows=rows, words=words) for template in templates]
        encodings[name] = encoder.encode(*input_embeddings(encoder, prompts, own))
    return encodings
