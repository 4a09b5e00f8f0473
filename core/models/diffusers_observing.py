"""Looking on at the cross-attention of a diffusers UNet without touching what it computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from .attention import split_heads
from .diffusers_attention import probed
from .protocol import AttentionObserver, AttentionWatcher


def watched(layers: Sequence[Any], probe: AttentionWatcher) -> AbstractContextManager[None]:
    """`probed` for a probe that takes part in the computation, `observed` for one that looks on."""
    return observed(layers, probe) if isinstance(probe, AttentionObserver) else probed(layers, probe)


@contextmanager
def observed(layers: Sequence[Any], observer: AttentionObserver) -> Iterator[None]:
    """Inside, `observer` sees what the projections of `layers` give out; nothing is replaced, so any processor, and any
    adapter on the projections, stays in force."""
    handles = []
    try:
        for index, attention in enumerate(layers):
            watch = _Watch(index, attention, observer)
            handles.append(attention.to_q.register_forward_hook(watch.query))
            handles.append(attention.to_k.register_forward_hook(watch.key))
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Watch:
    """Hooks on one layer's projections. Every processor projects the queries before the keys."""

    def __init__(self, layer: int, attention: Any, observer: AttentionObserver) -> None:
        self.layer, self.attention, self.observer = layer, attention, observer
        self.seen: torch.Tensor | None = None

    def query(self, module: Any, inputs: Any, output: torch.Tensor) -> None:
        self.seen = output

    def key(self, module: Any, inputs: Any, output: torch.Tensor) -> None:
        query, self.seen = self.seen, None
        if query is None:
            return  # a second set of keys for the same queries: somebody's image tokens, say
        queries, keys = (split_heads(x, self.attention.heads) for x in (query, output))
        self.observer.observe(self.layer, queries, keys, self.attention.scale)
