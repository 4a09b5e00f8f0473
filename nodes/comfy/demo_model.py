"""The bundled tiny model as MODEL, CLIP and VAE, built from ComfyUI's own classes, so that every stock node takes it.

Its weight files have diffusers' and transformers' layouts (`core.models.tiny`); this module renames the keys to
ComfyUI's and nothing else, so both programs compute the same picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch

from ...core.models.tiny import config
from ...core.models.tiny.weights import read_weights

TAESD_WIDTH = 64
"""Channels of ComfyUI's TAESD class, which knows no other width."""
HEAD_CHANNELS = config.UNET["block_out_channels"][0] // config.UNET["attention_head_dim"][0]
"""Channels of an attention head, the same at every level; what diffusers calls so counts the heads."""


class TinyStableDiffusion(comfy.supported_models_base.BASE):
    """ComfyUI's description of the tiny model: SD 1.x's shape, v-prediction, latents of unit variance."""

    unet_extra_config: ClassVar = {"num_heads": -1, "num_head_channels": HEAD_CHANNELS}
    sampling_settings: ClassVar = {
        "timesteps": config.SCHEDULER["num_train_timesteps"],
        "linear_start": config.SCHEDULER["beta_start"],
        "linear_end": config.SCHEDULER["beta_end"],
    }
    supported_inference_dtypes: ClassVar = [torch.float32]
    latent_format = comfy.latent_formats.LatentFormat
    memory_usage_factor = 1.0

    def model_type(self, state_dict: Mapping[str, torch.Tensor], prefix: str = "") -> comfy.model_base.ModelType:
        return comfy.model_base.ModelType.V_PREDICTION


def unet_config() -> dict[str, Any]:
    """`config.UNET` in the words of ComfyUI's UNetModel."""
    channels = config.UNET["block_out_channels"]
    layers, levels = config.UNET["layers_per_block"], len(channels)
    return {
        "image_size": config.LATENT_SIZE,
        "in_channels": config.LATENT_CHANNELS,
        "out_channels": config.LATENT_CHANNELS,
        "model_channels": channels[0],
        "channel_mult": [width // channels[0] for width in channels],
        "num_res_blocks": [layers] * levels,
        "transformer_depth": [1] * layers * levels,
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1] * (layers + 1) * levels,
        "context_dim": config.WIDTH,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        "adm_in_channels": None,
        "use_checkpoint": False,
        "legacy": False,
    }


def load_model_patcher(disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The tiny UNet as a MODEL."""
    description = TinyStableDiffusion(unet_config())
    # 12 MB are not worth a rounded weight on any device.
    description.set_inference_dtype(torch.float32, None)
    device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    model = description.get_model({}, device=offload_device)
    names = comfy.utils.unet_to_diffusers(unet_config())
    load_exactly(model.diffusion_model, {names[key]: value for key, value in read_weights("unet").items()})
    patcher = _patcher_class(disable_dynamic)(model, load_device=device, offload_device=offload_device)
    patcher.cached_patcher_init = (load_model_patcher, ())
    return patcher


def load_clip(disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """The tiny text encoder behind the stock CLIP tokenizer as a CLIP."""
    shape = {key: value for key, value in config.TEXT_ENCODER.items() if key not in ("vocab_size", "projection_dim")}
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
    clip = comfy.sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        model_options={"clip_l_model_config": shape, "dtype": torch.float32},
        disable_dynamic=disable_dynamic,
    )
    load_exactly(clip.cond_stage_model.clip_l.transformer, read_weights("text_encoder"))
    clip.patcher.cached_patcher_init = (_load_clip_patcher, ())
    return clip


def load_vae() -> comfy.sd.VAE:
    """The tiny autoencoder as a VAE, inside ComfyUI's TAESD."""
    tensors = taesd_tensors(read_weights("vae"))
    tensors["vae_scale"] = torch.tensor(1 / config.VAE["scaling_factor"])
    tensors["vae_shift"] = torch.tensor(0.0)
    vae = comfy.sd.VAE(sd=tensors, dtype=torch.float32)
    vae.patcher.cached_patcher_init = (_load_vae_patcher, ())
    return vae


def taesd_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`diffusers.AutoencoderTiny` weights of any width up to 64 for ComfyUI's TAESD, which is 64 channels wide.

    The missing channels are filled with zeros. They stay zero through every convolution and ReLU and reach nothing, so
    the function is exactly that of the narrow network and the class can remain ComfyUI's own.
    """
    padded = {}
    for key, value in tensors.items():
        half, _, rest = key.partition(".layers.")
        layer, _, rest = rest.partition(".")
        # diffusers clamps latents in the decoder's forward, TAESD in a layer of its own.
        index = int(layer) + (half == "decoder")
        padded[f"taesd_{half}.{index}.{rest}"] = _widened(value)
    return padded


def _widened(value: torch.Tensor) -> torch.Tensor:
    narrow = config.VAE["encoder_block_out_channels"][0]
    shape = [TAESD_WIDTH if axis < 2 and size == narrow else size for axis, size in enumerate(value.shape)]
    wide = value.new_zeros(shape)
    wide[tuple(slice(size) for size in value.shape)] = value
    return wide


def load_exactly(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load a state dict of which every tensor must have its place; raises RuntimeError naming what does not fit."""
    result = module.load_state_dict(tensors, strict=False)
    if result.missing_keys or result.unexpected_keys:
        raise RuntimeError(
            f"the bundled weights do not fit {type(module).__name__}: "
            f"missing {result.missing_keys[:3]}, left over {result.unexpected_keys[:3]}"
        )


def _patcher_class(disable_dynamic: bool) -> type[comfy.model_patcher.ModelPatcher]:
    return comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher


def _load_clip_patcher(disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    return load_clip(disable_dynamic).patcher


def _load_vae_patcher(disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    return load_vae().patcher
