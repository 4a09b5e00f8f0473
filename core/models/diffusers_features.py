"""The encoder half of a diffusers UNet: its down-path residuals and its middle, and nothing after them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class _Seen(Exception):
    """Raised behind the middle block: the decoder half has nothing to add."""


def encoder_features(unet: Any, run: Callable[[], object]) -> list[torch.Tensor]:
    """What `run`, a pass of `unet`, leaves in its skip connections, in their order, and last the middle: (B, c, h, w).

    The pass ends there. Hooks see the values and change none.
    """
    found: list[torch.Tensor] = []

    def first(_: Any, __: Any, output: torch.Tensor) -> None:
        found.append(output)

    def block(_: Any, __: Any, output: tuple[torch.Tensor, tuple[torch.Tensor, ...]]) -> None:
        found.extend(output[1])

    def middle(_: Any, __: Any, output: torch.Tensor) -> None:
        found.append(output)
        raise _Seen

    hooks = [unet.conv_in.register_forward_hook(first), unet.mid_block.register_forward_hook(middle)]
    hooks += [part.register_forward_hook(block) for part in unet.down_blocks]
    try:
        run()
    except _Seen:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return found
