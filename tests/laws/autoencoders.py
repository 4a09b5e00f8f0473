"""The law of a model's autoencoder in two programs: pictures become the same latents, and latents the same pictures."""

from collections.abc import Sequence
from typing import Any

import torch
from rounding import equal_but_for_rounding


def same_latents_and_images(models: Sequence[Any], images: torch.Tensor, share: float) -> None:
    """Asserts it of two models for `images` (B, 3, H, W) in -1..1: no number differs by more than `share` of the
    largest."""
    ours, theirs = (model.to_latents(images) for model in models)
    equal_but_for_rounding(theirs, ours, share, "latents")
    pixels = [model.to_images(ours) for model in models]
    equal_but_for_rounding(pixels[1], pixels[0], share, "images")
