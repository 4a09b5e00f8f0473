"""In which type a training computes, where that is not the model's own."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ..defaults import Precision

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """What a forward pass runs in."""
    if precision not in _AUTOCAST:
        return nullcontext()
    # Its weight cache would tie a cast made without gradient to one that needs it.
    return torch.autocast(device.type, _AUTOCAST[precision], cache_enabled=False)


def gradient_dtype(precision: Precision, model: torch.dtype) -> torch.dtype:
    """The narrowest type that gradients pass through on their way, in a model that computes in the type `model`."""
    return model if precision == "model" else _AUTOCAST.get(precision, torch.float32)
