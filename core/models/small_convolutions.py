"""Convolutions of wide layers over few places as one matrix product, on a processor.

There a convolution first brings its weights into another order, each time anew, which costs more than it gains where
the weights are many and the places few: the lower half of a UNet at small sizes. The product does the same additions
in another order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange

from .replacing import instead

FEW = 128
"""Places (B h w of the result) up to which the product is the faster one, measured (docs/bench.md)."""
MANY = 4_000_000
"""Weights that no cache holds beside what is computed with them."""


@contextmanager
def small_as_products(modules: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Inside, the convolutions of `modules` choose by shape; as they were on exit."""
    with ExitStack() as stack:
        for module in modules:
            for part in module.modules():
                if isinstance(part, torch.nn.Conv2d) and _plain(part):
                    stack.enter_context(instead(part, "_conv_forward", partial(_convolved, part, part._conv_forward)))
        yield


def _plain(layer: torch.nn.Conv2d) -> bool:
    """Whether it is large enough to gain, and nothing that the product does not know."""
    shape = layer.in_channels * layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1]
    return shape >= MANY and layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _convolved(
    layer: torch.nn.Conv2d, usual: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    size = [_length(layer, axis, x.shape[-2 + axis]) for axis in (0, 1)]
    if x.device.type != "cpu" or x.dtype != torch.float32 or len(x) * size[0] * size[1] > FEW:
        return usual(x, weight, bias)
    return product(x, weight, bias, size, stride=layer.stride, padding=layer.padding, dilation=layer.dilation)


def product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, size: Sequence[int], **how: Any
) -> torch.Tensor:
    """The convolution of `x` (B, c, H, W) with `weight` (d, c, kh, kw), of the `size` (h, w) that comes out:
    (B, d, h, w)."""
    columns = rearrange(F.unfold(x, weight.shape[-2:], **how), "b k places -> k (b places)")
    flat = weight.flatten(1) @ columns
    if bias is not None:
        flat = flat + bias[:, None]
    return rearrange(flat, "d (b h w) -> b d h w", b=len(x), h=size[0])


def _length(layer: torch.nn.Conv2d, axis: int, length: int) -> int:
    reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
    return (length + 2 * layer.padding[axis] - reach) // layer.stride[axis] + 1
