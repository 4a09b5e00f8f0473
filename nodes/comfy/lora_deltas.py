"""A concept's LoRA as what is added to layers while they run, for whatever cannot have it in the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.lora
import comfy.sd
import torch

from ...core.models.lora import TEXT_STEMS, from_lora
from ...core.models.low_rank import Delta
from .attention import diffusers_names
from .concept_lora import stem_of

UNET = "lora_unet_"


def joint_deltas(model: Any, lora: Mapping[str, torch.Tensor]) -> dict[str, Delta]:
    """The deltas of the denoiser in a LoRA by ComfyUI's names of layers. Raises ValueError where it is for another
    model."""
    return from_lora(Denoiser(model), of_denoiser(lora))  # type: ignore[arg-type]


def of_denoiser(lora: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What of a LoRA is not of a text encoder."""
    return {key: value for key, value in lora.items() if not key.startswith(TEXT_STEMS)}


@dataclass(frozen=True)
class Denoiser:
    """As much of a model as `from_lora` asks for."""

    patcher: Any
    text_encoders: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return type(self.patcher.model.model_config).__name__

    @property
    def device(self) -> torch.device:
        return self.patcher.load_device

    def weight_layers(self) -> Mapping[str, torch.nn.Module]:
        parts = self.patcher.model.diffusion_model.named_modules()
        return {name: part for name, part in parts if isinstance(getattr(part, "weight", None), torch.Tensor)}


def known_names(model: Any, lora: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A LoRA under our own names of layers, whichever of the names that ComfyUI knows it has."""
    targets = comfy.lora.model_lora_keys_unet(model.model, {})
    names = diffusers_names(model.model.model_config.unet_config)
    renamed = {}
    for key, value in lora.items():
        stem = stem_of(key)
        module = str(targets.get(stem, "")).removeprefix("diffusion_model.").removesuffix(".weight")
        ours = UNET + names[module].replace(".", "_") if module in names else stem
        renamed[ours + key.removeprefix(stem)] = value
    return renamed


def unet_deltas(model: Any, lora: Mapping[str, torch.Tensor]) -> dict[str, Delta]:
    """The deltas of the UNet in a LoRA. Raises ValueError where it is for another model or of another kind."""
    return from_lora(_Unet(model), of_denoiser(lora))  # type: ignore[arg-type]


class _Unet(Denoiser):
    """A UNet, by diffusers' names of its layers."""

    def weight_layers(self) -> Mapping[str, torch.nn.Module]:
        unet = self.patcher.model.diffusion_model
        names = diffusers_names(self.patcher.model.model_config.unet_config)
        return {names[name]: part for name, part in unet.named_modules() if name in names}


def with_text_lora(clip: Any, lora: Mapping[str, torch.Tensor], strength: float = 1.0) -> Any:
    """`clip` with what the LoRA changes in text encoders."""
    mine = {key: value for key, value in lora.items() if key.startswith(TEXT_STEMS)}
    return comfy.sd.load_lora_for_models(None, clip, mine, 0.0, strength)[1] if mine else clip
