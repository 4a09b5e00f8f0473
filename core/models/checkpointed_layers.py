"""Gradient checkpointing of the layers of a text encoder, in either adapter.

Where weights are stored in a narrower type than is computed in, each layer casts its own, and autograd would keep all
of those copies until the backward pass: as much as the text encoders in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from .checkpointing import checkpoint
from .replacing import instead
from .replay import replayed


@contextmanager
def checkpointed_layers(layers: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Inside, each layer keeps its inputs alone and runs again in the backward pass; as they were on exit."""
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(instead(layer, "forward", partial(_run, layer, layer.forward)))
        yield


def _run(layer: torch.nn.Module, forward: Any, *inputs: Any, **keywords: Any) -> Any:
    return checkpoint(replayed(partial(forward, **keywords), of=layer), *inputs)
