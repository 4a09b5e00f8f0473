"""The encoder half of ComfyUI's UNet: its down-path residuals and its middle, and nothing after them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class _Seen(Exception):
    """Raised behind the middle block: the decoder half has nothing to add."""


def encoder_features(unet: Any, run: Callable[[], object]) -> list[torch.Tensor]:
    """What `run`, a pass of `unet`, leaves in its skip connections, in their order, and last the middle: (B, c, h, w).

    The pass ends there. Hooks see the values and change none. They sit on the last layer of each block: ComfyUI runs a
    block layer by layer and never calls the block itself.
    """
    found: list[torch.Tensor] = []

    def residual(_: Any, __: Any, output: torch.Tensor) -> None:
        found.append(output)

    def middle(_: Any, __: Any, output: torch.Tensor) -> None:
        found.append(output)
        raise _Seen

    hooks = [block[-1].register_forward_hook(residual) for block in unet.input_blocks]
    hooks.append(unet.middle_block[-1].register_forward_hook(middle))
    try:
        run()
    except _Seen:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return found
