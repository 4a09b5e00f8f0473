"""A CLIP_VISION of a graph as what a tuning-encoder looks at pictures with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import comfy.model_management
import torch

from ...core.models.image_encoder import ImageEncoder
from .cancelling import hear_cancel
from .model import ComfyModel


def image_encoder_of(clip_vision: Any, model: ComfyModel | None = None) -> ImageEncoder:
    """A CLIP_VISION behind our image encoder, the demo model's where none is connected.

    `model` is the one that it is used beside: in a small memory ComfyUI makes room for one by unloading the other.
    """
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
        ready=lambda: _loaded(clip_vision.patcher, model),
        device=clip_vision.load_device,  # weights that ComfyUI streams are never there themselves
    )


@contextmanager
def _loaded(patcher: Any, model: ComfyModel | None) -> Iterator[None]:
    hear_cancel()
    with nullcontext() if model is None else model.weights_given_back():
        comfy.model_management.load_model_gpu(patcher)
        yield
