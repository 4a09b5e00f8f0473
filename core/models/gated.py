"""GEGLU (Shazeer, "GLU Variants Improve Transformer", 2020) that keeps one tensor for its backward pass, not two.

`h gelu(g)` keeps `h`, `g` and `gelu(g)`; the last is a third of that, an eighth of all that a step of Stable
Diffusion's UNet keeps, and costs next to nothing to compute again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from .replacing import instead


class _Gated(torch.autograd.Function):
    """`h gelu(g)` of both halves of `projected` (..., 2 d)."""

    @staticmethod
    def forward(ctx: Any, projected: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(projected)
        hidden, gate = projected.chunk(2, dim=-1)
        return hidden * F.gelu(gate)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (projected,) = ctx.saved_tensors
        hidden, gate = projected.chunk(2, dim=-1)
        of_gate = torch.ops.aten.gelu_backward(gradient * hidden, gate)
        return torch.cat([gradient * F.gelu(gate), of_gate], dim=-1)


@contextmanager
def gates_computed_again(modules: Sequence[torch.nn.Module], kind: type[torch.nn.Module]) -> Iterator[None]:
    """Inside, every part of `modules` of exactly this `kind`, a class whose `forward(x)` is `h gelu(g)` with
    `h, g = proj(x).chunk(2, -1)`, keeps `proj(x)` alone. Outputs and gradients are the same bits. A part that somebody
    has given a forward of its own keeps it."""
    with ExitStack() as stack:
        for module in modules:
            for part in module.modules():
                if type(part) is kind and "forward" not in vars(part):
                    stack.enter_context(instead(part, "forward", partial(_forward, part, part.forward)))
        yield


def _forward(part: Any, usual: Any, x: torch.Tensor, *others: Any, **more: Any) -> torch.Tensor:
    if others or more or not torch.is_grad_enabled():
        return usual(x, *others, **more)
    return _Gated.apply(part.proj(x))
