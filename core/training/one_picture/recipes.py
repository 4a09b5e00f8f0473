"""What to pretrain a tuning-encoder with, by the model that it is for."""

from __future__ import annotations

from typing import Any

from ...models.families import is_narrow
from ...models.protocol import TextToImageModel

PAPER: dict[str, Any] = {}
"""METHODS.md 3.4 and 3.5, which `EncoderPretrainSettings` has by default."""
NARROW: dict[str, Any] = {
    "preset": "tiny",
    "steps": 700,
    "batch": 32,
    "learning_rate": 1.5e-3,
    "schedule": "cosine",
    "warmup": 30,
    "resolution": 128,
    "ema": 0.99,
}
"""The bundled tiny model: half an hour of one processor core."""
WORLD_PICTURES = 3000
"""Pictures of ConceptWorld that the bundled encoder is trained on."""


def recommended_encoder(model: TextToImageModel) -> dict[str, Any]:
    """Values for `EncoderPretrainSettings`: the paper's for models of Stable Diffusion's width, else `NARROW`'s."""
    return encoder_for(is_narrow(model))


def encoder_for(narrow: bool) -> dict[str, Any]:
    """As `recommended_encoder`, for a model as `narrow` as the bundled one, or not."""
    return dict(NARROW if narrow else PAPER)
