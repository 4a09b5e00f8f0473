"""This pack beside another trainer: same weights, pictures, size and batch, in turns, each run a process of its own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from .watched import STARTED

PARTS = ("unet", "text_encoder", "text_encoder_2")
"""Folders of a pipeline whose weights both sides must hold; memory is compared beyond them."""
LEAST = 3
"""Steps of a run: the first is for starting, and two are counted."""


def peer_figures(model: Path, peer: Path, *, side: int, batch: int, repetitions: int, steps: int) -> dict[str, Any]:
    """`peer` is textual_inversion.py of diffusers' examples. Keys "ti_over_peer", "first_step_over_peer" and
    "memory_over_peer": this pack's cost over the peer's, medians over the repetitions.

    Raises ValueError where a place is missing, RuntimeError with a run's last words where it fails.
    """
    require(model, peer)
    steps = max(steps, LEAST)
    with tempfile.TemporaryDirectory() as folder:
        pictures = write_pictures(Path(folder) / "pictures", side)
        runs = {"peer": peer_run(model, peer, pictures, side, batch, steps)}
        runs["ti"] = own_run(model, pictures, side, batch, steps)
        found: dict[str, list[Mapping[str, Any]]] = {name: [] for name in runs}
        for turn in range(repetitions):
            for name in reversed(runs) if turn % 2 else runs:
                found[name].append(watched(runs[name], Path(folder) / f"{name}{turn}"))
    return compared(found, weight_bytes(model), processor=not _on_gpu())


def require(model: Path, peer: Path) -> None:
    """Raises ValueError that names what is not there."""
    wanted = {"--model": model / "model_index.json", "--peer": peer}
    for option, place in wanted.items():
        if not place.exists():
            raise ValueError(f"{option}: there is no {place}")


def peer_run(model: Path, peer: Path, pictures: Path, side: int, batch: int, steps: int) -> tuple[str, ...]:
    """Options of diffusers' script."""
    options = {
        "pretrained_model_name_or_path": model,
        "train_data_dir": pictures,
        "learnable_property": "object",
        "placeholder_token": "<bench>",
        "initializer_token": "dog",
        "resolution": side,
        "train_batch_size": batch,
        "max_train_steps": steps,
        "learning_rate": 5e-4,
        "seed": 0,
        "save_steps": 10**6,
        "checkpointing_steps": 10**6,
        "report_to": "all",
        "output_dir": pictures.parent / "peer",
    }
    return ("script", str(peer), *(f"--{name}={value}" for name, value in options.items()))


def own_run(model: Path, pictures: Path, side: int, batch: int, steps: int) -> tuple[str, ...]:
    """Options of `train` for the same."""
    options = {
        "class-word": "dog",
        "model": model,
        "preset": "Textual inversion (classic)",
        "resolution": side,
        "batch": batch,
        "steps": steps,
        "learning-rate": 5e-4,
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


def watched(run: Sequence[str], report: Path) -> Mapping[str, Any]:
    """One run in a process of its own, and what was noted of it."""
    call = [sys.executable, "-m", f"{__package__}.watched", str(report), *run]
    began = {**os.environ, STARTED: str(time.time())}
    done = subprocess.run(call, capture_output=True, text=True, env=began)
    if done.returncode or not report.exists():
        said = (done.stderr or done.stdout).strip().splitlines()[-8:]
        raise RuntimeError(f"a run of {run[0]} {Path(run[1]).name} failed:\n" + "\n".join(said))
    return json.loads(report.read_text(encoding="utf-8"))


def compared(found: Mapping[str, Sequence[Mapping[str, Any]]], weights: int, *, processor: bool) -> dict[str, Any]:
    """Ratios of each run to the peer's of the same turn, medians; and the medians they come from. Seconds are the
    processor's, or the clock's. Memory is what is beyond `weights`."""
    costs = {name: [cost(one["steps"], weights, processor) for one in runs] for name, runs in found.items()}
    figures: dict[str, Any] = {"peer_seconds": "processor" if processor else "clock"}
    for name, runs in costs.items():
        figures |= {f"{name}_{key}": statistics.median(run[key] for run in runs) for key in COSTS}
        if name != "peer":
            pairs = list(zip(runs, costs["peer"], strict=True))
            for key, ratio in ratio_keys(name).items():
                figures[ratio] = statistics.median(own[key] / other[key] for own, other in pairs)
    return figures


COSTS = ("step", "first_step", "memory")


def ratio_keys(name: str) -> dict[str, str]:
    """The names of a run's ratios to the peer's, by cost."""
    prefix = "" if name == "ti" else f"{name}_"
    return {
        "step": f"{name}_over_peer",
        "first_step": f"{prefix}first_step_over_peer",
        "memory": f"{prefix}memory_over_peer",
    }


def cost(steps: Sequence[Mapping[str, float]], weights: int, processor: bool) -> dict[str, float]:
    """Of one run: seconds to the end of the first step, of a step after that, and bytes beyond the weights."""
    clock = [one["processor" if processor else "clock"] for one in steps]
    between = [later - earlier for earlier, later in pairwise(clock)]
    memory = max(one["bytes"] for one in steps) - weights
    return {"step": statistics.median(between), "first_step": clock[0], "memory": memory}


def weight_bytes(model: Path) -> int:
    """Bytes of the weights in float32 that both sides hold."""
    from safetensors import safe_open

    count = 0
    for part in PARTS:
        for file in sorted((model / part).glob("*.safetensors")):
            with safe_open(file, "pt") as weights:
                count += sum(_numbers(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
    return 4 * count


def _numbers(shape: Sequence[int]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
