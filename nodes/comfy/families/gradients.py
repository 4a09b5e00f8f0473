"""What lets ComfyUI's own code be differentiated, without replacing any of it.

Three things, each only while a gradient is wanted and as it was on every exit: ComfyUI's own flag for training, which
chooses kernels with a backward pass; copies of what autograd keeps where code writes into it; and results in new
tensors where code gives `out=`, which autograd does not allow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management as management

from ....core.models.kept import Writes


@contextmanager
def in_training() -> Iterator[None]:
    """ComfyUI's flag, a global of its module, set inside."""
    before = management.in_training
    management.in_training = True
    try:
        yield
    finally:
        management.in_training = before


@contextmanager
def differentiable() -> Iterator[None]:
    """Around one pass of a model or a text encoder of a training."""
    with in_training(), Writes():
        yield
