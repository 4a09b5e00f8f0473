"""Looking on at cross-attention without touching what it computes, in either adapter.

The projections are watched and not the attention itself: which back end computes, and what another node or adapter has
put in its place, is none of the observer's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from .attention import split_heads
from .low_rank import hooked
from .protocol import AttentionObserver


@contextmanager
def observed(layers: Sequence[Any], observer: AttentionObserver, blocks: Sequence[Any] | None = None) -> Iterator[None]:
    """Inside, `observer` sees what the projections of `layers` give out.

    `blocks` are the parts of the UNet, one for each layer, that the layers lie in; what comes into them, (B, c, h, w),
    says how high and wide the queries are.

    Raises ValueError where a layer has no projections of its own.
    """
    with ExitStack() as stack:
        for index, attention in enumerate(layers):
            watch = _Watch(index, attention, observer)
            for name, look in (("to_q", watch.query), ("to_k", watch.key)):
                stack.enter_context(hooked(_projection(attention, name, index), look))
            if blocks is not None:
                stack.enter_context(hooked(blocks[index], watch.enter, before=True))
        yield


def _projection(attention: Any, name: str, index: int) -> torch.nn.Module:
    found = getattr(attention, name, None)
    if not isinstance(found, torch.nn.Module):
        raise ValueError(
            f"cross-attention layer {index + 1} has no part called {name}, so its attention cannot be recorded: this "
            "program has joined or renamed the projections of its attention"
        )
    return found


class _Watch:
    """Hooks on one layer's projections. Queries are projected before keys."""

    def __init__(self, layer: int, attention: Any, observer: AttentionObserver) -> None:
        self.layer, self.attention, self.observer = layer, attention, observer
        self.size: tuple[int, int] | None = None
        self.seen: torch.Tensor | None = None

    def enter(self, module: Any, inputs: tuple[Any, ...]) -> None:
        self.size = (int(inputs[0].shape[-2]), int(inputs[0].shape[-1])) if inputs else None

    def query(self, module: Any, inputs: Any, output: torch.Tensor) -> None:
        self.seen = output

    def key(self, module: Any, inputs: Any, output: torch.Tensor) -> None:
        query, self.seen = self.seen, None
        if query is None:
            return  # a second set of keys for the same queries: somebody's image tokens, say
        queries, keys = (split_heads(x, self.attention.heads) for x in (query, output))
        self.observer.observe(self.layer, queries, keys, getattr(self.attention, "scale", None), self.size)
