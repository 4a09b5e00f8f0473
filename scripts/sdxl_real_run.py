"""Steps of a word on SDXL at its real size in ComfyUI, with random weights, and the memory of the whole process.

Stored in float16, computed in float32 on the processor, latents of 8 x 8, batch 1, `gradient_checkpointing`: two steps
of plain textual inversion, then two with CoRe. Prints GiB of the built model, and what a training adds to it at most:
the process's peak beside what it held before (Linux). `sdxl_memory.py` counts the same. Takes 9 GB and minutes.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from find_comfyui import find_comfyui
from real_size_run import sockets
from sdxl_memory import UNET

SIDE, STEPS = 64, 2
PROMPTS = ("a {} in the snow", "a red {} on the beach")


def built() -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE, the VAE in single precision."""
    import comfy.supported_models
    import comfy.supported_models_base
    from comfy import sdxl_clip

    description = comfy.supported_models.SDXL(dict(UNET))
    description.set_inference_dtype(torch.float16, torch.float32)
    target = comfy.supported_models_base.ClipTarget(sdxl_clip.SDXLTokenizer, sdxl_clip.SDXLClipModel)
    return sockets(description, target, torch.float16, channels=4, pixels=torch.float32)


def resident(what: str) -> float:
    """GiB of this process: "VmRSS" now, "VmHWM" at most since `forget`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) / 2**20
    raise OSError("this system does not say how much memory a process has")


def forget() -> None:
    """Let the most memory be counted from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def learned(model: tuple[Any, Any, Any], regularizers: list[Any]) -> dict[str, float]:
    """What a training of `STEPS` steps took: seconds, and GiB beside what was there."""
    from contextual_inversion.core.models.heap import give_back_freed_memory
    from contextual_inversion.core.training.settings import TrainSettings
    from contextual_inversion.core.training.trainer import train
    from contextual_inversion.nodes.comfy.adapting import adapted

    settings = TrainSettings(
        "house", name="real", steps=STEPS, batch=1, resolution=SIDE, gradient_checkpointing=True, learning_rate=1e-3
    )
    give_back_freed_memory()
    forget()
    before, began = resident("VmRSS"), time.perf_counter()
    with train(adapted(*model), torch.rand(1, SIDE, SIDE, 3), settings, regularizers=regularizers) as run:
        for _ in run:
            pass
    return {"seconds": time.perf_counter() - began, "before": before, "added": resident("VmHWM") - before}


def main() -> None:
    sys.argv = [sys.argv[0], "--cpu", "--use-pytorch-cross-attention"]
    sys.path.insert(0, str(find_comfyui()))
    import comfy.options

    comfy.options.enable_args_parsing()
    from contextual_inversion.core.training.regularizers.context import CoReRegularizer

    made = built()
    print(json.dumps({"built": resident("VmRSS")}), flush=True)
    print(json.dumps({"ti": learned(made, [])}), flush=True)
    print(json.dumps({"core": learned(made, [CoReRegularizer(PROMPTS)])}), flush=True)


if __name__ == "__main__":
    main()
