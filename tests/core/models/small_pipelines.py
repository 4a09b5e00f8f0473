"""diffusers pipelines of SD 1, SD 2 and SDXL in shape, small and with random weights."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from contextual_inversion.core.models.tiny import tiny_tokenizer

WIDTH, POOLED = 32, 48
KINDS = ("sd1", "sd2", "sdxl")


def pipeline(kind: str) -> Any:
    """A pipeline as it would be loaded from a folder; the same weights at every call."""
    torch.manual_seed(0)
    return _xl() if kind == "sdxl" else _one_encoder(kind)


def _one_encoder(kind: str) -> StableDiffusionPipeline:
    second = kind == "sd2"
    unet = _unet(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=(2, 4) if second else 4,
        use_linear_projection=second,
        upcast_attention=second,
    )
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(WIDTH)),
        tokenizer=_tokenizer("!" if second else None),
        unet=unet,
        scheduler=_scheduler("v_prediction" if second else "epsilon"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _xl() -> StableDiffusionXLPipeline:
    unet = _unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH + POOLED,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=POOLED + 6 * 8,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(WIDTH)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(POOLED)),
        tokenizer=_tokenizer(None),
        tokenizer_2=_tokenizer("!"),
        unet=unet,
        scheduler=_scheduler("epsilon"),
    )


def _unet(**shape: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(sample_size=8, block_out_channels=(32, 64), layers_per_block=1, **shape)


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=[32] * 4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=1,
        latent_channels=4,
    )


def _text_config(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=width,
        eos_token_id=49407,
        pad_token_id=49407,
    )


def _tokenizer(pad: str | None) -> Any:
    from copy import deepcopy

    tokenizer = deepcopy(tiny_tokenizer())
    if pad is not None:
        tokenizer.pad_token = pad
    return tokenizer


def _scheduler(prediction: str) -> DDIMScheduler:
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return DDIMScheduler(**betas, prediction_type=prediction, clip_sample=False, set_alpha_to_one=True)
