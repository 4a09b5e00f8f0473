"""The encoder half of a diffusers UNet: its down-path residuals and its middle, and nothing after them."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import torch

from .early_stop import itself, outputs_until


def encoder_features(unet: Any, run: Callable[[], object]) -> list[torch.Tensor]:
    """What `run`, a pass of `unet`, leaves in its skip connections, in their order, and last the middle: (B, c, h, w).

    The pass ends there.
    """
    residuals = itemgetter(1)
    blocks = [(block, residuals) for block in unet.down_blocks]
    return outputs_until(run, [(unet.conv_in, itself), *blocks, (unet.mid_block, itself)])
