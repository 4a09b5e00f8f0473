"""The families beyond Stable Diffusion, made of ComfyUI's own classes, small in width and depth, with random weights.

Import after ComfyUI's arguments are settled (the `comfyui` fixture).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import comfy.ldm.wan.vae
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import comfy.text_encoders.aura_t5
import comfy.text_encoders.flux
import comfy.text_encoders.pixart_t5
import comfy.text_encoders.qwen_image
import comfy.text_encoders.qwen_vl
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.z_image
import torch
from random_models import Sockets

WIDTH = 32
CLIP = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "projection_dim": WIDTH,
}
T5 = {"d_model": WIDTH, "d_ff": 2 * WIDTH, "d_kv": 8, "num_heads": 4, "num_layers": 2}
LLM = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@dataclass(frozen=True)
class Kind:
    """One family: ComfyUI's description of its model, the denoiser's and the text encoders' sizes."""

    description: str
    denoiser: Mapping[str, Any] = field(repr=False)
    target: Callable[[], tuple[type, type]] = field(repr=False)
    text: Mapping[str, Mapping[str, Any]] = field(repr=False)
    video_vae: bool = False
    channels: int = 16
    side: int = 8
    """Of the smallest latents that it takes."""


FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": WIDTH,
    "context_in_dim": WIDTH,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
NEXT_DIT = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 64,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "qk_norm": True,
    "cap_feat_dim": WIDTH,
    "axes_dims": [8, 12, 12],
    "axes_lens": [300, 64, 64],
    "multiple_of": 32,
    "ffn_dim_multiplier": 1.0,
}
KINDS: Mapping[str, Kind] = {
    "sd35": Kind(
        "SD3",
        {
            "in_channels": 16,
            "patch_size": 2,
            "input_size": None,
            "num_patches": 64 * 64,
            "pos_embed_scaling_factor": None,
            "pos_embed_max_size": 64,
            "depth": 2,
            "adm_in_channels": 2 * WIDTH,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 4096, "out_features": 128},
            },
            "qk_norm": "rms",
            "x_block_self_attn_layers": [0],
        },
        lambda: (
            comfy.text_encoders.sd3_clip.SD3Tokenizer,
            comfy.text_encoders.sd3_clip.sd3_clip(clip_l=True, clip_g=True, t5=False),
        ),
        {"clip_l": CLIP, "clip_g": CLIP},
    ),
    "sd35_t5": Kind(
        "SD3",
        {},
        lambda: (
            comfy.text_encoders.sd3_clip.SD3Tokenizer,
            comfy.text_encoders.sd3_clip.sd3_clip(clip_l=True, clip_g=True, t5=True),
        ),
        # SD3 pads what the CLIPs say to the width of T5-XXL, whatever their own is.
        {"clip_l": CLIP, "clip_g": CLIP, "t5xxl": {**T5, "d_model": 4096, "num_layers": 1}},
    ),
    "flux": Kind(
        "Flux",
        FLUX,
        lambda: (comfy.text_encoders.flux.FluxTokenizer, comfy.text_encoders.flux.flux_clip()),
        {"clip_l": CLIP, "t5xxl": T5},
    ),
    "qwen_image": Kind(
        "QwenImage",
        {
            "image_model": "qwen_image",
            "patch_size": 2,
            "in_channels": 64,
            "out_channels": 16,
            "num_layers": 2,
            "attention_head_dim": 32,
            "num_attention_heads": 4,
            "joint_attention_dim": WIDTH,
            "axes_dims_rope": (8, 12, 12),
        },
        lambda: (comfy.text_encoders.qwen_image.QwenImageTokenizer, comfy.text_encoders.qwen_image.te()),
        {"qwen25_7b": LLM},
        video_vae=True,
    ),
    "z_image": Kind(
        "ZImage",
        # The modulation of Z-Image is 256 wide, whatever the model is.
        NEXT_DIT
        | {"z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32}
        | {"dim": 256, "n_heads": 4, "n_kv_heads": 4, "axes_dims": [16, 24, 24]},
        lambda: (comfy.text_encoders.z_image.ZImageTokenizer, comfy.text_encoders.z_image.te()),
        {"qwen3_4b": LLM},
    ),
    "lumina2": Kind(
        "Lumina2",
        NEXT_DIT,
        # The tokenizer of Gemma comes with its weights; Qwen's stands in for it, and Lumina's own class reads it.
        lambda: (comfy.text_encoders.z_image.ZImageTokenizer, comfy.text_encoders.z_image.te()),
        {"qwen3_4b": LLM},
    ),
    "chroma": Kind(
        "Chroma",
        {key: FLUX[key] for key in FLUX if key not in ("image_model", "guidance_embed")}
        | {"image_model": "chroma", "in_dim": 64, "out_dim": 64, "hidden_dim": 64, "n_layers": 1}
        | {"in_channels": 64, "out_channels": 64},
        lambda: (comfy.text_encoders.pixart_t5.PixArtTokenizer, comfy.text_encoders.pixart_t5.pixart_te()),
        {"t5xxl": T5},
    ),
    "aura_flow": Kind(
        "AuraFlow",
        {"in_channels": 4, "out_channels": 4, "dim": 64, "n_layers": 2, "n_double_layers": 1, "n_heads": 2}
        | {"global_conddim": 64, "cond_seq_dim": WIDTH, "max_seq": 64},
        lambda: (comfy.text_encoders.aura_t5.AuraT5Tokenizer, comfy.text_encoders.aura_t5.AuraT5Model),
        {"pile_t5xl": T5},
        channels=4,
    ),
    "pixart": Kind(
        "PixArtSigma",
        {"input_size": 8, "in_channels": 4, "hidden_size": 72, "depth": 2, "num_heads": 4, "caption_channels": WIDTH}
        | {"model_max_length": 300, "pe_interpolation": 1, "micro_condition": False, "num_patches": None},
        lambda: (comfy.text_encoders.pixart_t5.PixArtTokenizer, comfy.text_encoders.pixart_t5.pixart_te()),
        {"t5xxl": T5},
        channels=4,
        side=64,
    ),
}


KINDS = {**KINDS, "sd35_t5": replace(KINDS["sd35_t5"], denoiser=KINDS["sd35"].denoiser)}


def build(kind: str, dtype: torch.dtype = torch.float32) -> Sockets:
    """MODEL, CLIP and VAE of a family, made in inference mode, as loader nodes make them."""
    torch.manual_seed(0)
    with torch.inference_mode():
        return Sockets(_model(KINDS[kind], dtype), _clip(KINDS[kind]), _vae(KINDS[kind]))


def filled(module: torch.nn.Module, scale: float = 1.0) -> torch.nn.Module:
    """Random weights in place of memory that nobody has written: ComfyUI's layers do not initialise themselves."""
    for name, value in module.named_parameters():
        if value.ndim > 1:
            torch.nn.init.normal_(value, std=scale * value[0].numel() ** -0.5)
        elif name.endswith(("weight", "scale")):
            torch.nn.init.normal_(value, 1.0, 0.1)
        else:
            torch.nn.init.normal_(value, std=0.1)
    for name, value in module.named_buffers():
        if name == "pos_embed":  # of SD3, which its file brings along
            torch.nn.init.normal_(value, std=0.5)
    return module.eval().requires_grad_(False)


def _model(kind: Kind, dtype: torch.dtype) -> Any:
    description = getattr(comfy.supported_models, kind.description)(dict(kind.denoiser))
    description.set_inference_dtype(dtype, None)
    cpu = torch.device("cpu")
    model = description.get_model({}, device=cpu)
    _steady(filled(model.diffusion_model))
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def _steady(denoiser: torch.nn.Module) -> None:
    """The noise level sways what the blocks do, as in models that were trained, and does not turn it round, which it
    does with random weights: then nothing could be learned for all noise levels at once."""
    for name, value in denoiser.named_parameters():
        if name.endswith(".bias") and any(part in name for part in ("mod", "adaLN", "norm_out.linear")):
            torch.nn.init.normal_(value)
        elif any(part in name for part in ("t_embedder", "time_in", "timestep_embedder", "guidance_in")):
            value.mul_(0.3)


def _clip(kind: Kind) -> Any:
    tokenizer, model = kind.target()
    options = {f"{name}_model_config": dict(config) for name, config in kind.text.items()}
    target = comfy.supported_models_base.ClipTarget(tokenizer, model)
    with patch.object(comfy.text_encoders.qwen_vl, "Qwen2VLVisionTransformer", _NoPictures):
        clip = comfy.sd.CLIP(target, model_options=options | {"dtype": torch.float32}, disable_dynamic=True)
    filled(clip.cond_stage_model)
    return clip


class _NoPictures(torch.nn.Module):
    """In the place of Qwen's vision tower, which is never asked and has 600 million parameters."""

    def __init__(self, **_: Any) -> None:
        super().__init__()


def _vae(kind: Kind) -> Any:
    if kind.video_vae:
        tower = comfy.ldm.wan.vae.WanVAE(
            dim=8, z_dim=16, num_res_blocks=2, temperal_downsample=[False, True, True], conv_out_channels=3
        )
        vae = comfy.sd.VAE(sd=filled(tower).state_dict(), dtype=torch.float32)
        return _as_wide_as_real(vae, vae.first_stage_model.conv1, kind)
    levels = {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    pixels = {"double_z": True, "z_channels": kind.channels, "resolution": 64, "in_channels": 3, "out_ch": 3}
    config = {"params": {"ddconfig": pixels | levels, "embed_dim": kind.channels}}
    logging.disable(logging.WARNING)  # that all weights are missing
    vae = comfy.sd.VAE(sd={}, config=config, dtype=torch.float32)
    logging.disable(logging.NOTSET)
    filled(vae.first_stage_model)
    vae.latent_channels = kind.channels
    return _as_wide_as_real(vae, vae.first_stage_model.quant_conv, kind)


def _as_wide_as_real(vae: Any, last: torch.nn.Module, kind: Kind) -> Any:
    """The autoencoder with latents that vary as those of real ones do, by about 1, where random weights make them so
    small that there is nothing in a picture to learn. `last` is the encoder's last layer."""
    shades = torch.linspace(0, 1, 64)
    down, right = shades[:, None].expand(64, 64), shades.expand(64, 64)
    picture = torch.stack([down, right, 1 - right], dim=-1)
    latents = getattr(comfy.supported_models, kind.description).latent_format().process_in(vae.encode(picture[None]))
    last.bias.zero_()
    last.weight.div_((latents - latents.mean(dim=(-2, -1), keepdim=True)).std())
    return vae
