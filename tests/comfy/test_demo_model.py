"""Load Demo Model's tiny Stable Diffusion: ComfyUI's classes and diffusers', one adapter against the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from autoencoders import same_latents_and_images
from family_graphs import call, stock
from rounding import equal_but_for_rounding

from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.models.protocol import ImageSize
from contextual_inversion.core.models.text import encode_prompts
from contextual_inversion.core.models.tiny import config, load_tiny

SIZE = ImageSize(config.IMAGE_SIZE, config.IMAGE_SIZE)
TOLERANCE = 1e-4
PROMPTS = ["a photo of a red cat on the grass", ""]


@pytest.fixture(scope="module")
def pair(comfyui: Any) -> tuple[DiffusersModel, Any]:
    """The same model in both programs."""
    from contextual_inversion.nodes.comfy import demo_model
    from contextual_inversion.nodes.comfy.adapting import adapted

    with torch.inference_mode():
        sockets = demo_model.load_model_patcher(), demo_model.load_clip(), demo_model.load_vae()
    return DiffusersModel.from_tiny(load_tiny()), adapted(*sockets)


def test_one_prediction_is_the_same_in_both_programs(pair: tuple[DiffusersModel, Any]) -> None:
    noise = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    ours, theirs = pair
    assert ours.fingerprint == theirs.fingerprint
    assert ours.latent_channels == theirs.latent_channels == config.LATENT_CHANNELS == 16
    found = []
    for model in pair:
        with torch.no_grad():
            conditioning = model.conditioning(encode_prompts(model, PROMPTS), SIZE)
            found.append(model.predict(noise, torch.tensor([170, 903]), conditioning, None))
    assert found[0].shape == (2, 16, 16, 16)
    equal_but_for_rounding(found[1], found[0], TOLERANCE)


def test_latents_and_pictures_are_the_same_in_both_programs(pair: tuple[DiffusersModel, Any]) -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5)) * 2 - 1
    same_latents_and_images(pair, images, TOLERANCE)


def test_the_node_samples_from_an_ordinary_empty_latent(run_graph: Any) -> None:
    numbers = {"seed": 1, "steps": 2, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    text = {
        name: stock("CLIPTextEncode", clip=["model", 1], text=said) for name, said in zip("ab", PROMPTS, strict=True)
    }
    sockets = {"model": ["model", 0], "positive": ["a", 0], "negative": ["b", 0], "latent_image": ["latent", 0]}
    graph = {
        "model": call("LoadDemoModel"),
        **text,
        "latent": stock("EmptyLatentImage", width=128, height=128, batch_size=1),
        "sampler": stock("KSampler", **sockets, **numbers),
        "picture": stock("VAEDecode", samples=["sampler", 0], vae=["model", 2]),
    }
    run = run_graph(graph, keep={"latent": ("sampler", 0), "picture": ("picture", 0)})
    assert run.status == "success", run.error
    assert run.kept["latent"]["samples"].shape == (1, 16, 16, 16)
    assert run.kept["picture"].shape == (1, 128, 128, 3)
    assert float(run.kept["picture"].std()) > 0.05
