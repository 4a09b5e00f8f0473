"""SD 1, SD 2 and SDXL in shape, small in width and depth, with the same random weights in diffusers and in ComfyUI.

Import after ComfyUI's arguments are settled (the `comfyui` fixture).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.text_encoders.sd2_clip
import comfy.utils
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from contextual_inversion.core.models.diffusers_adapter import (
    DiffusersModel,
    DiffusersTextEncoder,
    noise_schedule,
)

LAYERS = 3
"""Of every text encoder."""
POOLED = 48


@dataclass(frozen=True)
class Shape:
    """One family. `unet` and `comfy_unet` describe the same UNet to diffusers and to ComfyUI."""

    description: str
    prediction: str
    target: tuple[type, type]
    widths: dict[str, int]
    scaling_factor: float
    unet: dict[str, Any] = field(repr=False)
    comfy_unet: dict[str, Any] = field(repr=False)


SD_UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64, 64, 64),
    "layers_per_block": 1,
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "cross_attention_dim": 32,
}
COMFY_UNET = {
    "image_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "use_checkpoint": False,
    "use_spatial_transformer": True,
    "legacy": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}
COMFY_SD_UNET = COMFY_UNET | {
    "channel_mult": [1, 2, 2, 2],
    "num_res_blocks": [1, 1, 1, 1],
    "transformer_depth": [1, 1, 1, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 0, 0],
    "context_dim": 32,
}
SHAPES = {
    "sd1": Shape(
        "SD15",
        "epsilon",
        (comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
        {"clip_l": 32},
        0.18215,
        SD_UNET | {"attention_head_dim": 4},
        COMFY_SD_UNET | {"use_linear_in_transformer": False, "num_heads": 4, "num_head_channels": -1},
    ),
    "sd2": Shape(
        "SD20",
        "v_prediction",
        (comfy.text_encoders.sd2_clip.SD2Tokenizer, comfy.text_encoders.sd2_clip.SD2ClipModel),
        {"clip_h": 32},
        0.18215,
        SD_UNET | {"attention_head_dim": (2, 4, 4, 4), "use_linear_projection": True, "upcast_attention": True},
        COMFY_SD_UNET | {"use_linear_in_transformer": True, "num_heads": -1, "num_head_channels": 16},
    ),
    "sdxl": Shape(
        "SDXL",
        "epsilon",
        (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel),
        {"clip_l": 32, "clip_g": POOLED},
        0.13025,
        {
            "sample_size": 8,
            "block_out_channels": (32, 64, 64),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 1, 2),
            "attention_head_dim": (2, 4, 4),
            "use_linear_projection": True,
            "cross_attention_dim": 32 + POOLED,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": POOLED + 6 * 256,
        },
        COMFY_UNET
        | {
            "channel_mult": [1, 2, 2],
            "num_res_blocks": [1, 1, 1],
            "transformer_depth": [0, 1, 2],
            "transformer_depth_middle": 2,
            "transformer_depth_output": [0, 0, 1, 1, 2, 2],
            "context_dim": 32 + POOLED,
            "use_linear_in_transformer": True,
            "num_heads": -1,
            "num_head_channels": 16,
            "num_classes": "sequential",
            "adm_in_channels": POOLED + 6 * 256,
        },
    ),
}
VAE_CHANNELS = 32
SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@dataclass
class Sockets:
    """What a loader node hands out."""

    model: Any
    clip: Any
    vae: Any


def build(kind: str, dtype: torch.dtype = torch.float32) -> tuple[DiffusersModel, Sockets]:
    """The same random weights twice; `dtype` is that of ComfyUI's UNet. ComfyUI's are made in inference mode, as its
    loader nodes make them."""
    shape = SHAPES[kind]
    torch.manual_seed(0)
    unet = _attentive(UNet2DConditionModel(**shape.unet))
    vae = _vae(shape.scaling_factor)
    encoders = {name: _transformer(width, name) for name, width in shape.widths.items()}
    with torch.inference_mode():
        sockets = Sockets(_model(shape, unet, dtype), _clip(shape, encoders), _comfy_vae(vae))
    text = [_diffusers_encoder(name, module, kind) for name, module in encoders.items()]
    schedule = noise_schedule(SCHEDULE | {"prediction_type": shape.prediction})
    for module in (unet, vae, *(encoder.module for encoder in text)):
        module.eval().requires_grad_(False)
    return DiffusersModel(unet, vae, text, schedule, name=kind), sockets


def tiny() -> tuple[DiffusersModel, Sockets]:
    """The bundled model in both programs."""
    from contextual_inversion.core.models.tiny import load_tiny
    from contextual_inversion.nodes.comfy import demo_model

    with torch.inference_mode():
        sockets = Sockets(demo_model.load_model_patcher(), demo_model.load_clip(), demo_model.load_vae())
    return DiffusersModel.from_tiny(load_tiny()), sockets


def _attentive(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Queries and keys large enough for attention as uneven as a trained model's.

    Untrained attention is flat to six digits, and C3, a squared difference of its means, would be rounding noise.
    """
    with torch.no_grad():
        for name, value in unet.named_parameters():
            if name.endswith(("attn2.to_q.weight", "attn2.to_k.weight")):
                value *= 4
    return unet


def _vae(scaling_factor: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=[VAE_CHANNELS] * 4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=1,
        latent_channels=4,
        scaling_factor=scaling_factor,
    )


def _comfy_vae(vae: AutoencoderKL) -> Any:
    levels = {"ch": VAE_CHANNELS, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    pixels = {"double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3}
    config = {"params": {"ddconfig": pixels | levels, "embed_dim": 4}}
    return comfy.sd.VAE(sd=dict(vae.state_dict()), config=config, dtype=torch.float32)


def _transformer(width: int, name: str) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(CLIPTextConfig(**_text_config(width, name)))


def _text_config(width: int, name: str) -> dict[str, Any]:
    return {
        "vocab_size": 49408,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "projection_dim": width,
        "hidden_act": "quick_gelu" if name == "clip_l" else "gelu",
        "eos_token_id": 49407,
        "pad_token_id": 49407,
    }


def _diffusers_encoder(name: str, module: CLIPTextModelWithProjection, kind: str) -> DiffusersTextEncoder:
    folder = Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer"
    pad = {} if name == "clip_l" else {"pad_token": "!"}
    tokenizer = CLIPTokenizer.from_pretrained(folder, **pad)
    if kind == "sdxl":
        return DiffusersTextEncoder(name, module, tokenizer, penultimate=True, pooled=name == "clip_g")
    # diffusers ships SD 2's encoder without its last layer, so that the last one there is is the penultimate.
    layers = LAYERS - 1 if kind == "sd2" else LAYERS
    bare = CLIPTextModel(
        CLIPTextConfig(**_text_config(module.config.hidden_size, name) | {"num_hidden_layers": layers})
    )
    state = {key.removeprefix("text_model."): value for key, value in module.state_dict().items()}
    missing = bare.load_state_dict(state, strict=False).missing_keys
    assert not missing
    return DiffusersTextEncoder(name, bare, tokenizer)


def _clip(shape: Shape, encoders: dict[str, CLIPTextModelWithProjection]) -> Any:
    configs = {f"{name}_model_config": _text_config(width, name) for name, width in shape.widths.items()}
    target = comfy.supported_models_base.ClipTarget(*shape.target)
    clip = comfy.sd.CLIP(target, model_options=configs | {"dtype": torch.float32}, disable_dynamic=True)
    for name, module in encoders.items():
        getattr(clip.cond_stage_model, name).transformer.load_state_dict(module.state_dict())
    return clip


def _model(shape: Shape, unet: UNet2DConditionModel, dtype: torch.dtype) -> Any:
    description = getattr(comfy.supported_models, shape.description)(shape.comfy_unet)
    for key in ("num_heads", "num_head_channels"):
        description.unet_config[key] = shape.comfy_unet[key]
    kind = {"epsilon": "EPS", "v_prediction": "V_PREDICTION"}[shape.prediction]
    description.model_type = lambda *_: comfy.model_base.ModelType[kind]
    description.set_inference_dtype(dtype, None)
    model = description.get_model({}, device=torch.device("cpu"))
    names = comfy.utils.unet_to_diffusers(description.unet_config)
    state = {names[key]: value for key, value in unet.state_dict().items()}
    model.diffusion_model.load_state_dict(state)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
