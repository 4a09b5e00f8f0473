"""What a model must be, in words; and the diffusers adapter, which asks for it."""

from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch

from contextual_inversion.core.models.diffusers_adapter import DiffusersModel, noise_schedule, schedule_family
from contextual_inversion.core.models.requirements import ModelFacts, require_trainable
from contextual_inversion.core.prompts.tokens import computing_dtype, input_embeddings, tokenize_prompt
from contextual_inversion.core.wording import MOST

from .small_pipelines import pipeline

FINE = ModelFacts("SD15", 4, 4, 768, [("clip_l", 768)], 4)
WRONG = {
    "inpainting": ({"in_channels": 9}, "inpainting model"),
    "InstructPix2Pix": ({"in_channels": 8}, "InstructPix2Pix"),
    "the upscaler": ({"in_channels": 7}, "x4 upscaler"),
    "depth": ({"in_channels": 5}, "depth map"),
    "something else": ({"in_channels": 12}, "12 channels"),
    "video": ({"purpose": "makes videos of pictures"}, "makes videos of pictures"),
    "the refiner": ({"refiner": True}, "SDXL refiner"),
    "flow": ({"schedule": "flow matching"}, "flow matching"),
    "another CLIP": (
        {"text_widths": [("clip_l", 768), ("clip_g", 1280)]},
        "clip_l 768, clip_g 1280.*2048.*SD15 takes 768",
    ),
    "another VAE": ({"vae_channels": 16}, "VAE makes latents of 16 channels and SD15 takes 4"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_model_that_cannot_be_trained_on_is_named_with_what_to_do(kind):
    changes, said = WRONG[kind]
    with pytest.raises(ValueError, match=said) as caught:
        require_trainable(replace(FINE, **changes))
    assert "; use" in str(caught.value)
    assert "perhaps" not in str(caught.value)
    assert len(str(caught.value)) < MOST


@pytest.mark.parametrize("left_out", ["context_width", "text_widths", "vae_channels"])
def test_what_is_not_known_is_not_asked(left_out):
    require_trainable(FINE)
    require_trainable(replace(FINE, **{left_out: None}))


OURS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
        "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "LCMScheduler", "HeunDiscreteScheduler",
        "DEISMultistepScheduler", "LMSDiscreteScheduler", "KDPM2DiscreteScheduler", "TCDScheduler")  # fmt: skip
THEIRS = {
    "FlowMatchEulerDiscreteScheduler": "flow matching",
    "FlowMatchHeunDiscreteScheduler": "flow matching",
    "EDMEulerScheduler": "EDM",
    "EDMDPMSolverMultistepScheduler": "EDM",
    "CMStochasticIterativeScheduler": "EDM",
}


@pytest.mark.parametrize("name", OURS)
def test_every_sampler_of_stable_diffusion_is_taken(name):
    assert schedule_family(getattr(diffusers, name)().config) == ""


@pytest.mark.parametrize("name", THEIRS)
def test_another_family_s_noise_is_refused(name):
    config = {**getattr(diffusers, name)().config, "_class_name": name}
    assert schedule_family(config) == THEIRS[name]
    with pytest.raises(ValueError, match=f"{name}.*{THEIRS[name]}.*not that of Stable Diffusion"):
        noise_schedule(config)


@pytest.mark.parametrize("changes", [{"use_flow_sigmas": True}, {"prediction_type": "flow_prediction"}])
def test_a_sampler_set_to_flow_is_refused(changes):
    scheduler = diffusers.DPMSolverMultistepScheduler(**changes)
    with pytest.raises(ValueError, match="flow matching"):
        noise_schedule(scheduler.config)


@pytest.mark.parametrize("name", ["EDMDPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_a_pipeline_with_such_a_scheduler_is_refused_from_its_folder(tmp_path, name):
    found = pipeline("sdxl")
    found.scheduler = getattr(diffusers, name)()
    found.register_modules(scheduler=found.scheduler)
    found.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not that of Stable Diffusion"):
        DiffusersModel.from_pipeline(tmp_path)


def widened(found: Any, channels: int) -> Any:
    """The pipeline with a UNet that takes so many channels."""
    found.unet = diffusers.UNet2DConditionModel.from_config(found.unet.config, in_channels=channels)
    return found


@pytest.mark.parametrize(("channels", "said"), [(9, "inpainting"), (8, "InstructPix2Pix"), (7, "upscaler")])
def test_a_unet_of_more_channels_is_named(channels, said):
    with pytest.raises(ValueError, match=said):
        DiffusersModel.from_pipeline(widened(pipeline("sd1"), channels))


def test_the_refiner_is_named():
    found = pipeline("sdxl")
    found.text_encoder = found.tokenizer = None
    with pytest.raises(ValueError, match="SDXL refiner"):
        DiffusersModel.from_pipeline(found)


def test_the_latents_of_a_vae_with_moments_are_diffusers_own():
    found = pipeline("sdxl")
    mean, std = [0.5, -1.0, 0.25, 2.0], [2.0, 0.5, 1.5, 4.0]
    plain = DiffusersModel.from_pipeline(found)
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    before = plain.to_latents(pictures)
    found.vae.register_to_config(latents_mean=mean, latents_std=std)
    model = DiffusersModel.from_pipeline(found)
    # As StableDiffusionXLPipeline decodes: latents * std / scaling_factor + mean.
    factor = found.vae.config.scaling_factor
    wide = [torch.tensor(one).view(1, 4, 1, 1) for one in (mean, std)]
    latents = model.to_latents(pictures)
    torch.testing.assert_close(latents * wide[1] / factor + wide[0], before / factor)
    # The decoder makes more of a rounding.
    torch.testing.assert_close(model.to_images(latents), plain.to_images(before), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16, torch.float64]
)
def test_embeddings_of_any_storage_are_computed_in_float32_at_least(dtype):
    expected = torch.float64 if dtype is torch.float64 else torch.float32
    assert computing_dtype(dtype) is expected
    encoder = DiffusersModel.from_pipeline(pipeline("sd1")).text_encoders["clip_l"]
    table = encoder.table().detach().to(dtype)

    class Stored:
        """The encoder with its table in another type."""

        def __getattr__(self, name):
            return getattr(encoder, name)

        def table(self):
            return table

    prompts = [tokenize_prompt(encoder, "a photo of a {}", rows=2)]
    vectors = torch.randn(2, encoder.width, requires_grad=True)
    inputs, ids = input_embeddings(Stored(), prompts, vectors)
    assert inputs.dtype is expected
    plain = [place for place in range(len(prompts[0].ids)) if place not in prompts[0].fill]
    torch.testing.assert_close(inputs[0, plain], table.to(expected)[ids[0, plain]], rtol=0, atol=0)
    torch.testing.assert_close(inputs[0, list(prompts[0].fill)], vectors.to(expected), rtol=0, atol=0)
    inputs.sum().backward()
    torch.testing.assert_close(vectors.grad, torch.ones_like(vectors))
