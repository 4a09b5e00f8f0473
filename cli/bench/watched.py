"""A training in a process of its own, whose steps are noted from outside: `python -m ... REPORT KIND WHAT ...`.

KIND is "script" (a trainer's file and its options) or "command" (this pack's `train`). What trains inside ComfyUI is
noted by `nodes.bench` instead.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

from ...core.training.run.noted import note_steps


def main(report: str, kind: str, *arguments: str) -> None:
    """Runs it and writes what was noted."""
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


if __name__ == "__main__":
    main(*sys.argv[1:])
