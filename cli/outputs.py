"""Where a long run's file and checkpoints go: refused before the run begins and not after it."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..core.files import safe_name
from ..core.files.writing import ENDING
from ..core.training.run.checkpoint import checkpoint_path, checkpoints_in
from .places import require_file


def file_name(out: Path, overwrite: bool) -> str:
    """The name, without its ending, of the file that is to be written to `out`.

    Raises ValueError for a name that no file of ours can have, FileExistsError where it is taken and may not be
    replaced, and another OSError where nothing can be written there.
    """
    name = safe_name(out.name.removesuffix(ENDING))
    file = out.with_name(name + ENDING)
    if file.exists() and not overwrite:
        raise FileExistsError(f"{file} exists; choose another name with --out, or allow --overwrite")
    require_file(file)
    return name


def require_none_waiting(checkpoints: Path, resume: bool) -> None:
    """Raises FileExistsError where a training that was interrupted waits, which beginning anew would replace."""
    newest = None if resume else next(iter(checkpoints_in(checkpoints)), None)
    if newest is None:
        return
    try:
        with safe_open(newest, framework="pt") as file:
            steps = json.loads((file.metadata() or {})["contextual_inversion"])["identity"]["steps"]
    except (SafetensorError, OSError, KeyError, ValueError):
        return  # not a whole one: there is nothing to go on with
    if checkpoint_path(checkpoints, steps) != newest:
        raise FileExistsError(
            f"{newest}, of {steps} steps, waits to be gone on with: add --resume, or name another folder with --out"
        )


def require_empty(checkpoints: Path | None, resume: bool) -> None:
    """Raises ValueError for a resume from nowhere, FileExistsError where beginning anew would replace what waits."""
    if resume and checkpoints is None:
        raise ValueError("--resume needs the folder of --checkpoints")
    waiting = [] if checkpoints is None or resume else checkpoints_in(checkpoints)
    if waiting:
        raise FileExistsError(
            f"{waiting[0]} waits to be gone on with: add --resume, or name another folder for --checkpoints"
        )
