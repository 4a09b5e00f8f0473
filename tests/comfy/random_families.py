"""The families beyond Stable Diffusion, made of ComfyUI's own classes, small in width and depth, with random weights.

Import after ComfyUI's arguments are settled (the `comfyui` fixture).
"""

from __future__ import annotations

import io
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
import comfy.text_encoders.hidream
import comfy.text_encoders.hunyuan_image
import comfy.text_encoders.hunyuan_video
import comfy.text_encoders.hydit
import comfy.text_encoders.kandinsky5
import comfy.text_encoders.krea2
import comfy.text_encoders.omnigen2
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
    factor: int = 8
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
    "flux2": Kind(
        "Flux2",
        FLUX
        | {"image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1, "vec_in_dim": None}
        | {"context_in_dim": 3 * WIDTH, "axes_dim": [8, 8, 8, 8], "theta": 2000, "qkv_bias": False, "mlp_ratio": 3.0}
        | {"global_modulation": True, "mlp_silu_act": True, "ops_bias": False, "txt_ids_dims": [3]}
        | {"default_ref_method": "index", "ref_index_scale": 10.0, "guidance_embed": False},
        lambda: (comfy.text_encoders.flux.KleinTokenizer, comfy.text_encoders.flux.klein_te()),
        {"qwen3_4b": LLM | {"num_hidden_layers": 28}},
        channels=128,
        factor=16,
    ),
    "hidream": Kind(
        "HiDream",
        {"patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 1, "num_single_layers": 1}
        | {"attention_head_dim": 32, "num_attention_heads": 2, "caption_channels": [WIDTH, WIDTH], "image_model": None}
        | {"text_emb_dim": 2 * WIDTH, "axes_dims_rope": (16, 8, 8), "llama_layers": [0, 2]},
        lambda: (_HiDreamTokenizer, comfy.text_encoders.hidream.hidream_clip()),
        {"clip_l": CLIP, "clip_g": CLIP, "t5xxl": T5, "llama": LLM},
    ),
    "omnigen2": Kind(
        "Omnigen2",
        {"patch_size": 2, "in_channels": 16, "hidden_size": 64, "num_layers": 2, "num_refiner_layers": 1}
        | {"num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 32, "axes_dim_rope": (8, 12, 12)}
        | {"text_feat_dim": WIDTH, "timestep_scale": 1000.0},
        lambda: (comfy.text_encoders.omnigen2.Omnigen2Tokenizer, comfy.text_encoders.omnigen2.te()),
        {"qwen25_3b": LLM},
    ),
    "kandinsky5": Kind(
        "Kandinsky5Image",
        {"in_text_dim": WIDTH, "in_text_dim2": WIDTH, "time_dim": 32, "model_dim": 64, "ff_dim": 128}
        | {"visual_embed_dim": 64, "num_text_blocks": 1, "num_visual_blocks": 2, "axes_dims": (8, 12, 12)}
        | {"rope_scale_factor": (1.0, 1.0, 1.0)},
        lambda: (comfy.text_encoders.kandinsky5.Kandinsky5TokenizerImage, comfy.text_encoders.kandinsky5.te()),
        {"qwen25_7b": LLM, "clip_l": CLIP},
    ),
    "hunyuan_image": Kind(
        "HunyuanImage21",
        {"image_model": "hunyuan_video", "in_channels": 64, "out_channels": 64, "vec_in_dim": None, "theta": 256}
        | {"context_in_dim": WIDTH, "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1}
        | {"depth_single_blocks": 1, "axes_dim": [16, 16], "patch_size": [1, 1], "qkv_bias": True}
        | {"guidance_embed": False, "byt5": False, "meanflow": False, "use_cond_type_embedding": False}
        | {"vision_in_dim": None, "meanflow_sum": False},
        lambda: (
            comfy.text_encoders.hunyuan_image.HunyuanImageTokenizer,
            comfy.text_encoders.hunyuan_image.te(byt5=False),
        ),
        {"qwen25_7b": LLM | {"num_hidden_layers": 4}},
        channels=64,
        factor=32,
    ),
    "wan": Kind(
        "WAN21_T2V",
        {"model_type": "t2v", "text_len": 512, "in_dim": 16, "out_dim": 16, "dim": 64, "ffn_dim": 128}
        | {"freq_dim": 32, "text_dim": WIDTH, "num_heads": 2, "num_layers": 2},
        # The tokenizer of UMT5 comes with its weights; T5's stands in for it.
        lambda: (comfy.text_encoders.pixart_t5.PixArtTokenizer, comfy.text_encoders.pixart_t5.pixart_te()),
        {"t5xxl": T5},
        video_vae=True,
    ),
    "krea2": Kind(
        "Krea2",
        {"features": 64, "tdim": 32, "txtdim": WIDTH, "heads": 2, "kvheads": 1, "multiplier": 2, "layers": 2}
        | {"txtlayers": 12, "txtheads": 2, "txtkvheads": 2},
        lambda: (comfy.text_encoders.krea2.Krea2Tokenizer, comfy.text_encoders.krea2.te()),
        {"qwen3vl_4b": LLM | {"num_hidden_layers": 36}},
        video_vae=True,
    ),
    "hunyuan_dit": Kind(
        "HunyuanDiT",
        {"image_model": "hydit", "input_size": 16, "hidden_size": 64, "depth": 4, "num_heads": 2, "mlp_ratio": 2.0}
        | {"text_states_dim": WIDTH, "text_states_dim_t5": WIDTH, "size_cond": False},
        lambda: (comfy.text_encoders.hydit.HyditTokenizer, comfy.text_encoders.hydit.HyditModel),
        {"hydit_clip": CLIP, "mt5xl": T5},
        channels=4,
    ),
}
SENTENCES = (
    "a photo of a red castle in the snow, and a dog beside the house in a jar",
    "the quick brown fox jumps over the lazy dog; a blue cat at sea under the green tree",
    "a castle, a dog and a red house in the deep snow",
)
"""What a SentencePiece tokenizer is made of, in place of those that come with weights."""


def _pieces() -> torch.Tensor:
    """A SentencePiece model of a few words, as files of weights hold it."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        vocab_size=90,
        hard_vocab_limit=False,
        user_defined_symbols=["\u2581dog", "\u2581house", "\u2581castle"],
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return torch.frombuffer(bytearray(model.getvalue()), dtype=torch.uint8)


class _HiDreamTokenizer(comfy.text_encoders.hidream.HiDreamTokenizer):
    """Qwen's tokenizer, as far as its ids go, in place of Llama's, whose file is not in every copy of ComfyUI."""

    def __init__(self, **options: Any) -> None:
        with patch.object(comfy.text_encoders.hunyuan_video, "LLAMA3Tokenizer", lambda **_: None):
            super().__init__(**options)
        self.llama = comfy.text_encoders.omnigen2.Qwen25_3BTokenizer(**options)
        self.llama.embedding_key, self.llama.embedding_size = "llama", WIDTH
        self.llama.pad_token, self.llama.min_length = 128009, 128


KINDS = {**KINDS, "sd35_t5": replace(KINDS["sd35_t5"], denoiser=KINDS["sd35"].denoiser)}


def build(kind: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Sockets:
    """MODEL, CLIP and VAE of a family, made in inference mode, as loader nodes make them; `changes` are of the
    denoiser's numbers."""
    torch.manual_seed(0)
    with torch.inference_mode():
        return Sockets(_model(KINDS[kind], dtype, changes), _clip(KINDS[kind]), _vae(KINDS[kind]))


def filled(module: torch.nn.Module, scale: float = 1.0) -> torch.nn.Module:
    """Random weights in place of memory that nobody has written: ComfyUI's layers do not initialise themselves."""
    for name, value in module.named_parameters():
        drawn = torch.empty(value.shape)  # 8 bits cannot be drawn
        if value.ndim > 1:
            torch.nn.init.normal_(drawn, std=scale * value[0].numel() ** -0.5)
        elif name.endswith(("weight", "scale")):
            torch.nn.init.normal_(drawn, 1.0, 0.1)
        else:
            torch.nn.init.normal_(drawn, std=0.1)
        value.copy_(drawn)
    for name, value in module.named_buffers():
        if name == "pos_embed":  # of SD3, which its file brings along
            torch.nn.init.normal_(value, std=0.5)
    return module.eval().requires_grad_(False)


def _model(kind: Kind, dtype: torch.dtype, changes: Mapping[str, Any]) -> Any:
    description = getattr(comfy.supported_models, kind.description)({**kind.denoiser, **changes})
    description.set_inference_dtype(dtype, torch.bfloat16 if dtype.itemsize == 1 else None)
    cpu = torch.device("cpu")
    model = description.get_model({}, device=cpu)
    _steady(filled(model.diffusion_model))
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def _steady(denoiser: torch.nn.Module) -> None:
    """The noise level sways what the blocks do, as in models that were trained, and does not turn it round, which it
    does with random weights: then nothing could be learned for all noise levels at once. Where the modulation has no
    biases (AuraFlow) it stays as it is, or it would fall silent."""
    named = dict(denoiser.named_parameters())
    biases = [n for n in named if n.endswith(".bias") and any(p in n for p in ("mod", "adaLN", "norm_out.linear"))]
    for name in biases:
        named[name].copy_(torch.randn(named[name].shape))
    for name, value in named.items() if biases else ():
        if any(part in name for part in ("t_embedder", "time_in", "timestep_embedder", "guidance_in")):
            value.copy_(value.float() * 0.3)


def _clip(kind: Kind) -> Any:
    tokenizer, model = kind.target()
    options = {f"{name}_model_config": dict(config) for name, config in kind.text.items()}
    target = comfy.supported_models_base.ClipTarget(tokenizer, model)
    data = {"mt5xl.spiece_model": _pieces()} if "mt5xl" in kind.text else {}
    with patch.object(comfy.text_encoders.qwen_vl, "Qwen2VLVisionTransformer", _NoPictures):
        clip = comfy.sd.CLIP(
            target, model_options=options | {"dtype": torch.float32}, tokenizer_data=data, disable_dynamic=True
        )
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
    halvings = kind.factor.bit_length() - 1
    levels = {"ch": 32, "ch_mult": [1] * (1 + halvings), "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    pixels = {"double_z": True, "z_channels": kind.channels, "resolution": 64, "in_channels": 3, "out_ch": 3}
    config = {"params": {"ddconfig": pixels | levels, "embed_dim": kind.channels}}
    logging.disable(logging.WARNING)  # that all weights are missing
    vae = comfy.sd.VAE(sd={}, config=config, dtype=torch.float32)
    logging.disable(logging.NOTSET)
    filled(vae.first_stage_model)
    vae.latent_channels = kind.channels
    vae.downscale_ratio = vae.upscale_ratio = kind.factor
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
