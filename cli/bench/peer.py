"""This pack beside another trainer: same weights, pictures, size and batch, in turns, each run a process of its own."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .comfy import NO_COMFYUI, comfy_run, find_comfyui
from .runs import LEARNING_RATE, LEAST, cost, in_turns, on_gpu, own_run, write_pictures

PARTS = ("unet", "text_encoder", "text_encoder_2")
"""Folders of a pipeline whose weights both sides must hold; memory is compared beyond them."""


def peer_figures(model: Path, peer: Path, *, side: int, batch: int, repetitions: int, steps: int) -> dict[str, Any]:
    """`peer` is textual_inversion.py of diffusers' examples. Keys "ti_over_peer", "first_step_over_peer" and
    "memory_over_peer": this pack's cost over the peer's, medians over the repetitions; where there is a ComfyUI, the
    same of Train Concept in it, with "comfy_" before them. "comfy_why" says why those are missing, and is else None:
    ComfyUI takes a pipeline's UNet for a model that it knows or not at all.

    Raises ValueError where a place is missing, RuntimeError with a run's last words where it fails.
    """
    require(model, peer)
    steps, unable = max(steps, LEAST), {}
    with tempfile.TemporaryDirectory() as folder:
        pictures = write_pictures(Path(folder) / "pictures", side)
        runs = {"peer": peer_run(model, peer, pictures, side, batch, steps)}
        runs["ti"] = own_run(model, pictures, side, batch, steps)
        if (comfyui := find_comfyui()) is not None:
            runs["comfy"] = comfy_run(comfyui, model, pictures, side, batch, steps, loads=1)
        else:
            unable["comfy"] = NO_COMFYUI
        found = in_turns(runs, repetitions, Path(folder), unable)
    return {**compared(found, weight_bytes(model), processor=not on_gpu()), "comfy_why": unable.get("comfy")}


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
        "learning_rate": LEARNING_RATE,
        "seed": 0,
        "save_steps": 10**6,
        "checkpointing_steps": 10**6,
        "report_to": "all",
        "output_dir": pictures.parent / "peer",
    }
    return ("script", str(peer), *(f"--{name}={value}" for name, value in options.items()))


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
