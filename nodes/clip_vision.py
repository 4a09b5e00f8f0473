"""A CLIP_VISION of a graph as what a tuning-encoder looks at pictures with."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import torch

from ..core.models.image_encoder import ImageEncoder


def image_encoder_of(clip_vision: Any) -> ImageEncoder:
    """A CLIP_VISION behind our image encoder, the demo model's where none is connected."""
    if clip_vision is None:
        with torch.inference_mode(False):
            return ImageEncoder.tiny()
    tower = getattr(clip_vision.model, "vision_model", clip_vision.model)
    return ImageEncoder(
        tower,
        size=int(clip_vision.image_size),
        mean=clip_vision.image_mean,
        std=clip_vision.image_std,
        dtype=torch.float32,
        ready=lambda: comfy.model_management.load_model_gpu(clip_vision.patcher),
    )
