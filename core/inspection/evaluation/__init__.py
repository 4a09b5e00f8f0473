"""The papers' measures on pictures and the DreamBench protocol: CLIP-T, CLIP-I, DINO, DINO-FG (METHODS.md 1.9, 2.7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...later import later

if TYPE_CHECKING:
    from .encoders import ClipEncoder, DinoEncoder, encoders_on_device
    from .loading import (
        BUNDLED,
        CLIP,
        DINO,
        EncoderNotFoundError,
        bundled_clip,
        encoders_in,
        load_clip,
        load_dino,
    )
    from .run import BrokenPictureError
    from .scores import MEASURES, Evaluator, References

__getattr__ = later(
    __name__,
    {
        "encoders": ("ClipEncoder", "DinoEncoder", "encoders_on_device"),
        "loading": (
            "BUNDLED",
            "CLIP",
            "DINO",
            "EncoderNotFoundError",
            "bundled_clip",
            "encoders_in",
            "load_clip",
            "load_dino",
        ),
        "run": ("BrokenPictureError",),
        "scores": ("MEASURES", "Evaluator", "References"),
    },
)

__all__ = [
    "BUNDLED",
    "CLIP",
    "DINO",
    "MEASURES",
    "BrokenPictureError",
    "ClipEncoder",
    "DinoEncoder",
    "EncoderNotFoundError",
    "Evaluator",
    "References",
    "bundled_clip",
    "encoders_in",
    "encoders_on_device",
    "load_clip",
    "load_dino",
]
