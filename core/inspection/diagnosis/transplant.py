"""Which positions of a prompt carry what a word does: their encodings, transplanted into the class word's prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ...models.protocol import Encoding, TextToImageModel
from ...models.text import encode_prompts
from ...models.words import starting_vectors
from ...prompts.tokens import tokenize_prompt

KINDS = ("word", "context", "eot", "padding")
"""The concept's own positions, the other words (with BOS), the first EOT, and what comes after it."""
CHOICES: tuple[tuple[str, ...], ...] = (
    (),
    ("word",),
    ("word", "context"),
    ("word", "eot"),
    ("word", "padding"),
    ("context", "eot", "padding"),
    KINDS,
)
"""From the class word's prompt to the concept's, by way of what is telling."""


@torch.no_grad()
def transplanted(
    model: TextToImageModel,
    templates: Sequence[str],
    vectors: Mapping[str, torch.Tensor],
    class_word: str,
    kinds: Sequence[str],
) -> dict[str, Encoding]:
    """Encodings of `templates` with the class word, save at positions of `kinds`, where the concept's stand instead.

    The class word takes as many positions as `vectors` (n, d) has rows, so that every position means the same in both.
    Pooled outputs go with "eot". Raises ValueError for an unknown kind.
    """
    unknown = set(kinds) - set(KINDS)
    if unknown:
        raise ValueError(f"positions are {', '.join(KINDS)}, not {', '.join(sorted(unknown))}")
    class_vectors = {
        name: starting_vectors(encoder, class_word, len(vectors[name])) for name, encoder in model.text_encoders.items()
    }
    concept = encode_prompts(model, templates, vectors=vectors)
    reference = encode_prompts(model, templates, vectors=class_vectors)
    mixed = {}
    for name, encoder in model.text_encoders.items():
        prompts = [tokenize_prompt(encoder, template, rows=len(vectors[name])) for template in templates]
        taken = torch.zeros(len(prompts), encoder.max_length, dtype=torch.bool)
        for row, prompt in zip(taken, prompts, strict=True):
            places = {
                "word": list(prompt.fill),
                "context": [i for i in range(prompt.eot) if i not in prompt.fill],
                "eot": [prompt.eot],
                "padding": list(range(prompt.eot + 1, encoder.max_length)),
            }
            row[[place for kind in kinds for place in places[kind]]] = True
        ours, theirs = concept[name], reference[name]
        tokens = torch.where(taken.to(ours.tokens.device)[..., None], ours.tokens, theirs.tokens)
        mixed[name] = Encoding(tokens, ours.pooled if "eot" in kinds else theirs.pooled)
    return mixed
