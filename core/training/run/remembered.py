"""Methods whose answers are kept, without keeping their object: `lru_cache` of a bound method is a cycle, and what such
an object holds on a GPU would stay there until the garbage collector happens to come by."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any
from weakref import WeakMethod


def remembered(method: Callable[..., Any], most: int) -> Callable[..., Any]:
    """`method`, bound to an object that lives, with its last `most` answers; its arguments are hashable."""
    reference = WeakMethod(method)
    return lru_cache(maxsize=most)(lambda *arguments: reference()(*arguments))
