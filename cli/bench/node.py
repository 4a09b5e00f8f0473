"""TrainConcept within ComfyUI, in this process, as a graph would run it; for `bench --comfyui`."""

from __future__ import annotations

import sys
import time
from typing import Any


def train_in_comfyui(place: str, model: str, side: str, batch: str, steps: str) -> dict[str, Any]:
    """The ComfyUI in the folder `place` trains on a diffusers pipeline's folder. Key "start_up_s": the processor's
    seconds that importing this pack's nodes adds to ComfyUI's start."""
    sys.path.insert(0, place)
    sys.argv = ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import execution  # noqa: F401  what ComfyUI has loaded before it comes to any pack
    import server  # noqa: F401
    import torch
    from comfy.diffusers_load import load_diffusers

    before = time.process_time()
    from ...nodes.training import TrainConcept

    start_up = time.process_time() - before
    loaded = load_diffusers(model, output_vae=True, output_clip=True)
    size = int(side)
    pictures = torch.rand(4, size, size, 3, generator=torch.Generator().manual_seed(0))
    TrainConcept.execute(*loaded[:3], pictures, **settings(size, int(batch), int(steps)))
    return {"start_up_s": start_up}


def settings(side: int, batch: int, steps: int) -> dict[str, Any]:
    """Plain textual inversion by the classic recipe."""
    return {
        "class_word": "dog",
        "name": "bench",
        "train": "textual inversion",
        "recipe": "Textual inversion (classic)",
        "steps": steps,
        "learning_rate": 5e-4,
        "batch": batch,
        "vectors": 1,
        "seed": 0,
        "preview_every": 0,
        "preview_prompt": "a photo of a {}",
        "continue_interrupted": False,
        "resolution": side,
    }
