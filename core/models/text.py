"""From prompt templates to what every text encoder of a model says about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from einops import rearrange

from ..prompts.tokens import TokenizedPrompt, input_embeddings, tokenize_prompt
from .protocol import Encoding, TextEncoder, TextToImageModel


def encode_prompts(
    model: TextToImageModel,
    templates: Sequence[str],
    *,
    vectors: Mapping[str, torch.Tensor] | None = None,
    words: str | None = None,
    layers: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, Encoding]:
    """Encode `templates`, each "{}" filled with a concept's `vectors` (encoder name -> (n, d)) or with plain `words`.

    Differentiable in `vectors`. Templates without a placeholder need neither. `layers` (encoder name -> (layers, n, d))
    are the vectors that each cross-attention layer sees in place of `vectors` (XTI).

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
        if own is None or layers is None:
            encodings[name] = encoder.encode(*input_embeddings(encoder, prompts, own))
        else:
            encodings[name] = encode_layers(encoder, prompts, own, layers[name], range(len(layers[name])))
    return encodings


def encode_layers(
    encoder: TextEncoder,
    prompts: Sequence[TokenizedPrompt],
    vectors: torch.Tensor,
    slots: torch.Tensor,
    slot_of_layer: Sequence[int],
) -> Encoding:
    """Encode `prompts` with `vectors` (n, d), and once more for each of the `slots` (S, n, d), all in one batch.

    `slot_of_layer` says which slot each cross-attention layer looks at; layers of one slot share its encoding.
    """
    embedded = [input_embeddings(encoder, [prompt], one) for one in (vectors, *slots) for prompt in prompts]
    inputs, ids = (torch.cat(parts) for parts in zip(*embedded, strict=True))
    encoding = encoder.encode(inputs, ids)
    copies = rearrange(encoding.tokens, "(copies b) l d -> copies b l d", b=len(prompts))
    pooled = None if encoding.pooled is None else encoding.pooled[: len(prompts)]
    return Encoding(copies[0], pooled, torch.stack([copies[1 + slot] for slot in slot_of_layer]))
