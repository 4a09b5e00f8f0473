"""What was learned: the one object that every node socket, file and viewer speaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

CLIP = "clip_"
"""How the names of CLIP's text encoders begin. They cut words alike, and what they say is put side by side."""
PLACEHOLDER = "{}"
"""Where a concept goes in a prompt template."""


@dataclass(frozen=True)
class Concept:
    """A learned word.

    `vectors` maps a text encoder's name to (n, d) float32 input embeddings on the CPU, with the same n for every CLIP:
    others may cut one word into more tokens.
    `layer_vectors` (XTI) maps it to (layers, n, d). `lora` holds what was learned about the model's weights:
    kohya-named tensors with diffusers layer names, low-rank (`lora_unet_<layer>.lora_down.weight`, `.lora_up.weight`,
    `.alpha`) or full-rank (`.diff`, `.diff_b`, which ComfyUI's LoRA loader reads too). `core.models.lora` has both, and
    the name of a text encoder's norms, which kohya's have none for.
    `hard_token` is the nearest vocabulary word. `provenance` is plain JSON data: recipe, model, steps. `latents`
    (k, C, h, w), where they were wanted, are those of the training pictures, for the repair of a prompt
    (METHODS.md 1.6).
    """

    name: str
    class_word: str
    vectors: Mapping[str, torch.Tensor]
    layer_vectors: Mapping[str, torch.Tensor] | None = None
    lora: Mapping[str, torch.Tensor] | None = None
    hard_token: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    latents: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if not self.vectors:
            raise ValueError("a concept needs the vectors of at least one text encoder")
        for encoder, value in self.vectors.items():
            if value.ndim != 2 or 0 in value.shape:
                raise ValueError(f"vectors of {encoder} must be (n, width), got {tuple(value.shape)}")
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"vectors of {encoder} hold values that are not finite")
        lengths = {int(value.shape[0]) for encoder, value in self.vectors.items() if encoder.startswith(CLIP)}
        if len(lengths) > 1:
            raise ValueError(f"every CLIP text encoder needs the same number of vectors, got {sorted(lengths)}")

    @property
    def length(self) -> int:
        """n, the number of token positions that the word takes: the most, where text encoders differ."""
        return max(int(value.shape[0]) for value in self.vectors.values())

    def require_class_word(self) -> str:
        """The class word. Raises ValueError where it is not known, as in a file of another program."""
        if not self.class_word.strip():
            raise ValueError(
                f"the concept {self.name!r} does not say its class word, the ordinary word for the thing: give it "
                "where the concept is loaded"
            )
        return self.class_word

    def renamed(self, name: str) -> Concept:
        """The same concept under another name."""
        return replace(self, name=name)
