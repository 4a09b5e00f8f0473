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

LARGE_VOCABULARY = 65_536
"""Tokens; more than CLIP's 49,408 and T5's 32,128, fewer than those of language models of many languages."""
NAMED_CAPTIONS = 20_000
"""Captions whose tokens get a row of such a vocabulary: with all 152,000 of Qwen2.5 the output layer alone is half a
billion numbers, of which captions never use most."""


def recommended_pretraining(encoder: TextEncoder) -> dict[str, Any]:
    """Values for `PretrainSettings`: the paper's for encoders of Stable Diffusion's width, else those of `NARROW`."""
    return {**pretraining_for(encoder.width < NARROWEST), **vocabulary_for(encoder)}


def vocabulary_for(encoder: TextEncoder) -> dict[str, Any]:
    """Which tokens can be guessed, where that follows from the text encoder: those of `NAMED_CAPTIONS` where it knows
    more than `LARGE_VOCABULARY`. Of a narrow one its own recipe says it."""
    large = encoder.width >= NARROWEST and len(encoder.table()) > LARGE_VOCABULARY
    return {"vocabulary_captions": NAMED_CAPTIONS} if large else {}


def pretraining_for(narrow: bool) -> dict[str, Any]:
    """As `recommended_pretraining`, for an encoder as `narrow` as the bundled one, or not."""
    return dict(NARROW if narrow else PAPER)
