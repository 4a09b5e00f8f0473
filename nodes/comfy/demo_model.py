"""The bundled tiny models as MODEL, CLIP and VAE, built from ComfyUI's own classes, so that every stock node takes it.

Its weight files have diffusers' and transformers' layouts (`core.models.tiny`); this module renames the keys to
ComfyUI's and nothing else, so both programs compute the same picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


class TinyLatents(comfy.latent_formats.LatentFormat):
    """The latents of both tiny models."""

    latent_channels = config.LATENT_CHANNELS


class TinyStableDiffusion(comfy.supported_models_base.BASE):
    """ComfyUI's description of the tiny model: SD 1.x's shape, v-prediction, latents of unit variance."""

    unet_extra_config: ClassVar = {"num_heads": -1, "num_head_channels": HEAD_CHANNELS}
    sampling_settings: ClassVar = {
        "timesteps": config.SCHEDULER["num_train_timesteps"],
        "linear_start": config.SCHEDULER["beta_start"],
        "linear_end": config.SCHEDULER["beta_end"],
    }
    supported_inference_dtypes: ClassVar = [torch.float32]
    latent_format = TinyLatents
    memory_usage_factor = 1.0

    def model_type(self, state_dict: Mapping[str, torch.Tensor], prefix: str = "") -> comfy.model_base.ModelType:
        return comfy.model_base.ModelType.V_PREDICTION

    def inpaint_model(self) -> bool:
        """Never, though ComfyUI takes every UNet that reads more than four channels for one that inpaints."""
        return False


class TinyFlow(comfy.supported_models_base.BASE):
    """ComfyUI's description of the tiny flow matching model: Flux.1's shape, latents of unit variance."""

    unet_extra_config: ClassVar = {}
    sampling_settings: ClassVar = {"shift": config.FLOW_SHIFT}
    latent_format = TinyLatents
    supported_inference_dtypes: ClassVar = [torch.float32]
    memory_usage_factor = 1.0

    def get_model(
        self, state_dict: Mapping[str, torch.Tensor], prefix: str = "", device: Any = None
    ) -> comfy.model_base.BaseModel:
        return comfy.model_base.Flux(self, device=device)


class TinyFlowClip(comfy.sd1_clip.SD1ClipModel):
    """The tiny text encoder, of which the transformer is given the first positions and not all 77: joint attention
    would spend more on padding than on the picture. What it says of a whole prompt is projected, as in SDXL."""

    def __init__(self, **options: Any) -> None:
        super().__init__(clip_model=comfy.sd1_clip.SDClipModel, **options)

    def encode_token_weights(self, token_weight_pairs: Mapping[str, Any]) -> Any:
        cond, *rest = super().encode_token_weights(token_weight_pairs)
        (tokens, *more) = token_weight_pairs["l"]
        ends = [at for at, pair in enumerate(tokens) if isinstance(pair[0], int) and pair[0] == config.EOS]
        if more or not ends or ends[0] >= config.FLOW_TOKENS:
            return cond, *rest
        return cond[:, : config.FLOW_TOKENS], *rest


def flow_config() -> dict[str, Any]:
    """`config.TRANSFORMER` in the words of ComfyUI's Flux."""
    numbers = config.TRANSFORMER
    width = numbers["attention_head_dim"] * numbers["num_attention_heads"]
    return {
        "image_model": "flux",
        "in_channels": config.LATENT_CHANNELS,
        "out_channels": config.LATENT_CHANNELS,
        "patch_size": config.FLOW_PATCH,
        "vec_in_dim": numbers["pooled_projection_dim"],
        "context_in_dim": numbers["joint_attention_dim"],
        "hidden_size": width,
        "mlp_ratio": 4.0,
        "num_heads": numbers["num_attention_heads"],
        "depth": numbers["num_layers"],
        "depth_single_blocks": numbers["num_single_layers"],
        "axes_dim": list(numbers["axes_dims_rope"]),
        "theta": 10_000,
        "qkv_bias": True,
        "guidance_embed": False,
        "txt_ids_dims": [],
    }


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
    names = comfy.utils.unet_to_diffusers(unet_config())
    tensors = {names[key]: value for key, value in read_weights("unet").items()}
    patcher = _patcher(TinyStableDiffusion(unet_config()), tensors, disable_dynamic)
    patcher.cached_patcher_init = (load_model_patcher, ())
    return patcher


def load_flow_patcher(disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The tiny flow matching transformer as a MODEL."""
    patcher = _patcher(TinyFlow(flow_config()), flow_tensors(read_weights("transformer")), disable_dynamic)
    patcher.cached_patcher_init = (load_flow_patcher, ())
    return patcher


def flow_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a `diffusers.FluxTransformer2DModel` under ComfyUI's names, some of which hold several of them."""
    parts: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for key, place in comfy.utils.flux_to_diffusers(flow_config()).items():
        if key not in tensors:
            continue
        name, slot, *change = (place, None) if isinstance(place, str) else place
        value = change[0](tensors[key]) if change else tensors[key]
        # A slot is an axis, a start and a length.
        parts.setdefault(name, []).append((slot[1] if slot else 0, value))
    return {
        name: torch.cat([value for _, value in sorted(rows, key=lambda row: row[0])]) for name, rows in parts.items()
    }


def _patcher(
    description: comfy.supported_models_base.BASE, tensors: Mapping[str, torch.Tensor], disable_dynamic: bool
) -> comfy.model_patcher.ModelPatcher:
    # 12 MB are not worth a rounded weight on any device.
    description.set_inference_dtype(torch.float32, None)
    device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    model = description.get_model({}, device=offload_device)
    load_exactly(model.diffusion_model, tensors)
    return _patcher_class(disable_dynamic)(model, load_device=device, offload_device=offload_device)


def load_clip(disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """The tiny text encoder behind the stock CLIP tokenizer as a CLIP."""
    return _clip(comfy.sd1_clip.SD1ClipModel, _load_clip_patcher, disable_dynamic)


def load_flow_clip(disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """The same for the tiny flow matching model."""
    return _clip(TinyFlowClip, _load_flow_clip_patcher, disable_dynamic)


def _clip(model: type, again: Callable[..., comfy.model_patcher.ModelPatcher], disable_dynamic: bool) -> comfy.sd.CLIP:
    shape = {key: value for key, value in config.TEXT_ENCODER.items() if key not in ("vocab_size", "projection_dim")}
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, model)
    clip = comfy.sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        model_options={"clip_l_model_config": shape, "dtype": torch.float32},
        disable_dynamic=disable_dynamic,
    )
    load_exactly(clip.cond_stage_model.clip_l.transformer, read_weights("text_encoder"))
    clip.patcher.cached_patcher_init = (again, ())
    return clip


def load_vae() -> comfy.sd.VAE:
    """The tiny autoencoder, which both models share, as a VAE, inside ComfyUI's TAESD."""
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


def _load_flow_clip_patcher(disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    return load_flow_clip(disable_dynamic).patcher


def _load_vae_patcher(disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    return load_vae().patcher
