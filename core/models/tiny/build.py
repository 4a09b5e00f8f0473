"""Empty modules of the tiny Stable Diffusion, from the numbers in `config`. Needs diffusers (the `train` extra)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import config

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny, FluxTransformer2DModel, UNet2DConditionModel
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection


def build_vae(form: dict[str, Any] | None = None) -> AutoencoderTiny:
    """`AutoencoderTiny` of TAESD's shape: the chosen form's, or of another `form` (as `config.VAE_CANDIDATE`)."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(**(config.VAE if form is None else form))


def build_flow_vae() -> AutoencoderTiny:
    """The autoencoder of the tiny flow matching model, with 16 latent channels."""
    return build_vae(config.VAE_CANDIDATE)


def build_unet(form: dict[str, Any] | None = None) -> UNet2DConditionModel:
    """`UNet2DConditionModel` of SD 1.x's shape with two levels, both with cross-attention; `form` as in `build_vae`."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**(config.UNET if form is None else form))


def build_transformer(form: dict[str, Any] | None = None) -> FluxTransformer2DModel:
    """`FluxTransformer2DModel`, two double and five single blocks 192 wide; `form` as in `build_vae`."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(**(config.TRANSFORMER if form is None else form))


def build_text_encoder() -> CLIPTextModelWithProjection:
    """CLIP-L's text tower, 128 wide and 4 layers deep, over the stock vocabulary."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(CLIPTextConfig(**config.TEXT_ENCODER))


def build_image_encoder() -> CLIPVisionModelWithProjection:
    """CLIP's vision tower on 64 x 64 pictures."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(CLIPVisionConfig(**config.IMAGE_ENCODER))
