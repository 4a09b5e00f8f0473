"""Pictures of NumPy as ComfyUI's, and on a node."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui


def as_images(pixels: np.ndarray) -> torch.Tensor:
    """uint8 pictures (B, H, W, 3), or one (H, W, 3), as an IMAGE: float32 (B, H, W, 3) in [0, 1]."""
    return torch.from_numpy(pixels.astype(np.float32) / 255).reshape(-1, *pixels.shape[-3:])


def preview(cls: type[io.ComfyNode], image: torch.Tensor, text: str) -> dict[str, Any]:
    """What the node shows: a picture with a text below it; the text alone where the disk takes no picture."""
    try:
        shown = ui.PreviewImage(image, cls=cls).as_dict()
    except OSError as error:
        shown, text = {}, f"{text}\n\n(no picture: {error})"
    return {**shown, **ui.PreviewText(text).as_dict()}
