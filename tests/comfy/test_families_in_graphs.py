"""Models beyond Stable Diffusion through the nodes, in a real ComfyUI."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
sys.path.append(str(Path(__file__).parent))

KINDS = ("sd35", "flux", "qwen_image", "z_image")
PREFIX = "ContextualInversion"
LOADER = "ContextualInversionTestFamily"
NUMBERS = {"steps": 4, "learning_rate": 0.02, "batch": 1, "vectors": 2, "seed": 3, "resolution": 64}
FIXED = {"name": "keep", "train": "textual inversion", "recipe": "auto (for this model)", "continue_interrupted": True}
QUIET = {"preview_every": 0, "preview_prompt": "a photo of a {}"}
WORD_AND_LORA = "word and LoRA together"
KEEP = {"concept": ("train", 0), "loss": ("train", 1), "model": ("model", 0), "clip": ("model", 1)}


def call(name, /, **inputs):
    return {"class_type": PREFIX + name, "inputs": inputs}


@pytest.fixture(scope="module", params=KINDS)
def loader(comfyui, request):
    """The API prompt of a node that gives a family's MODEL, CLIP and VAE."""
    from random_families import build

    built = build(request.param)

    class Loader:
        RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CLIP", "VAE"), "load", "test"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"kind": ("STRING", {})}}

        def load(self, kind):
            return built.model, built.clip, built.vae

    comfyui.nodes.NODE_CLASS_MAPPINGS[LOADER] = Loader
    yield {"class_type": LOADER, "inputs": {"kind": request.param}}
    del comfyui.nodes.NODE_CLASS_MAPPINGS[LOADER]


def graph(loader, regularized=False, **changes):
    """The family's model, one picture and a short training."""
    sockets = {"model": ["model", 0], "clip": ["model", 1], "vae": ["model", 2], "images": ["images", 0]}
    sockets |= {"regularizer": ["core", 0]} if regularized else {}
    core = {"weights": "custom", "embedding_weight": 0.05, "attention_weight": 0.5, "rescale_mode": "as the recipe"}
    core |= {"embedding_axis": "paper", "attention_mode": "official", "attention_batch": 0}
    return {
        "model": loader,
        "images": call("DemoImages", concept="castle", count=1, background="grass", seed=0),
        "prompts": call("ContextPrompts", built_in_set="none", own_prompts="a {} in a jar\na red {}", file="none"),
        "core": call("CoReRegularizer", prompts=["prompts", 0], **core),
        "train": call("TrainConcept", **sockets, class_word="house", **FIXED | NUMBERS | QUIET | changes),
    }


def test_word_and_lora_learn_one_picture(run_graph, loader):
    numbers = {"steps": 40, "weight_rate": 0.01, "learning_rate": 0.01, "vectors": 1, "rank": 8}
    run = run_graph(graph(loader, train=WORD_AND_LORA, **numbers), keep=KEEP)
    assert run.status == "success", run.error
    losses = torch.tensor(run.kept["loss"]["diffusion"])
    assert losses[-10:].mean() < 0.75 * losses[:10].mean()
    concept = run.kept["concept"]
    assert all(value.shape[0] == 1 for value in concept.vectors.values())
    assert any(key.endswith("lora_up.weight") and bool((value != 0).any()) for key, value in concept.lora.items())


def test_core_goes_along(run_graph, loader):
    run = run_graph(graph(loader, regularized=True), keep=KEEP)
    assert run.status == "success", run.error
    for name in ("diffusion", "core/embedding", "core/attention"):
        assert len(run.kept["loss"][name]) == NUMBERS["steps"]
        assert all(value == value and value > 0 for value in run.kept["loss"][name][1:]), name
