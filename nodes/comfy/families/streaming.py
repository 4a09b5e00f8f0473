"""Text encoders whose weights stay where ComfyUI keeps models that rest, and come to the device block by block.

A text encoder may be as large as the denoiser. What autograd needs of a block's weights it holds on to itself, so they
are gone again as soon as nothing needs them. ComfyUI's own streaming writes every layer into the same few buffers,
while a backward pass still needs what was there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ....core.models.replacing import instead


@contextmanager
def borrowed(modules: Sequence[torch.nn.Module], device: torch.device) -> Iterator[None]:
    """Inside, these modules, without what is in them, have copies of their weights on `device`."""
    slots = [held for module in modules for held in (module._parameters, module._buffers)]
    before = [(held, name, value) for held in slots for name, value in held.items() if _elsewhere(value, device)]
    try:
        with torch.no_grad():
            for held, name, value in before:
                held[name] = _copy(value, device)
        yield
    finally:
        for held, name, value in before:
            held[name] = value


def _elsewhere(value: torch.Tensor | None, device: torch.device) -> bool:
    return value is not None and value.device.type != device.type


def _copy(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    copy = value.to(device)
    return torch.nn.Parameter(copy, requires_grad=False) if isinstance(value, torch.nn.Parameter) else copy


@contextmanager
def streamed(transformer: Any, blocks: Sequence[torch.nn.Module], device: torch.device) -> Iterator[None]:
    """Around a pass of a text encoder: all but its `blocks` and its token table is on `device` inside, and rows are
    looked up where the table is."""
    table = transformer.get_input_embeddings()
    apart = {id(part) for block in blocks for part in block.modules()} | {id(table)}
    rest = [part for part in transformer.modules() if id(part) not in apart]
    look_up, home = table.forward, table.weight.device

    def look_up_at_home(ids: torch.Tensor, *arguments: Any, **keywords: Any) -> torch.Tensor:
        return look_up(ids.to(home), *arguments, **keywords).to(device)

    with ExitStack() as stack:
        stack.enter_context(borrowed(rest, device))
        stack.enter_context(instead(table, "forward", look_up_at_home))
        yield


def resting(patcher: Any) -> Any:
    """A clone of a text encoder's patcher whose weights, with their patches, stay where they rest."""
    clone = patcher.clone()
    clone.load_device = clone.offload_device
    return clone
