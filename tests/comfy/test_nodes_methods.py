"""Every method in a real ComfyUI: stock nodes draw what was trained, or there is a clear error."""

import sys
from dataclasses import replace

import pytest
import torch
from rounding import equal_but_for_rounding

from contextual_inversion.core.models.tiny.config import LATENT_CHANNELS

PREFIX = "ContextualInversion"
TITLES = {
    "XTI: a vector for every layer": {},
    "XTI: a vector for every block": {"vectors": 2},
    "Custom Diffusion": {},
    "Custom Diffusion ": {"rank": 2},
    "DreamBooth, LoRA": {},
    "DreamBooth, all weights": {},
}
"""What TrainConcept trains (a blank at the end: once more), and inputs beside the usual."""
LATENTS = "contextual_inversion_layers"
PROMPT = "a photo of a <keep> in the snow"


def call(name: str, /, **inputs: object) -> dict:
    return {"class_type": PREFIX + name, "inputs": inputs}


def parts(socket: str = "model") -> dict:
    return {"model": [socket, 0], "clip": [socket, 1]}


def training(title: str = "textual inversion", **changes: object) -> dict:
    """Model, two pictures and a training of three steps."""
    inputs = {
        "class_word": "house",
        "name": "keep",
        "train": title.strip(),
        "recipe": "auto (for this model)",
        "continue_interrupted": True,
        "steps": 3,
        "learning_rate": 0.02,
        "batch": 2,
        "vectors": 1,
        "seed": 3,
        "preview_every": 2,
        "preview_prompt": "a photo of a {}",
        "prior_pictures": 2,
        "keep_latents": True,
    }
    sockets = {**parts(), "vae": ["model", 2], "images": ["images", 0]}
    return {
        "model": call("LoadDemoModel"),
        "images": call("DemoImages", concept="castle", count=2, background="grass", seed=0),
        "train": call("TrainConcept", **sockets, **inputs | changes),
    }


def sampling(concept: list) -> dict:
    """A picture of the concept by stock nodes."""
    latent = {"width": 64, "height": 64, "batch_size": 1}
    sampler = {"seed": 1, "steps": 2, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    texts = {"positive": ["yes", 0], "negative": ["no", 0], "latent_image": ["latent", 0]}
    return {
        "apply": call("ApplyConcept", **parts(), concept=concept, strength_model=1.0, strength_clip=1.0, name=""),
        "yes": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["apply", 1], "text": PROMPT}},
        "no": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["apply", 1], "text": "blurry"}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": latent},
        "sample": {"class_type": "KSampler", "inputs": {"model": ["apply", 0], **texts, **sampler}},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["model", 2]}},
    }


KEPT = {
    "concept": ("train", 0),
    "base": ("model", 0),
    "base_clip": ("model", 1),
    "vae": ("model", 2),
    "model": ("apply", 0),
    "clip": ("apply", 1),
    "picture": ("decode", 0),
    "positive": ("yes", 0),
}


def pack(name: str) -> object:
    """A module of this pack as ComfyUI has imported it."""
    suffix = ".nodes.training"
    root = next(one for one in sys.modules if one.endswith(suffix) and "custom_nodes" in one)[: -len(suffix)]
    return sys.modules[f"{root}.{name}"]


def denoised(model: object, latents: torch.Tensor, sigma: torch.Tensor, positive: list) -> torch.Tensor:
    """What a stock sampler asks the model for, with all of its patches and the whole conditioning."""
    import comfy.model_management
    import comfy.sampler_helpers
    import comfy.samplers

    comfy.model_management.load_models_gpu([model], force_patch_weights=True, force_full_load=True)
    conds = {"positive": comfy.sampler_helpers.convert_cond(positive)}
    conds = comfy.samplers.process_conds(model.model, latents, conds, latents.device, seed=0)
    options = {**model.model_options, "transformer_options": {**model.model_options["transformer_options"]}}
    options["transformer_options"]["wrappers"] = model.wrappers
    model.pre_run()
    try:
        (result,) = comfy.samplers.calc_cond_batch(model.model, [conds["positive"]], latents, sigma, options)
    finally:
        model.cleanup()
    return result


@pytest.mark.parametrize("title", TITLES)
def test_stock_nodes_draw_what_was_trained(run_graph: object, title: str) -> None:
    run = run_graph({**training(title, **TITLES[title]), **sampling(["train", 0])}, keep=KEPT)
    assert run.status == "success", run.error
    kept, concept = run.kept, run.kept["concept"]
    assert kept["picture"].shape == (1, 64, 64, 3)
    assert torch.isfinite(kept["picture"]).all()
    assert bool(concept.layer_vectors) == title.startswith("XTI")
    assert bool(concept.lora) != title.startswith("XTI")
    assert concept.latents.shape[0] == 2
    # The same prompt through our own adapter, on the model as it came and with the concept laid over it.
    ours = pack("nodes.comfy.model").ComfyModel(kept["base"], kept["base_clip"], kept["vae"])
    base = kept["base"].model
    latents = torch.randn(1, LATENT_CHANNELS, 8, 8, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor([600])
    sigma = base.model_sampling.sigma(timestep)
    scale = (sigma**2 + 1).sqrt().view(-1, 1, 1, 1)
    deltas = pack("core.models.lora").from_lora(ours, concept.lora) if concept.lora else {}
    with torch.inference_mode():
        # First of all: what ApplyConcept patches is not patched in while ours is asked.
        with ours.session(), torch.no_grad(), pack("core.models.low_rank").apply_deltas(ours, deltas):
            template = PROMPT.replace("<keep>", "{}")
            options = {"vectors": concept.vectors, "layers": concept.layer_vectors}
            encodings = pack("core.models.text").encode_prompts(ours, [template], **options)
            raw = ours.predict(latents, timestep, ours.conditioning(encodings, None))
            expected = base.model_sampling.calculate_denoised(sigma, raw, latents * scale)
        found = denoised(kept["model"], latents * scale, sigma, kept["positive"])
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


def test_equal_vectors_for_all_layers_draw_the_plain_picture(run_graph: object, comfyui: object) -> None:
    run = run_graph({**training(), **sampling(["train", 0])}, keep=KEPT)
    assert run.status == "success", run.error
    kept, concept = run.kept, run.kept["concept"]
    apply = pack("nodes.concepts").ApplyConcept
    count = len(pack("nodes.comfy.model").ComfyModel(kept["base"], kept["base_clip"], kept["vae"])._layers)
    equal = {name: value.expand(count, -1, -1) for name, value in concept.vectors.items()}
    layered = replace(concept, layer_vectors=equal)
    nodes, pictures = comfyui.nodes, []
    with torch.inference_mode():
        for one in (concept, layered):
            model, clip = apply.execute(kept["base"], kept["base_clip"], one, 1.0, 1.0, "").args
            clip = clip.clone()  # as CLIPSetLastLayer and LoraLoader do
            texts = [nodes.CLIPTextEncode().encode(clip, text)[0] for text in (f"(red:1.2) {PROMPT}", "blurry")]
            empty = {"samples": torch.zeros(1, LATENT_CHANNELS, 8, 8)}
            (latent,) = nodes.common_ksampler(model, 5, 3, 4.0, "euler", "normal", *texts, empty)
            pictures.append(latent["samples"])
            assert all((LATENTS in text[0][1].get("model_conds", {})) == (one is layered) for text in texts)
    equal_but_for_rounding(pictures[1], pictures[0])
    fewer = replace(concept, layer_vectors={name: value[1:] for name, value in equal.items()})
    with pytest.raises(ValueError, match="another kind of model"):
        apply.execute(kept["base"], kept["base_clip"], fewer, 1.0, 1.0, "")


def refinement(**changes: object) -> dict:
    inputs = {
        "train": "LoRA",
        "recipe": "auto (for this model)",
        "steps": 3,
        "learning_rate": 0.001,
        "batch": 2,
        "rank": 2,
        "seed": 0,
        "preview_every": 0,
        "preview_prompt": "a {}",
        "continue_interrupted": True,
    }
    sockets = {**parts(), "vae": ["model", 2], "images": ["images", 0], "concept": ["train", 0]}
    return {"refine": call("RefineConcept", **sockets, **inputs | changes)}


def repairing(**changes: object) -> dict:
    inputs = {"steps": 4, "learning_rate": 0.01, "batch": 3, "latents": "training pictures", "seed": 0}
    inputs |= {"prompt": PROMPT, "width": 0, "height": 0}
    sockets = {**parts(), "vae": ["model", 2], "concept": ["refine", 0]}
    return {"repair": call("OptimizeForPrompt", **sockets, **inputs | changes)}


@pytest.mark.parametrize("refined", ["LoRA", "all weights"])
def test_second_stage_and_repair(run_graph: object, refined: str) -> None:
    keep = {"word": ("train", 0), "refined": ("refine", 0), "loss": ("refine", 1)}
    keep |= {"repaired": ("repair", 0), "pictures": ("repair", 1), "losses": ("repair", 2), "none": ("repair", 3)}
    keep |= {"picture": ("decode", 0)}
    least = 1 if refined == "LoRA" else 0
    graph = {**training(), **refinement(train=refined, least_rank=least), **repairing(), **sampling(["repair", 0])}
    run = run_graph(graph, keep=keep)
    assert run.status == "success", run.error
    word, refined_concept, repaired = (run.kept[name] for name in ("word", "refined", "repaired"))
    assert torch.equal(word.vectors["clip_l"], refined_concept.vectors["clip_l"])
    assert not torch.equal(word.vectors["clip_l"], repaired.vectors["clip_l"])
    assert all(torch.equal(repaired.lora[key], value) for key, value in refined_concept.lora.items())
    assert any(key.endswith(".diff") for key in refined_concept.lora) == (refined == "all weights")
    assert refined_concept.provenance["settings"]["least_rank"] == (least or None)
    assert len(run.kept["loss"]["loss"]) == 3
    assert set(run.kept["losses"]) >= {"loss", "core/embedding", "core/attention"}
    before, after = run.kept["pictures"]
    side = 8 * word.latents.shape[-1]
    assert before.shape == (side, side, 3)
    assert not torch.equal(before, after)
    assert run.kept["none"] is None
    assert repaired.provenance["optimized_for"]["prompt"] == PROMPT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_word": " ", "train": "DreamBooth, LoRA"}, "class_word is empty"),
        ({"masks": "empty"}, "mask 1 is empty"),
    ],
)
def test_bad_input_is_said_clearly(run_graph: object, changes: dict, message: str) -> None:
    graph = training(**{key: value for key, value in changes.items() if key != "masks"})
    if "masks" in changes:
        # One picture is enough to train on; a mask that leaves nothing of it is not.
        graph["empty"] = {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 128, "height": 128}}
        graph["images"]["inputs"]["count"] = 1
        graph["train"]["inputs"]["masks"] = ["empty", 0]
    run = run_graph(graph, keep={"concept": ("train", 0)})
    if message in str(run.error.get("node_errors")):  # what a field alone shows is said before anything runs
        assert run.status == "invalid"
        assert run.executed == []
        return
    assert run.status == "error"
    assert message in run.error["exception_message"]


def test_a_concept_of_another_model_is_refused(run_graph: object) -> None:
    run = run_graph({**training("Custom Diffusion"), **sampling(["train", 0])}, keep=KEPT)
    assert run.status == "success", run.error
    kept, concept = run.kept, run.kept["concept"]
    apply = pack("nodes.concepts").ApplyConcept
    key = next(iter(concept.lora))
    smaller = {**concept.lora, key: concept.lora[key][..., 1:]}
    elsewhere = {key.replace("down_blocks", "down_blocks_9"): value for key, value in concept.lora.items()}
    for lora in (smaller, elsewhere):
        with pytest.raises(ValueError, match="another"):
            apply.execute(kept["base"], kept["base_clip"], replace(concept, lora=lora), 1.0, 1.0, "")
    wide = {"clip_l": torch.zeros(1, 768), "clip_g": torch.zeros(1, 1280)}
    with pytest.raises(ValueError, match=r"clip_g|768"):
        apply.execute(kept["base"], kept["base_clip"], replace(concept, vectors=wide, lora=None), 1.0, 1.0, "")


def test_a_repair_says_when_it_has_no_latents_of_the_pictures(run_graph: object) -> None:
    graph = {**training(keep_latents=True), "bare": training(keep_latents=False)["train"]}
    asked = {
        "kept": ("train", "training pictures"),
        "lacking": ("bare", "training pictures"),
        "noise": ("bare", "pure noise"),
    }
    for name, (concept, latents) in asked.items():
        graph[name] = repairing(steps=1, width=64, latents=latents)["repair"]
        graph[name]["inputs"]["concept"] = [concept, 0]
    run = run_graph(graph, keep={name: (name, 0) for name in asked})
    assert run.status == "success", run.error
    said = {data["node"]: data["text"] for data in run.events("progress_text")}
    assert {name for name in asked if "kept no latents" in said[name]} == {"lacking"}
    vectors = {name: run.kept[name].vectors["clip_l"] for name in asked}
    assert torch.equal(vectors["lacking"], vectors["noise"])
    assert not torch.equal(vectors["kept"], vectors["noise"])


def test_a_prompt_is_repaired_without_its_weights(run_graph: object) -> None:
    """Parentheses are how ComfyUI writes a weight, and no words that the text encoder reads."""
    prompts = {"plain": "a red <keep> (at sea)", "weighted": "a (red:1.3) ((<keep>:0.9)) \\(at sea\\)"}
    graph = training()
    typed = {**prompts, "plain": prompts["plain"].replace("(", "\\(").replace(")", "\\)")}
    for name, prompt in typed.items():
        graph[name] = repairing(steps=2, width=64, prompt=prompt)["repair"]
        graph[name]["inputs"]["concept"] = ["train", 0]
    run = run_graph(graph, keep={name: (name, 0) for name in prompts} | {"pictures": ("weighted", 1)})
    assert run.status == "success", run.error
    plain, weighted = (run.kept[name] for name in prompts)
    assert torch.equal(plain.vectors["clip_l"], weighted.vectors["clip_l"])
    assert weighted.provenance["optimized_for"]["prompt"] == prompts["plain"]
    assert run.kept["pictures"].shape == (2, 64, 64, 3)


def test_a_prompt_without_the_concept_is_refused(run_graph: object) -> None:
    graph = {**training(), **refinement(), **repairing(prompt="a dog in the snow")}
    run = run_graph(graph, keep={"repaired": ("repair", 0)})
    assert run.status == "error"
    assert "does not mention <keep>" in run.error["exception_message"]
