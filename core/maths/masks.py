"""Masks of pictures: where the thing is."""

from __future__ import annotations

from typing import Any

FAINTEST = 0.02
"""A mask that reaches no more than this shows nothing: what a loader makes of a picture without transparency may differ
from 0 by a rounding, 0.004 in ComfyUI for a JPEG in CMYK."""


def shows_something(mask: Any) -> bool:
    """Whether a mask (H, W), 1 where the thing is, leaves anything of its picture."""
    return bool((mask > FAINTEST).any())
