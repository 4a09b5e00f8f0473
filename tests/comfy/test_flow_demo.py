"""The tiny flow matching model: ComfyUI's Flux and diffusers' transformer, one adapter against the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from autoencoders import same_latents_and_images
from rounding import equal_but_for_rounding

pytest.importorskip("diffusers")

from contextual_inversion.core.models.diffusers_flow import FlowModel
from contextual_inversion.core.models.protocol import ImageSize, TokenMeans
from contextual_inversion.core.models.text import encode_prompts
from contextual_inversion.core.models.tiny import config
from contextual_inversion.core.models.tiny.load import load_flow

SIZE = ImageSize(config.IMAGE_SIZE, config.IMAGE_SIZE)
TOLERANCE = 1e-4
PROMPTS = ("a photo of a red cat on the grass", "")


@pytest.fixture(scope="module")
def pair(comfyui: Any) -> tuple[FlowModel, Any]:
    """The same model in both programs."""
    from contextual_inversion.nodes.comfy import demo_model
    from contextual_inversion.nodes.comfy.adapting import adapted

    with torch.inference_mode():
        sockets = demo_model.load_flow_patcher(), demo_model.load_flow_clip(), demo_model.load_vae()
    return FlowModel(load_flow()), adapted(*sockets)


def noisy() -> tuple[torch.Tensor, torch.Tensor]:
    latents = torch.randn(2, config.LATENT_CHANNELS, 16, 16, generator=torch.Generator().manual_seed(1))
    return latents, torch.tensor([1700, 9030])


def test_same_description(pair: tuple[FlowModel, Any]) -> None:
    ours, theirs = pair
    assert list(ours.text_encoders) == list(theirs.text_encoders) == ["clip_l"]
    assert ours.schedule.prediction_type == theirs.schedule.prediction_type == "flow"
    equal_but_for_rounding(theirs.schedule.alpha_bar, ours.schedule.alpha_bar, TOLERANCE)
    assert (ours.latent_channels, ours.latent_factor) == (theirs.latent_channels, theirs.latent_factor)
    assert len(ours.cross_attention_layers()) == len(theirs.cross_attention_layers())
    assert ours.native_resolution == theirs.native_resolution


def test_same_prediction_and_attention(pair: tuple[FlowModel, Any]) -> None:
    found = []
    for model in pair:
        with torch.no_grad():
            conditioning = model.conditioning(encode_prompts(model, list(PROMPTS)), SIZE)
            means = TokenMeans()
            plain, watched = (model.predict(*noisy(), conditioning, probe) for probe in (None, means))
        equal_but_for_rounding(watched, plain)
        found.append((plain, means.layers))
    words = pair[0].text_encoders["clip_l"].tokenize(PROMPTS[0])
    (ours, our_layers), (theirs, their_layers) = found
    equal_but_for_rounding(theirs, ours, TOLERANCE)
    for mine, other in zip(our_layers, their_layers, strict=True):
        # ComfyUI's has 77 positions; what is padding is no context of a word.
        equal_but_for_rounding(other[0, : len(words) + 2], mine[0, : len(words) + 2], TOLERANCE)
        assert not other[0, len(words) + 2 :].any()


def test_same_latents_and_images(pair: tuple[FlowModel, Any]) -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5)) * 2 - 1
    same_latents_and_images(pair, images, TOLERANCE)


def test_same_gradient_at_the_word(pair: tuple[FlowModel, Any]) -> None:
    """Through text encoder, pooled prompt and joint attention, of the prediction and of the attention."""
    found = []
    for model in pair:
        with model.session():
            encoder = model.text_encoders["clip_l"]
            start = torch.randn(2, encoder.width, generator=torch.Generator().manual_seed(2))
            vectors = (start * encoder.table().std().float().cpu()).requires_grad_()
            conditioning = model.conditioning(
                encode_prompts(model, ["a {} in the snow"], vectors={"clip_l": vectors}), SIZE
            )
            means = TokenMeans()
            output = model.predict(*noisy(), conditioning.expand(2), means)
            loss = output.square().mean() + 10 * torch.stack(means.layers)[..., :7].square().mean()
            found.append(torch.autograd.grad(loss, vectors)[0])
    equal_but_for_rounding(found[1], found[0], TOLERANCE)


def test_a_long_prompt_is_read_whole(comfyui: Any) -> None:
    """In ComfyUI; behind the protocol it is cut, as on Stable Diffusion."""
    from contextual_inversion.nodes.comfy import demo_model

    clip = demo_model.load_flow_clip()
    lengths = [clip.encode_from_tokens(clip.tokenize(text)).shape[1] for text in ("a cat", "a very " * 20 + "red cat")]
    assert lengths == [config.FLOW_TOKENS, config.POSITIONS]
