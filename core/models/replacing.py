"""A function in the place of one of an object's own, for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def instead(module: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Inside, what this one `module`, of PyTorch or of Python, has as `name` is `function`. On exit it is as it was:
    the class's, or what somebody else had put on the object before."""
    before = vars(module).get(name)
    setattr(module, name, function)
    try:
        yield
    finally:
        if before is None:
            vars(module).pop(name, None)
        else:
            setattr(module, name, before)
