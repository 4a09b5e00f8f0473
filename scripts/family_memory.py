"""Counts the bytes that a training takes, from ComfyUI's own classes on the meta device: docs/models.md, "Memory".

512 px, batch 1, `gradient_checkpointing`, word and LoRA together: rank 8, the word in the largest text encoder. Prints
the table in Markdown. GB are 10^9 bytes.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from find_comfyui import find_comfyui

GB, HALF, SINGLE, RANK = 1e9, 2, 4, 8
ROOM = 3 * 2**30 / GB
"""What has to be left beside the weights, or text encoders are streamed (nodes/comfy/weights.py)."""


@dataclass(frozen=True)
class Large:
    """A model of its real size: ComfyUI's description, the denoiser's numbers, its text encoders, bytes of a stored
    number, image and text tokens of a picture of 512 pixels, and the device that it is meant for, in GB."""

    title: str
    description: str
    denoiser: Mapping[str, Any]
    text: Callable[[], Any]
    stored: int
    image: int
    tokens: int
    device: int


FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 768,
    "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19,
    "depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True, "guidance_embed": True,
    "txt_ids_dims": [],
}  # fmt: skip
QWEN = {
    "image_model": "qwen_image", "patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 60,
    "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 3584, "axes_dims_rope": (16, 56, 56),
}  # fmt: skip
Z_IMAGE = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 3840, "n_layers": 30, "n_refiner_layers": 2,
    "n_heads": 30, "n_kv_heads": 30, "qk_norm": True, "cap_feat_dim": 2560, "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512], "multiple_of": 256, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True,
    "time_scale": 1000.0, "pad_tokens_multiple": 32,
}  # fmt: skip


def sd35(depth: int, dual: range) -> dict[str, Any]:
    return {
        "in_channels": 16, "patch_size": 2, "input_size": None, "num_patches": 384 * 384, "depth": depth,
        "pos_embed_scaling_factor": None, "pos_embed_max_size": 384, "adm_in_channels": 2048, "qk_norm": "rms",
        "context_embedder_config": {
            "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 64 * depth},
        },
        "x_block_self_attn_layers": list(dual),
    }  # fmt: skip


def models() -> list[Large]:
    """Those of the table."""
    from comfy.text_encoders import flux, qwen_image, sd3_clip, z_image

    three = sd3_clip.sd3_clip(clip_l=True, clip_g=True, t5=True)
    return [
        Large("SD3.5 medium, bf16", "SD3", sd35(24, range(13)), lambda: three, 2, 1024, 231, 16),
        Large("SD3.5 large, fp8", "SD3", sd35(38, range(0)), lambda: three, 1, 1024, 231, 24),
        Large("Flux.1-dev, fp8", "Flux", FLUX, flux.flux_clip, 1, 1024, 256, 24),
        Large("Qwen-Image, fp8", "QwenImage", QWEN, qwen_image.te, 1, 1024, 64, 24),
        Large("Z-Image, bf16", "ZImage", Z_IMAGE, z_image.te, 2, 1024, 64, 16),
        Large("Z-Image, fp8", "ZImage", Z_IMAGE, z_image.te, 1, 1024, 64, 16),
    ]


def denoiser_of(large: Large) -> Any:
    import comfy.supported_models

    description = getattr(comfy.supported_models, large.description)(dict(large.denoiser))
    description.set_inference_dtype(torch.bfloat16, None)
    return description.get_model({}, device=torch.device("meta"))


def text_of(large: Large) -> torch.nn.Module:
    return large.text()(device="meta", dtype=torch.bfloat16)


def counted(base: Any, text: torch.nn.Module, large: Large) -> dict[str, float]:
    """Every line of the table, in GB."""
    from contextual_inversion.nodes.comfy.families.blocks import lists_of_blocks
    from contextual_inversion.nodes.comfy.families.facts import FAMILIES

    family, unet = FAMILIES[type(base).__name__], base.diffusion_model
    blocks = lists_of_blocks(unet, family.blocks)
    tokens = large.image + large.tokens
    weights, encoders = large.stored * numbers(unet) / GB, large.stored * numbers(text) / GB
    least = streamed(text, large.stored)
    fits = weights + encoders + ROOM <= large.device * 2**30 / GB
    again = max(numbers(block) for block in blocks) * (HALF if large.stored == 1 else 0)
    learned = sum(RANK * (part.in_features + part.out_features) for block in blocks for part in attending(block))
    lines = {
        "denoiser": weights,
        "text encoders on the device": encoders if fits else least,
        "inputs of all blocks, bf16, twice": 2 * HALF * tokens * sum(width_of(block) for block in blocks) / GB,
        "one block again: its weights": again / GB,
        "one block again: what it keeps": HALF * max(kept(block, tokens) for block in blocks) / GB,
        "one layer of a text encoder in float32": SINGLE * max(numbers(layer) for layer in text_layers(text)) / GB,
        "LoRA, its gradient, Adam's two, and the copies that undo a step": 7 * SINGLE * learned / GB,
    }
    return {**lines, "**together**": sum(lines.values()), "text encoders whole": encoders}


def numbers(module: torch.nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def linears(module: torch.nn.Module) -> list[Any]:
    return [part for part in module.modules() if hasattr(part, "in_features")]


def attending(block: torch.nn.Module) -> list[Any]:
    """What a LoRA learns of a block, as the adapter finds it."""
    names = [(name, part) for name, part in block.named_modules() if hasattr(part, "in_features")]
    return [part for name, part in names if "attn" in name or "attention" in name or name in ("linear1", "linear2")]


def width_of(block: torch.nn.Module) -> int:
    return attending(block)[0].in_features


def kept(block: torch.nn.Module, tokens: int) -> int:
    """Numbers that autograd keeps of a block, roughly: what goes into each linear layer and what comes out."""
    return tokens * sum(part.in_features + part.out_features for part in linears(block))


def text_layers(text: torch.nn.Module) -> list[torch.nn.Module]:
    lists = [part for part in text.modules() if isinstance(part, torch.nn.ModuleList)]
    return [layer for one in lists for layer in one]


def streamed(text: torch.nn.Module, stored: int) -> float:
    """GB on the device where blocks of text encoders come one after another: the largest one."""
    return stored * max(numbers(layer) for layer in text_layers(text)) / GB


def table() -> str:
    """The table in Markdown."""
    found = {large.title: counted(denoiser_of(large), text_of(large), large) for large in models()}
    lines = ["| GB | " + " | ".join(found) + " |", "| --- |" + " --- |" * len(found)]
    for name in next(iter(found.values())):
        figures = [f"{one[name]:.1f}" for one in found.values()]
        lines.append(f"| {name} | " + " | ".join(f"**{x}**" if "*" in name else x for x in figures) + " |")
    lines.append("| meant for a device of | " + " | ".join(str(large.device) for large in models()) + " |")
    return "\n".join(lines)


def start_comfyui() -> None:
    """ComfyUI's modules, importable."""
    comfyui = find_comfyui()
    if comfyui is None:
        raise SystemExit("No ComfyUI: set COMFYUI_PATH")
    sys.path.insert(0, str(comfyui))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = True


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parent))
    start_comfyui()
    print(table())
