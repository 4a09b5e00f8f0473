"""A training in a process of its own, whose steps are noted from outside: `python -m ... REPORT KIND WHAT ...`.

KIND is "script" (a trainer's file and its options) or "command" (this pack's `train`). Every optimiser tells that it
has made a step, so that nobody's loop has to be changed.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import sys
import time
from pathlib import Path
from typing import Any

STARTED = "CONTEXTUAL_INVERSION_BENCH_STARTED"
"""When the process was asked for, in seconds since the epoch."""


def main(report: str, kind: str, *arguments: str) -> None:
    """Runs it and writes what was noted: the seconds, on the clock and of the processor, from the start to the end of
    each step, and the most memory until then."""
    notes: dict[str, Any] = {"steps": []}
    note_steps(notes["steps"])
    if kind == "script":
        sys.argv = list(arguments)
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        from ..main import main as command

        if command(["train", *arguments]):
            raise SystemExit("the pack's own training failed")
    Path(report).write_text(json.dumps(notes), encoding="utf-8")


def note_steps(steps: list[dict[str, float]]) -> Any:
    """Have every optimiser's steps added to `steps`. The handle that is returned ends it."""
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


if __name__ == "__main__":
    main(*sys.argv[1:])
