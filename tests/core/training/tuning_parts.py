"""Small models with random weights for the tuning-encoder: SD 1 and SDXL in shape, and a CLIP vision tower."""

import sys
from functools import lru_cache
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.models.image_encoder import ImageEncoder
from contextual_inversion.core.training.one_picture.pictures import GivenPictures
from contextual_inversion.core.training.one_picture.settings import EncoderPretrainSettings

sys.path.append(str(Path(__file__).parent.parent / "models"))


@lru_cache
def model(kind="sd1"):
    from small_pipelines import pipeline

    return DiffusersModel.from_pipeline(pipeline(kind))


def vision_tower(seed=0):
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        image_size=32, patch_size=8, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4
    )
    return CLIPVisionModelWithProjection(config).eval().requires_grad_(False).vision_model


@lru_cache
def images(seed=0):
    return ImageEncoder(vision_tower(seed), size=32)


def pictures(count=6, side=72):
    generator = torch.Generator().manual_seed(5)
    small = torch.rand(count, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(small, size=(side, side), mode="bilinear").permute(0, 2, 3, 1)


def source():
    return GivenPictures(pictures())


def settings(**keywords):
    given = {"steps": 4, "batch": 4, "learning_rate": 2e-3, "preset": "tiny", "resolution": 64, "log_every": 2}
    return EncoderPretrainSettings(**{**given, "ema": 0.5, "timesteps": (300, 700), **keywords})
