"""`python -m contextual_inversion.nodes.bench REPORT REQUEST`: the pack loaded into a ComfyUI, and a word trained there
through Train Concept.

REQUEST is JSON: "comfyui" (its folder), "model" ("tiny", or the folder of a diffusers pipeline), "pictures" (a folder),
"out" (the file for the word), "resolution", "batch", "steps", "learning_rate", "loads" (how often the pack is loaded).
REPORT gets "steps" as `noted` has them, and "start_up", the processor's seconds of each loading.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...core.training.run.noted import note_steps
from . import hosted

MODEL, PICTURES, TRAIN, SAVE = "model", "pictures", "train", "save"
PREFIX = "ContextualInversion"
WORD = "bench"
WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def main(report: str, request: str) -> None:
    """Does it and writes what was noted."""
    given = json.loads(request)
    notes: dict[str, Any] = {"steps": []}
    note_steps(notes["steps"])
    import torch

    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        nodes = hosted.start(Path(given["comfyui"]), base, cpu=not torch.cuda.is_available())
        notes["start_up"] = hosted.load_pack(nodes, Path(folder) / "cache", given["loads"])
        nodes.NODE_CLASS_MAPPINGS[PICTURES] = hosted.gives({"IMAGE": lambda: pictures(Path(given["pictures"]))})
        if given["model"] != "tiny":
            nodes.NODE_CLASS_MAPPINGS[MODEL] = hosted.gives(parts_of(Path(given["model"])))
        hosted.run(prompt(given))
        shutil.copyfile(base / "models" / "embeddings" / f"{WORD}.safetensors", given["out"])
    Path(report).write_text(json.dumps(notes), encoding="utf-8")


def prompt(given: Mapping[str, Any]) -> hosted.Prompt:
    """The graph: plain textual inversion, its word saved."""
    training = {
        "model": [MODEL, 0],
        "clip": [MODEL, 1],
        "vae": [MODEL, 2],
        "images": [PICTURES, 0],
        "class_word": "dog",
        "name": WORD,
        "train": "textual inversion",
        "recipe": "Textual inversion (classic)",
        "steps": given["steps"],
        "learning_rate": given["learning_rate"],
        "batch": given["batch"],
        "vectors": 0,
        "seed": 0,
        "preview_every": 0,
        "preview_prompt": "a photo of a {}",
        "continue_interrupted": False,
        "resolution": given["resolution"],
    }
    saving = {"concept": [TRAIN, 0], "name": "", "if_taken": "refuse", "embedding_file": True, "half_precision": False}
    return {
        MODEL: {"class_type": PREFIX + "LoadDemoModel" if given["model"] == "tiny" else MODEL, "inputs": {}},
        PICTURES: {"class_type": PICTURES, "inputs": {}},
        TRAIN: {"class_type": PREFIX + "TrainConcept", "inputs": training},
        SAVE: {"class_type": PREFIX + "SaveConcept", "inputs": saving},
    }


def pictures(folder: Path) -> Any:
    """All of a folder's pictures as one IMAGE (B, H, W, 3)."""
    import numpy as np
    import torch
    from PIL import Image

    pixels = [np.asarray(Image.open(file).convert("RGB"), np.float32) / 255 for file in sorted(folder.iterdir())]
    return torch.from_numpy(np.stack(pixels))


def parts_of(model: Path) -> dict[str, Callable[[], Any]]:
    """MODEL, CLIP and VAE of a folder of a diffusers pipeline. Raises FileNotFoundError that names the file where it
    holds no safetensors of one."""
    files = {part: model / part / name for part, name in WEIGHTS.items()}
    for file in files.values():
        if not file.is_file():
            raise FileNotFoundError(f"ComfyUI needs {file}")
    import comfy.sd
    import comfy.utils

    return {
        "MODEL": lambda: comfy.sd.load_diffusion_model(str(files["unet"])),
        "CLIP": lambda: comfy.sd.load_text_encoder_state_dicts([text_encoder(files["text_encoder"])]),
        "VAE": lambda: comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(files["vae"]))),
    }


def text_encoder(file: Path) -> dict[str, Any]:
    """Its weights by the names that ComfyUI knows: transformers 5 leaves a prefix out, without which ComfyUI takes
    random weights and says so in its log alone."""
    import comfy.utils

    found = comfy.utils.load_torch_file(str(file))
    bare = not any(key.startswith("text_model.") for key in found)
    return {f"text_model.{key}": value for key, value in found.items()} if bare else found


if __name__ == "__main__":
    main(*sys.argv[1:])
