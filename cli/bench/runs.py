"""Trainings in processes of their own, the same one by several programs, and what each cost; for `bench`."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...core.training.run.noted import STARTED

PACK = __package__.rsplit(".", 2)[0]
LEAST = 6
"""Steps of a run: the first is for starting. Of the five others the second and the fourth also wait for pictures that
later ones will see, so the median is that of a step alone."""
LEARNING_RATE = 5e-4
WORD = "own/embeddings/pictures.safetensors"
"""Where `own_run` leaves the word, beside its pictures."""


def own_run(model: str | Path, pictures: Path, side: int, batch: int, steps: int) -> tuple[str, ...]:
    """`train`'s options for a few steps of plain textual inversion."""
    options = {
        "class-word": "dog",
        "model": model,
        "preset": "Textual inversion (classic)",
        "resolution": side,
        "batch": batch,
        "steps": steps,
        "learning-rate": LEARNING_RATE,
        "checkpoint-every": 10**6,
        "out": pictures.parent / "own",
        "if-taken": "replace",
    }
    flat = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return ("command", str(pictures), *flat)


def write_pictures(folder: Path, side: int, count: int = 4) -> Path:
    """Pictures of noise."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    numbers = np.random.default_rng(0)
    for index in range(count):
        pixels = numbers.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def in_turns(
    runs: Mapping[str, Sequence[str]], turns: int, folder: Path, unable: dict[str, str] | None = None
) -> dict[str, list[Mapping[str, Any]]]:
    """What was noted of each run in every turn; they change places from turn to turn. Reports go into `folder`.

    With `unable`, a run in ComfyUI that fails is left out from then on, and its last word is there under its name;
    without, and for every other run, RuntimeError with its last words.
    """
    found: dict[str, list[Mapping[str, Any]]] = {name: [] for name in runs}
    for turn in range(turns):
        for name in list(reversed(found) if turn % 2 else found):
            try:
                found[name].append(watched(runs[name], folder / f"{name}{turn}"))
            except RuntimeError as error:
                if unable is None or runs[name][0] != "comfy":
                    raise
                unable[name] = str(error).splitlines()[-1]
                del found[name]
    return found


def watched(run: Sequence[str], report: Path) -> Mapping[str, Any]:
    """One run in a process of its own, and what was noted of it: a kind ("script", "command" or "comfy") and its
    arguments. Raises RuntimeError with its last words where it fails."""
    kind, *arguments = run
    own = (f"{PACK}.nodes.bench", str(report)) if kind == "comfy" else (f"{PACK}.cli.bench.watched", str(report), kind)
    call = [sys.executable, "-m", *own, *arguments]
    began = {**os.environ, STARTED: str(time.time())}
    done = subprocess.run(call, capture_output=True, text=True, env=began)
    if done.returncode or not report.exists():
        said = (done.stderr or done.stdout).strip().splitlines()[-8:]
        what = "in ComfyUI" if kind == "comfy" else f"of {kind} {Path(arguments[0]).name}"
        raise RuntimeError(f"a run {what} failed:\n" + "\n".join(said))
    return json.loads(report.read_text(encoding="utf-8"))


def cost(steps: Sequence[Mapping[str, float]], weights: int, processor: bool) -> dict[str, float]:
    """Of one run: seconds to the end of the first step, of a step after that, and bytes beyond the weights."""
    clock = [one["processor" if processor else "clock"] for one in steps]
    between = [later - earlier for earlier, later in pairwise(clock)]
    memory = max(one["bytes"] for one in steps) - weights
    return {"step": statistics.median(between), "first_step": clock[0], "memory": memory}


def on_gpu() -> bool:
    """Whether trainings run on a GPU, which has no processor time."""
    import torch

    return torch.cuda.is_available()
