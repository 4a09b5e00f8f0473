"""The encoder half of ComfyUI's UNet: its down-path residuals and its middle, and nothing after them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...core.models.early_stop import itself, outputs_until


def encoder_features(unet: Any, run: Callable[[], object]) -> list[torch.Tensor]:
    """What `run`, a pass of `unet`, leaves in its skip connections, in their order, and last the middle: (B, c, h, w).

    The pass ends there. It is the last layer of each block that is watched: ComfyUI runs a block layer by layer and
    never calls the block itself.
    """
    return outputs_until(run, [(block[-1], itself) for block in (*unet.input_blocks, unet.middle_block)])
