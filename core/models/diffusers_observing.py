"""Looking at the cross-attention of a diffusers UNet, with a probe of either kind."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from .diffusers_attention import probed
from .observing import observed
from .protocol import AttentionObserver, AttentionWatcher


def watched(layers: Sequence[Any], probe: AttentionWatcher) -> AbstractContextManager[None]:
    """`probed` for a probe that takes part in the computation, `observed` for one that looks on."""
    return observed(layers, probe) if isinstance(probe, AttentionObserver) else probed(layers, probe)
