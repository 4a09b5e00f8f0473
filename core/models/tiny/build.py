"""Empty modules of the tiny Stable Diffusion, from the numbers in `config`. Needs diffusers (the `train` extra)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import config

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny, FluxTransformer2DModel, UNet2DConditionModel
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection


def build_vae(numbers: dict[str, Any] | None = None) -> AutoencoderTiny:
    """`AutoencoderTiny` of TAESD's shape, with other `numbers` than `config.VAE` where they are given."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(**(config.VAE if numbers is None else numbers))


def build_unet(numbers: dict[str, Any] | None = None) -> UNet2DConditionModel:
    """`UNet2DConditionModel` of SD 1.x's shape with two levels, both with cross-attention; `numbers` as in
    `build_vae`."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**(config.UNET if numbers is None else numbers))


def build_transformer(numbers: dict[str, Any] | None = None) -> FluxTransformer2DModel:
    """`FluxTransformer2DModel`, two double and five single blocks 192 wide; `numbers` as in `build_vae`."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(**(config.TRANSFORMER if numbers is None else numbers))


def build_text_encoder() -> CLIPTextModelWithProjection:
    """CLIP-L's text tower, 128 wide and 4 layers deep, over the stock vocabulary."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(CLIPTextConfig(**config.TEXT_ENCODER))


def build_image_encoder() -> CLIPVisionModelWithProjection:
    """CLIP's vision tower on 64 x 64 pictures."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(CLIPVisionConfig(**config.IMAGE_ENCODER))
