"""The same training by both adapters, `train` and Train Concept, and what the pack adds to ComfyUI's start.

What runs in ComfyUI is `nodes.bench`, in a process of its own: nothing here may know it but by name.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .runs import LEARNING_RATE, LEAST, WORD, cost, in_turns, on_gpu, own_run, write_pictures

if TYPE_CHECKING:
    import torch

KEYS = (
    "comfy_ti_step_s",
    "comfy_cli_step_s",
    "comfy_over_cli",
    "comfy_words_apart",
    "start_up_s",
    "first_start_up_s",
)
NO_COMFYUI = "no ComfyUI lies two folders above the pack or at ~/comfy/ComfyUI; say where yours is with COMFYUI_PATH"
NO_MODEL = "ComfyUI has no such model: name tiny, or the folder of a pipeline, with --model"
MOST = 3
"""Turns: each starts a ComfyUI."""


def comfy_figures(
    model: str | Path,
    start: Mapping[str, torch.Tensor],
    *,
    side: int,
    batch: int,
    repetitions: int,
    steps: int,
) -> dict[str, Any]:
    """Plain textual inversion by Train Concept in ComfyUI and by `train`, in turns: seconds of a step, medians
    ("comfy_ti_step_s", "comfy_cli_step_s"), the median of the turns' ratios ("comfy_over_cli"), and how far apart the
    two words came out, over how far they went from where they began, `start` (1, d) by text encoder
    ("comfy_words_apart"). "start_up_s": what loading the pack adds to ComfyUI's start, in seconds of the processor, and
    "first_start_up_s" after an installation, where Python compiles it. All are None where that cannot be had, and
    "comfy_why" says why.
    """
    nothing: dict[str, Any] = dict.fromkeys(KEYS)
    comfyui = find_comfyui()
    if comfyui is None:
        return {**nothing, "comfy_why": NO_COMFYUI}
    if model in ("wide", "sd15"):
        return {**nothing, "comfy_why": NO_MODEL}
    with tempfile.TemporaryDirectory() as folder:
        pictures, count = write_pictures(Path(folder) / "pictures", side), max(steps, LEAST)
        runs = {
            "cli": own_run(model, pictures, side, batch, count),
            "comfy": comfy_run(comfyui, model, pictures, side, batch, count),
        }
        try:
            found = in_turns(runs, min(repetitions, MOST), Path(folder))
        except RuntimeError as error:
            return {**nothing, "comfy_why": str(error).splitlines()[-1]}
        apart = words_apart(start, Path(folder) / WORD, out_of(pictures))
    return {**compared(found), "comfy_words_apart": apart, "comfy_why": None}


def compared(found: Mapping[str, Any]) -> dict[str, float]:
    """The figures of what was noted, turn by turn."""
    steps = {name: [cost(one["steps"], 0, not on_gpu())["step"] for one in runs] for name, runs in found.items()}
    loading = [one["start_up"] for one in found["comfy"]]
    return {
        "comfy_ti_step_s": statistics.median(steps["comfy"]),
        "comfy_cli_step_s": statistics.median(steps["cli"]),
        "comfy_over_cli": statistics.median(a / b for a, b in zip(steps["comfy"], steps["cli"], strict=True)),
        "start_up_s": statistics.median(second for first, *others in loading for second in others or [first]),
        "first_start_up_s": statistics.median(first for first, *_ in loading),
    }


def words_apart(start: Mapping[str, torch.Tensor], one: Path, other: Path) -> float:
    """How far two words of these files lie apart, over how far the first went from `start`."""
    import torch

    from ...core.files import load_concept

    widths = {name: int(value.shape[-1]) for name, value in start.items()}
    words = [load_concept(file, widths=widths).vectors for file in (one, other)]
    ours, theirs, began = (torch.cat([value[name].flatten() for name in sorted(start)]) for value in (*words, start))
    return float((ours - theirs).norm() / (ours - began).norm())


def comfy_run(
    comfyui: Path, model: str | Path, pictures: Path, side: int, batch: int, steps: int, *, loads: int = 3
) -> tuple[str, ...]:
    """The same as `own_run` through Train Concept, the pack loaded `loads` times before."""
    request = {
        "comfyui": comfyui,
        "model": model,
        "pictures": pictures,
        "out": out_of(pictures),
        "resolution": side,
        "batch": batch,
        "steps": steps,
        "learning_rate": LEARNING_RATE,
        "loads": loads,
    }
    return ("comfy", json.dumps(request, default=str))


def out_of(pictures: Path) -> Path:
    """Where the word of `comfy_run` is left."""
    return pictures.parent / "comfy.safetensors"


def find_comfyui() -> Path | None:
    """COMFYUI_PATH, which is the only place looked at where it is set; else two folders above the pack (where it is
    when the pack is cloned into custom_nodes), or ~/comfy/ComfyUI. None where none of them is one."""
    named = os.environ.get("COMFYUI_PATH")
    above = Path(os.path.abspath(__file__)).parents[4]
    places = [Path(named)] if named else [above, Path.home() / "comfy" / "ComfyUI"]
    return next((place.resolve() for place in places if (place / "comfy" / "sd.py").is_file()), None)
