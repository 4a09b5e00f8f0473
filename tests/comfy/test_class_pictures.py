"""Cancel, while TrainConcept draws its class pictures for prior preservation, in a real ComfyUI: none is lost."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

PREFIX = "ContextualInversion"
PICTURES, SEED = 3, 3
SEEDS = list(range(SEED, SEED + PICTURES))
"""Of the class pictures, which follow from the training's like every random choice."""
KEEP = {"concept": ("train", 0), "loss": ("train", 1)}
CAME_IN = {"model": ("model", 0), "clip": ("model", 1), "vae": ("model", 2)}
DRAWING = "drawing class pictures: {} of " + str(PICTURES)


def training(**changes: object) -> dict:
    """Two steps of DreamBooth with all weights, which goes through the class pictures one by one."""
    inputs = {
        "class_word": "house",
        "name": "keep",
        "train": "DreamBooth, all weights",
        "recipe": "auto (for this model)",
        "steps": 2,
        "learning_rate": 0.0,
        "batch": 1,
        "vectors": 1,
        "seed": SEED,
        "preview_every": 0,
        "preview_prompt": "a photo of a {}",
        "continue_interrupted": True,
        "prior_preservation": 1.0,
        "prior_pictures": PICTURES,
    }
    sockets = {name: list(source) for name, source in CAME_IN.items()} | {"images": ["images", 0]}
    images = {"concept": "castle", "count": 2, "background": "grass", "seed": 0}
    return {
        "model": {"class_type": f"{PREFIX}LoadDemoModel", "inputs": {}},
        "images": {"class_type": f"{PREFIX}DemoImages", "inputs": images},
        "train": {"class_type": f"{PREFIX}TrainConcept", "inputs": sockets | inputs | changes},
    }


def texts(run: Any) -> list[str]:
    return [data["text"] for data in run.events("progress_text") if data["node"] == "train"]


def weights(kept: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Every number of MODEL, CLIP and VAE."""
    patchers = {"model": kept["model"], "clip": kept["clip"].patcher, "vae": kept["vae"].patcher}
    return {
        f"{name}.{key}": value.detach().cpu().clone()
        for name, patcher in patchers.items()
        for key, value in patcher.model.state_dict().items()
    }


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())


def cancel_when(text: str) -> Callable[[str, Any], None]:
    """Presses Cancel as the page reads `text`, while the next picture is being drawn."""
    import comfy.model_management

    def pressed(event: str, data: Any) -> None:
        if event == "progress_text" and data["text"] == text:
            comfy.model_management.interrupt_current_processing()

    return pressed


@pytest.fixture
def folder(comfyui: Any) -> Path:
    """Where the class pictures lie; empty."""
    root = comfyui.base / "user" / "contextual_inversion"
    shutil.rmtree(root, ignore_errors=True)
    return root / "checkpoints" / "class_pictures"


@pytest.fixture
def seeds(comfyui: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seed of every picture that is drawn to its end, in order."""
    name = next(
        one for one in sys.modules if one.endswith(".core.training.regularizers.prior") and "custom_nodes" in one
    )
    found: list[int] = []
    draw = sys.modules[name].sample

    def drawn(*arguments: Any, seed: list[int], **options: Any) -> torch.Tensor:
        result = draw(*arguments, seed=seed, **options)
        found.extend(seed)
        return result

    monkeypatch.setattr(sys.modules[name], "sample", drawn)
    return found


def stored(folder: Path) -> torch.Tensor:
    """The class pictures in the one file of the folder."""
    (path,) = folder.iterdir()
    return load_file(path)["latents"]


def test_cancelling_while_class_pictures_are_drawn_loses_none(run_graph: Any, folder: Path, seeds: list[int]) -> None:
    before = weights(run_graph({"model": training()["model"]}, keep=CAME_IN).kept)
    whole = run_graph(training(), keep=KEEP)
    assert whole.status == "success", whole.error
    assert seeds == SEEDS
    pictures = stored(folder)
    assert len(pictures) == PICTURES
    shutil.rmtree(folder)
    seeds.clear()

    # Other words for a preview that is not drawn: the same training, which ComfyUI has no result of yet.
    again = training(preview_prompt="a photo of a {} at sea")
    first = run_graph(again, keep=KEEP, on_event=cancel_when(DRAWING.format(1)))
    assert first.status == "interrupted"
    assert first.kept == {}
    assert seeds == SEEDS[:1], "the picture that was being drawn is given up, which ComfyUI does within it"
    assert torch.equal(stored(folder), pictures[:1])

    second = run_graph(again, keep=KEEP, on_event=cancel_when(DRAWING.format(2)))
    assert second.status == "interrupted"
    assert [text for text in texts(second) if "class pictures" in text] == [DRAWING.format(1), DRAWING.format(2)]
    assert seeds == SEEDS[:2]
    assert torch.equal(stored(folder), pictures[:2])

    resumed = run_graph(again, keep=KEEP | CAME_IN)
    assert resumed.status == "success", resumed.error
    assert [text for text in texts(resumed) if "class pictures" in text] == [DRAWING.format(2)]
    assert seeds == SEEDS
    assert torch.equal(stored(folder), pictures)
    ours, theirs = resumed.kept["concept"], whole.kept["concept"]
    assert any("layer_norm" in key for key in ours.lora)
    assert equal(ours.lora, theirs.lora)
    assert equal(ours.vectors, theirs.vectors)
    assert resumed.kept["loss"] == whole.kept["loss"]
    assert all(value > 0 for value in ours.provenance["losses"].values())
    assert "prior/diffusion" in resumed.kept["loss"]
    assert equal(weights(resumed.kept), before)
