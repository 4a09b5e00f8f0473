"""What any training costs, noted from outside: every optimiser tells that it has made a step, so that nobody's loop has
to be changed."""

from __future__ import annotations

import os
import resource
import sys
import time
from typing import Any

STARTED = "CONTEXTUAL_INVERSION_BENCH_STARTED"
"""The environment variable that says when a process was asked for, in seconds since the epoch."""


def note_steps(steps: list[dict[str, float]]) -> Any:
    """Have every optimiser's steps added to `steps`: the seconds, on the clock and of the processor, from the start of
    the process to the end of the step, and the most memory until then. The handle that is returned ends it."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    started = float(os.environ.get(STARTED, time.time()))
    cuda = torch.cuda.is_available()

    def note(*_: Any) -> None:
        if cuda:
            torch.cuda.synchronize()
        memory = torch.cuda.max_memory_allocated() if cuda else peak_bytes()
        steps.append({"clock": time.time() - started, "processor": time.process_time(), "bytes": memory})

    return register_optimizer_step_post_hook(note)


def peak_bytes() -> int:
    """The most memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 2**10
