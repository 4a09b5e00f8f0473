"""Hold modules frozen for a while and give them back exactly as they were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


@contextmanager
def frozen(modules: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Evaluation mode and nothing trainable inside; both flags of every part restored on exit, also after errors."""
    training = [(part, part.training) for module in modules for part in module.modules()]
    trainable = [value for module in modules for value in module.parameters() if value.requires_grad]
    try:
        for module in modules:
            module.eval()
        for value in trainable:
            value.requires_grad_(False)
        yield
    finally:
        # Each part's own flag: `module.train(mode)` would overwrite those of its children.
        for part, flag in training:
            part.training = flag
        for value in trainable:
            with torch.inference_mode(value.is_inference()):  # the only mode in which such a tensor takes the flag
                value.requires_grad_(True)


@contextmanager
def on_device(modules: Sequence[torch.nn.Module], device: torch.device | str) -> Iterator[None]:
    """Modules on `device` inside, each back where its first parameter was on exit."""
    homes = [next(module.parameters()).device for module in modules]
    try:
        for module in modules:
            module.to(device)
        yield
    finally:
        for module, home in zip(modules, homes, strict=True):
            module.to(home)


@contextmanager
def autograd() -> Iterator[None]:
    """Gradients work inside, whatever the caller's mode: ComfyUI runs every node in inference mode."""
    with torch.inference_mode(False), torch.enable_grad():
        yield
