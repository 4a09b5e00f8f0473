"""The seconds that a training takes, so that they hold beside other work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...core.models.diffusers_adapter import DiffusersModel


def stopwatch(model: DiffusersModel) -> Callable[[], float]:
    """The seconds since now: the processor's where the model is on it, so that they hold beside other work, else the
    clock's."""
    seen = time.process_time if model.device.type == "cpu" else time.perf_counter
    started = seen()
    return lambda: seen() - started


@contextmanager
def one_thread() -> Iterator[None]:
    """What is measured in processor seconds runs on one thread, since idle ones count too."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
