"""What predicting and tuning one word takes of a GPU's memory at Stable Diffusion 1.5's true size, counted without one.

Every part is made on PyTorch's meta device, which has shapes and no numbers, and a tuning step's forward pass runs
there while autograd's own hooks count what it keeps for the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ...core.models.diffusers_flexible import flexible
from ...core.models.dual_path import DualPath, paths_in
from ...core.models.low_rank import LowRankDelta, apply_deltas
from ...core.models.protocol import Conditioning
from ...core.networks.hypernetwork import targets_of
from ...core.networks.tuning_encoder import PRESETS, Identity, Shape, TuningEncoder

BATCH, SIDE, CONTEXT, RANK, HEADS = 4, 64, 768, 4, 8
MAPS = (*[320] * 4, *[640] * 3, *[1280] * 6)
"""Channels of SD 1.5's down-path residuals and middle (METHODS.md 3.2)."""
CLIP_H_WEIGHTS, CLIP_L_WEIGHTS, VAE_WEIGHTS = 632_076_800, 123_060_480, 83_653_863
"""Weights of OpenCLIP ViT-H/14's image tower, CLIP-L's text encoder and SD 1.x's autoencoder, as published."""
LIMIT_GB = 12.0
SD15: dict[str, Any] = {
    "sample_size": SIDE,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": CONTEXT,
    "attention_head_dim": HEADS,
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
}


def tuning_memory(*, gradient_checkpointing: bool = True, two_paths: bool = False) -> dict[str, float]:
    """GB by part for 12 tuning steps at batch 4 and 512 px in half precision, and their sum.

    The largest kept activation counts twice: the backward pass holds its gradient beside it.
    """
    unet = sd15_unet()
    shape = sd15_shape(unet)
    with torch.device("meta"):
        encoder = TuningEncoder(Identity("sd15", "", {}, ""), shape)
    kept, largest, factors = _kept(unet, shape, gradient_checkpointing, two_paths)
    weights = sum(value.numel() for value in unet.parameters())
    parts = {
        "unet": weights * 2,
        "text_encoder": CLIP_L_WEIGHTS * 2,
        "autoencoder": VAE_WEIGHTS * 2,
        "image_encoder": CLIP_H_WEIGHTS * 2,
        "tuning_encoder": encoder.numbers * 4,
        "lora_gradient_and_adam": factors * 4 * 4,
        "kept_for_backward": kept,
        "largest_gradient": largest,
    }
    found = {name: value / 1e9 for name, value in parts.items()}
    return {**found, "total": sum(found.values()), "limit": LIMIT_GB}


def tuning_memory_figures() -> dict[str, float]:
    """Keys for `bench`."""
    return {
        f"sd15_tuning{paths}{kept}_gb": tuning_memory(gradient_checkpointing=bool(kept), two_paths=bool(paths))["total"]
        for paths in ("", "_dual")
        for kept in ("", "_checkpointed")
    }


def sd15_shape(unet: Any = None) -> Shape:
    """A tuning-encoder's for Stable Diffusion 1.5, with the paper's image encoder."""
    layers = linear_layers(unet or sd15_unet())
    return Shape(1280, 17, MAPS, targets_of(layers), {"clip_l": CONTEXT}, PRESETS["sd"])


def _kept(unet: Any, shape: Shape, checkpointing: bool, two_paths: bool) -> tuple[int, int, int]:
    """Bytes that a step keeps for its backward pass, the largest piece, and how many numbers are tuned."""
    own = {value.untyped_storage()._cdata for value in unet.parameters()}
    seen: dict[int, Any] = {}

    def note(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in own and not probabilities(value):
            seen[storage._cdata] = storage  # held, so that its address is not given to another
        return value

    def factor(*size: int) -> torch.Tensor:
        return torch.zeros(size, device="meta", requires_grad=True)

    deltas = {name: LowRankDelta(factor(a, RANK), factor(RANK, b)) for name, (a, b) in shape.targets.items()}
    if checkpointing:
        unet.enable_gradient_checkpointing()
        unet.train()
    context = torch.zeros(BATCH, 77, CONTEXT, device="meta", dtype=torch.float16, requires_grad=True)
    latents = torch.zeros(BATCH, 4, SIDE, SIDE, device="meta", dtype=torch.float16)
    with ExitStack() as stack:
        if two_paths:
            crosses = [name for name, _ in unet.named_modules() if name.endswith(".attn2")]
            stack.enter_context(flexible(unet))
            stack.enter_context(paths_in(linear_layers(unet), crosses, DualPath(Conditioning(context), deltas)))
        else:
            stack.enter_context(apply_deltas(_Layers(unet), deltas))
        stack.enter_context(half_attention())
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(note, lambda value: value))
        unet(
            latents, torch.zeros(BATCH, device="meta"), encoder_hidden_states=context.detach() if two_paths else context
        )
    sizes = [storage.nbytes() for storage in seen.values()]
    return sum(sizes), max(sizes), sum(one.a.numel() + one.b.numel() for one in deltas.values())


@contextmanager
def half_attention() -> Iterator[None]:
    """Unfused attention computes in half precision as well, as ComfyUI has it and as fused attention looks outside."""
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def probabilities(value: torch.Tensor) -> bool:
    """Whether these are attention probabilities: a GPU's fused attention keeps none of them, the meta device's does."""
    pixels = {SIDE**2 // 4**level for level in range(4)}
    heads = value.ndim >= 3 and value.shape[-3] in range(HEADS, 2 * BATCH * HEADS + 1, HEADS)  # no map is as narrow
    return heads and value.shape[-2] in pixels and value.shape[-1] in {*pixels, 77}


class _Layers:
    """As much of a model as `apply_deltas` asks for."""

    name = "sd15"

    def __init__(self, unet: Any) -> None:
        self.unet = unet

    def linear_layers(self) -> dict[str, torch.nn.Module]:
        return linear_layers(self.unet)


def linear_layers(unet: Any) -> dict[str, torch.nn.Module]:
    """By name."""
    return {name: part for name, part in unet.named_modules() if isinstance(part, torch.nn.Linear)}


def sd15_unet() -> Any:
    """Stable Diffusion 1.5's in half precision, without numbers."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        # As a plain module: diffusers warns of parts that ought to stay in float32, and these have no numbers at all.
        return torch.nn.Module.to(UNet2DConditionModel(**SD15), torch.float16).requires_grad_(False)
