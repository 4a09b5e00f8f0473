"""`load_tiny`: the tiny Stable Diffusion as diffusers and transformers modules, with its weights."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from . import build, config
from .tokenizer import tiny_tokenizer
from .weights import fingerprint, read_weights, tiny_weights_path

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny, FluxTransformer2DModel, UNet2DConditionModel
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection


@dataclass
class TinyStableDiffusion:
    """The model's parts, frozen and in evaluation mode.

    The UNet reads `text_encoder(ids).last_hidden_state` (after the final layer norm) at all 77 positions; latents need
    no scaling (`vae.config.scaling_factor` is 1). `fingerprint` changes with any weight.
    """

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModelWithProjection
    unet: UNet2DConditionModel
    vae: AutoencoderTiny
    image_encoder: CLIPVisionModelWithProjection
    scheduler_config: dict[str, Any]
    fingerprint: str


@dataclass
class TinyFlow:
    """The flow matching model's parts, frozen and in evaluation mode.

    The transformer reads the first `config.FLOW_TOKENS` positions of `text_encoder(ids).last_hidden_state` and
    `.text_embeds`; latents need no scaling.
    """

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModelWithProjection
    transformer: FluxTransformer2DModel
    vae: AutoencoderTiny


def load_part(part: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """One of `config.PARTS`, or "transformer", with its weights, frozen.

    Where its weight file is missing it warns and keeps random weights (seed 0).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = getattr(build, f"build_{part}")()
    if tiny_weights_path(part).exists():
        module.load_state_dict(read_weights(part))
    else:
        warnings.warn(f"tiny model: no trained weights for {part}, using random ones", stacklevel=2)
    module = module.requires_grad_(False).eval().to(device)
    return module if dtype == torch.float32 else module.to(dtype)


def load_tiny(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> TinyStableDiffusion:
    """Build the tiny Stable Diffusion and load its weights. Needs diffusers (the `train` extra)."""
    parts = {part: load_part(part, device, dtype) for part in config.PARTS}
    return TinyStableDiffusion(
        tokenizer=tiny_tokenizer(), scheduler_config=dict(config.SCHEDULER), fingerprint=fingerprint(), **parts
    )


def load_flow(device: str | torch.device = "cpu") -> TinyFlow:
    """Build the tiny flow matching model and load its weights. Needs diffusers (the `train` extra)."""
    parts = {part: load_part(part, device) for part in ("text_encoder", "transformer", "vae")}
    return TinyFlow(tokenizer=tiny_tokenizer(), **parts)
