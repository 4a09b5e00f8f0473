"""What to pretrain a contextualizer with, by the width of its text encoder."""

from __future__ import annotations

from typing import Any

from ...models.families import NARROWEST
from ...models.protocol import TextEncoder

PAPER: dict[str, Any] = {}
"""METHODS.md 2.4, which `PretrainSettings` has by default."""
NARROW: dict[str, Any] = {
    "preset": "tiny",
    "steps": 2500,
    "batch": 32,
    "learning_rate": 2e-3,
    "schedule": "cosine",
    "vocabulary_captions": 5000,
}
"""The bundled tiny model: a narrow encoder, few words, minutes on a CPU."""


def recommended_pretraining(encoder: TextEncoder) -> dict[str, Any]:
    """Values for `PretrainSettings`: the paper's for encoders of Stable Diffusion's width, else those of `NARROW`."""
    return pretraining_for(encoder.width < NARROWEST)


def pretraining_for(narrow: bool) -> dict[str, Any]:
    """As `recommended_pretraining`, for an encoder as `narrow` as the bundled one, or not."""
    return dict(NARROW if narrow else PAPER)
