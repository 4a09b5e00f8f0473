"""Graphs with a model of a family beyond Stable Diffusion, for the tests of nodes. `loader` of conftest.py goes first.

A test that takes `loader` runs once for each of its module's `KINDS`.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch

TITLES = {
    "sd35": "SD3 / SD3.5",
    "sd35_t5": "SD3 / SD3.5",
    "flux": "Flux.1",
    "qwen_image": "Qwen-Image",
    "z_image": "Z-Image",
    "lumina2": "Lumina 2",
    "chroma": "Chroma",
    "aura_flow": "AuraFlow",
    "pixart": "PixArt",
    "hunyuan_dit": "HunyuanDiT",
    "flux2": "Flux.2",
    "hidream": "HiDream",
    "omnigen2": "OmniGen2",
    "kandinsky5": "Kandinsky 5 Image",
    "hunyuan_image": "Hunyuan Image 2.1",
    "wan": "Wan (one frame)",
    "krea2": "Krea 2",
}
"""What the families of `random_families` are called in docs/models.md, in the order of its columns."""
KINDS = ("sd35", "flux", "qwen_image", "z_image")
"""Those that are run through every node."""
EVERY = tuple(kind for kind in TITLES if kind != "sd35_t5")
"""Those that learn a word, keep it, and show what they look at."""
SIDES = {"pixart": 320, "flux2": 128, "hunyuan_image": 256}
"""Pixels of the smallest pictures, 64 of all others."""
CROSS = ("pixart", "hunyuan_dit", "kandinsky5", "wan")
"""Those with cross-attention."""
PREFIX = "ContextualInversion"
LOADER = "ContextualInversionTestFamily"
NUMBERS = {"steps": 4, "learning_rate": 0.02, "batch": 1, "vectors": 2, "seed": 3, "resolution": 64}
FIXED = {"name": "keep", "train": "textual inversion", "recipe": "auto (for this model)", "continue_interrupted": True}
QUIET = {"preview_every": 0, "preview_prompt": "a photo of a {}"}
WORD_AND_LORA = "word and LoRA together"
KEEP = {"concept": ("train", 0), "loss": ("train", 1), "model": ("model", 0), "clip": ("model", 1)}
SOCKETS = {"model": ["model", 0], "clip": ["model", 1], "vae": ["model", 2]}
CORE = {
    "weights": "custom",
    "embedding_weight": 0.05,
    "attention_weight": 0.5,
    "rescale_mode": "as the recipe",
    "embedding_axis": "paper",
    "attention_mode": "official",
    "attention_batch": 0,
}
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
"""Of Show Attention."""


def call(name: str, /, **inputs: object) -> dict[str, Any]:
    """The prompt entry of one of this pack's nodes."""
    return {"class_type": PREFIX + name, "inputs": inputs}


def stock(name: str, /, **inputs: object) -> dict[str, Any]:
    """The prompt entry of one of ComfyUI's nodes."""
    return {"class_type": name, "inputs": inputs}


def said(run: Any) -> str:
    """What ComfyUI says of a run that failed."""
    return str((run.error or {}).get("exception_message", run.error))


def side_of(loader: dict[str, Any]) -> int:
    """Pixels of a family's smallest pictures."""
    return SIDES.get(loader["inputs"]["kind"], 64)


def graph(loader: dict[str, Any], regularized: bool = False, **changes: object) -> dict[str, Any]:
    """The family's model, one picture and a short training."""
    numbers = NUMBERS | {"resolution": side_of(loader)}
    sockets = {**SOCKETS, "images": ["images", 0]} | ({"regularizer": ["core", 0]} if regularized else {})
    return {
        "model": loader,
        "images": call("DemoImages", concept="castle", count=1, background="grass", seed=0),
        "prompts": call("ContextPrompts", built_in_set="none", own_prompts="a {} in a jar\na red {}", file="none"),
        "core": call("CoReRegularizer", prompts=["prompts", 0], **CORE),
        "train": call("TrainConcept", **sockets, class_word="house", **FIXED | numbers | QUIET | changes),
    }


def sampler(model: Any, positive: Any, side: int = 64) -> dict[str, Any]:
    """Two steps of a KSampler, and its picture's latent."""
    numbers = {"seed": 1, "steps": 2, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    sockets = {"model": model, "positive": positive, "negative": ["negative", 0], "latent_image": ["latent", 0]}
    return {
        "latent": stock("EmptySD3LatentImage", width=side, height=side, batch_size=1),
        "negative": stock("CLIPTextEncode", clip=["model", 1], text=""),
        "sampler": stock("KSampler", **sockets, **numbers),
    }


def prompt(text: str, clip: Any = ("model", 1)) -> dict[str, Any]:
    return stock("CLIPTextEncode", clip=list(clip), text=text)


def applied_concept(concept: Any, **changes: object) -> dict[str, Any]:
    """Apply Concept on the family's model."""
    strengths = {"strength_model": 1.0, "strength_clip": 1.0, "name": "keep"}
    return call("ApplyConcept", model=["model", 0], clip=["model", 1], concept=concept, **strengths | changes)


def weights_of(*patchers: Any) -> str:
    """A digest of every weight of models, names and all bits."""
    digest = hashlib.sha256()
    for patcher in patchers:
        for key, value in patcher.model.state_dict().items():
            digest.update(key.encode() + value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def diffusion_loss(model: Any, condition: dict[str, Any], latents: torch.Tensor, draws: int = 16) -> float:
    """The mean squared error of what a MODEL predicts of `latents` (1, C, H, W), on noise and noise levels that are
    always the same. It is ComfyUI's own `apply_model` that predicts, with whatever patches the MODEL has."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    base, generator = model.model, torch.Generator().manual_seed(11)
    sigmas = model.get_model_object("model_sampling").sigmas
    frames = base.latent_format.latent_dimensions == 3
    total = 0.0
    for share in torch.linspace(0.1, 0.95, draws):
        sigma = sigmas[int(share * (len(sigmas) - 1))].view(1)
        noise = torch.randn(latents.shape, generator=generator)
        x = base.model_sampling.noise_scaling(sigma.view(-1, 1, 1, 1), noise.clone(), latents)
        clean = _predicted(base, x[:, :, None] if frames else x, sigma, condition)
        # Of the velocity, noise - latents, which is (x - clean) / sigma.
        total += float((((clean[:, :, 0] if frames else clean) - latents) / sigma).square().mean())
    return total / draws


def silent_loss(model: Any, latents: torch.Tensor, draws: int = 16) -> float:
    """`diffusion_loss` of a MODEL that says 0, whatever it sees: of noise - latents, or of the noise alone."""
    import comfy.model_sampling

    flow = isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST)
    generator = torch.Generator().manual_seed(11)
    every = [torch.randn(latents.shape, generator=generator) - flow * latents for _ in range(draws)]
    return float(torch.stack(every).square().mean())


def _predicted(base: Any, x: torch.Tensor, sigma: torch.Tensor, condition: dict[str, Any]) -> torch.Tensor:
    rest = {key: value for key, value in condition.items() if key != "cond"}
    side = 8 * x.shape[-1]
    conds = base.extra_conds(
        **rest, cross_attn=condition["cond"], noise=x, device=x.device, width=side, height=side, prompt_type="positive"
    )
    given = {key: value.process_cond(batch_size=1, area=None).cond for key, value in conds.items()}
    with torch.no_grad():
        return base.apply_model(x, sigma, transformer_options={}, **given)


def condition_of(clip: Any, text: str) -> dict[str, Any]:
    """What a CLIP makes of a prompt."""
    with torch.no_grad():
        return clip.encode_from_tokens(clip.tokenize(text), return_pooled=True, return_dict=True)


def latents_of(model: Any, vae: Any, images: torch.Tensor, side: int = 64) -> torch.Tensor:
    """What a training of `side` pixels learns of pictures (N, H, W, 3), where nothing is cropped or turned."""
    pixels = torch.nn.functional.interpolate(images.movedim(-1, 1), size=(side, side), mode="area").movedim(1, -1)
    encoded = torch.cat([vae.encode(one[None]) for one in pixels]).float()
    latents = model.model.process_latent_in(encoded)
    return latents[:, :, 0] if latents.ndim == 5 else latents
