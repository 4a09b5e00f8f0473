"""Memory that was freed and that the C library keeps for the next one who asks."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache


@cache
def _trim() -> Callable[[int], int] | None:
    """glibc's `malloc_trim`; None on systems whose C library has none, or gives back by itself."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back_freed_memory() -> bool:
    """Give the system what was freed, and say whether it took any.

    glibc keeps freed blocks of up to 32 MiB, which are most of what a step of a UNet needs: behind a backward pass,
    encoding a picture would come on top of it. Takes milliseconds. malloc_trim(3).
    """
    trim = _trim()
    return bool(trim is not None and trim(0))
