"""The tiny models in plain numbers.

Nothing heavy is imported, so that any loader can build from it.
"""

from __future__ import annotations

from typing import Any

IMAGE_SIZE = 128
LATENT_SIZE = 16
LATENT_CHANNELS = 16
VOCABULARY = 49408
POSITIONS = 77
WIDTH = 128
"""Width of the text encoder's tokens and outputs, which is the UNet's cross-attention width."""
BOS, EOS = 49406, 49407
"""Start and end of text; the end token pads as well (CLIP-L, SD 1.x)."""

PARTS = ("unet", "text_encoder", "vae", "image_encoder")
"""Weight files `weights/<part>.safetensors` of the model (`judge.safetensors` is `core.inspection.world.checks`'s)."""

VAE: dict[str, Any] = {
    "latent_channels": LATENT_CHANNELS,
    "encoder_block_out_channels": (32, 32, 32, 32),
    "decoder_block_out_channels": (32, 32, 32, 32),
    "num_encoder_blocks": (1, 3, 3, 3),
    "num_decoder_blocks": (3, 3, 3, 1),
    "scaling_factor": 1.0,
}
"""`diffusers.AutoencoderTiny`, TAESD's block counts at half its width. Latents have unit variance: scaling factor 1.
Both models share it."""

SAMPLING: dict[str, Any] = {"steps": 25, "guidance": 3.0, "eta": 1.0}
"""How its pictures are drawn where nothing else is asked for. With noise at every step (`eta` 1), as METHODS.md 2.7
draws, what a caption asks for is there more often (pretraining/README.md has by how much)."""

TEXT_ENCODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": WIDTH,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
}
"""`transformers.CLIPTextModelWithProjection`, CLIP-L's shape made small; the UNet reads the final norm's output."""

IMAGE_ENCODER: dict[str, Any] = {
    "image_size": 64,
    "patch_size": 8,
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": WIDTH,
}
"""`transformers.CLIPVisionModelWithProjection`; pictures are reduced to 64 x 64 and normalised to mean 0.5, std 0.5."""

UNET: dict[str, Any] = {
    "sample_size": LATENT_SIZE,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "block_out_channels": (64, 128),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": (2, 4),
    "cross_attention_dim": WIDTH,
    "norm_num_groups": 32,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
}
"""`diffusers.UNet2DConditionModel`, SD 1.x's block types. diffusers' `attention_head_dim` is the
NUMBER of heads of each level; with 32 channels a head this is `num_head_channels: 32` elsewhere."""

FLOW_PATCH = 2
"""Latents a side of one token of the transformer."""
FLOW_TOKENS = 32
"""Text tokens, start and padding included, that the transformer reads of a prompt; 77 where it is longer."""
FLOW_SHIFT = 1.15
"""Flux.1's mu: sigma = e^mu u / (1 + (e^mu - 1) u)."""
FLOW_STEPS = 10_000
"""Levels of noise in the table of sigmas, as ComfyUI's ModelSamplingFlux has them."""
TRANSFORMER: dict[str, Any] = {
    "in_channels": LATENT_CHANNELS * FLOW_PATCH**2,
    "num_layers": 2,
    "num_single_layers": 5,
    "attention_head_dim": 32,
    "num_attention_heads": 6,
    "joint_attention_dim": WIDTH,
    "pooled_projection_dim": WIDTH,
    "axes_dims_rope": (8, 12, 12),
}
"""`diffusers.FluxTransformer2DModel` on the latents of `VAE`, as tokens of 2 x 2."""

SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
}
"""SD's noise schedule with SD 2.x's prediction target (METHODS.md section 0)."""
