"""Models beyond Stable Diffusion through the nodes, in a real ComfyUI."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
sys.path.append(str(Path(__file__).parent))

KINDS = ("sd35", "flux", "qwen_image", "z_image", "lumina2", "chroma", "aura_flow", "pixart")
KINDS += ("hunyuan_dit", "flux2", "hidream", "omnigen2", "kandinsky5", "hunyuan_image", "wan", "krea2")
SIDES = {"pixart": 320, "flux2": 128, "hunyuan_image": 256}
"""Pixels of the smallest pictures, 64 of all others."""
LEARNING = {"omnigen2": (96, 0.95)}
"""Steps, and the share of the loss that is left: the tiny OmniGen2 learns slowly by its attention (0.91 measured)."""
PREFIX = "ContextualInversion"
CROSS = ("pixart", "hunyuan_dit", "kandinsky5", "wan")
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


def side_of(loader):
    return SIDES.get(loader["inputs"]["kind"], 64)


def sized(loader):
    return NUMBERS | {"resolution": side_of(loader)}


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
        "train": call("TrainConcept", **sockets, class_word="house", **FIXED | sized(loader) | QUIET | changes),
    }


def test_word_and_lora_learn_one_picture(run_graph, loader):
    steps, share = LEARNING.get(loader["inputs"]["kind"], (24, 0.85))
    numbers = {"steps": steps, "weight_rate": 0.02, "learning_rate": 0.02, "vectors": 1, "rank": 8}
    run = run_graph(graph(loader, train=WORD_AND_LORA, **numbers), keep=KEEP)
    assert run.status == "success", run.error
    losses = torch.tensor(run.kept["loss"]["diffusion"])
    quarter = steps // 4
    assert losses[-quarter:].mean() < share * losses[:quarter].mean()
    concept = run.kept["concept"]
    assert all(value.shape[0] == 1 for value in concept.vectors.values())
    assert any(key.endswith("lora_up.weight") and bool((value != 0).any()) for key, value in concept.lora.items())


def test_core_goes_along(run_graph, loader):
    # Two pictures: the attention of a single one is not looked at in every step.
    run = run_graph(graph(loader, regularized=True, batch=2), keep=KEEP)
    assert run.status == "success", run.error
    for name in ("diffusion", "core/embedding", "core/attention"):
        assert len(run.kept["loss"][name]) == NUMBERS["steps"]
        assert all(value == value and value > 0 for value in run.kept["loss"][name][1:]), name


def sampler(model, positive, side=64):
    """Two steps of a KSampler, and its picture's latent."""
    return {
        "latent": {"class_type": "EmptySD3LatentImage", "inputs": {"width": side, "height": side, "batch_size": 1}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": ""}},
        "sampler": {
            "class_type": "KSampler",
            "inputs": {
                "model": model,
                "positive": positive,
                "negative": ["negative", 0],
                "latent_image": ["latent", 0],
                "seed": 1,
                "steps": 2,
                "cfg": 4.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        },
    }


def prompt(text, clip=("model", 1)):
    return {"class_type": "CLIPTextEncode", "inputs": {"clip": list(clip), "text": text}}


SHOWN = {
    "words": "",
    "layers": "all",
    "resolution": "all",
    "start": 0.0,
    "end": 1.0,
    "normalise": "each word",
    "overlay": 0.5,
    "captions": True,
    "special_tokens": False,
    "padding": False,
    "mask_words": "",
    "mask_threshold": 0.4,
    "conditioning": 1,
}


def test_recording_leaves_the_picture_as_it_is(run_graph, loader):
    """And its maps are shares: what all text tokens and the image itself draw is 1."""
    side = side_of(loader)
    plain = {"model": loader, "positive": prompt("a red castle"), **sampler(["model", 0], ["positive", 0], side)}
    record = call("RecordAttention", model=["model", 0], step_bins=2, cells=8)
    watched = {**plain, "record": record, **sampler(["record", 0], ["positive", 0], side)}
    show = call("ShowAttention", attention=["record", 1], prompt="a red castle", latent=["sampler", 0], **SHOWN)
    show["inputs"]["clip"] = ["model", 1]
    before = run_graph(plain, keep={"latent": ("sampler", 0)})
    assert before.status == "success", before.error
    keep = {"latent": ("sampler", 0), "attention": ("record", 1), "images": ("show", 0)}
    after = run_graph({**watched, "show": show}, keep=keep)
    assert after.status == "success", after.error
    assert torch.equal(before.kept["latent"]["samples"], after.kept["latent"]["samples"])
    cross = loader["inputs"]["kind"] in CROSS
    maps = after.kept["attention"].recorder.maps()
    for values in maps.values:
        total = values.sum(dim=2)
        assert bool((total > 0).all())
        # In cross-attention there is no image to look at.
        assert torch.allclose(total, torch.ones(())) if cross else bool((total < 1).all())
    assert len(after.kept["images"]) == 3  # a, red, castle


def test_a_word_is_applied_saved_and_loaded(run_graph, loader):
    name, side = f"word_of_{loader['inputs']['kind']}", side_of(loader)
    trained = graph(loader, train=WORD_AND_LORA, weight_rate=0.05)
    applied = call(
        "ApplyConcept", model=["model", 0], clip=["model", 1], concept=["train", 0], strength_model=1.0,
        strength_clip=1.0, name="",
    )  # fmt: skip
    save = call(
        "SaveConcept", concept=["train", 0], name=name, if_taken="add a number", embedding_file=True,
        half_precision=False, lora_file=True,
    )  # fmt: skip
    whole = {**trained, "apply": applied, "save": save, "positive": prompt("a <keep> in a jar", ("apply", 1))}
    run = run_graph({**whole, **sampler(["apply", 0], ["positive", 0], side)}, keep={"latent": ("sampler", 0), **KEEP})
    assert run.status == "success", run.error
    load = call("LoadConcept", file=f"contextual_inversion/{name}.safetensors", clip=["model", 1])
    again = {"model": loader, "load": load, "apply": {**applied, "inputs": {**applied["inputs"]}}}
    again["apply"]["inputs"] |= {"concept": ["load", 0], "name": "keep"}
    again |= {
        "positive": prompt("a <keep> in a jar", ("apply", 1)),
        **sampler(["apply", 0], ["positive", 0], side),
    }
    loaded = run_graph(again, keep={"latent": ("sampler", 0), "concept": ("load", 0)})
    assert loaded.status == "success", loaded.error
    assert torch.equal(run.kept["latent"]["samples"], loaded.kept["latent"]["samples"])
    stock = {
        "model": loader,
        "lora": {
            "class_type": "LoraLoaderModelOnly",
            "inputs": {"model": ["model", 0], "lora_name": f"{name}.safetensors", "strength_model": 1.0},
        },
        "apply": {**again["apply"], "inputs": {**again["apply"]["inputs"], "strength_model": 0.0}},
        "load": load,
        "positive": prompt("a <keep> in a jar", ("apply", 1)),
        **sampler(["lora", 0], ["positive", 0], side),
    }
    by_stock = run_graph(stock, keep={"latent": ("sampler", 0)})
    assert by_stock.status == "success", by_stock.error
    assert torch.allclose(run.kept["latent"]["samples"], by_stock.kept["latent"]["samples"], atol=1e-5)


def test_what_such_a_model_cannot_do_is_refused_in_words(run_graph, loader):
    for method in ("XTI: a vector for every layer", "Custom Diffusion", "DreamBooth, all weights"):
        run = run_graph(graph(loader, train=method), keep=KEEP)
        assert run.status == "error"
        assert "choose textual inversion" in run.error["exception_message"], method


def test_a_picture_too_small_for_a_family_is_refused_in_words(run_graph, loader):
    run = run_graph(graph(loader, resolution=min(256, side_of(loader))), keep=KEEP)
    if loader["inputs"]["kind"] != "pixart":
        assert run.status == "success"
    else:
        assert "pictures of more than 256 pixels a side, not of 256" in run.error["exception_message"]
