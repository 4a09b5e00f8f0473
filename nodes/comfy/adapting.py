"""The adapter that suits a graph's MODEL: one for Stable Diffusion's UNets, one for every other family."""

from __future__ import annotations

from typing import Any

from .families.facts import family_of
from .family_model import FamilyModel
from .model import ComfyModel


def adapted(model: Any, clip: Any, vae: Any, *, method: str | None = None) -> ComfyModel:
    """MODEL, CLIP and VAE behind the protocol, to be trained by `method` where there is one.

    Raises ValueError that says why, where they cannot be.
    """
    if family_of(model) is None:
        return ComfyModel(model, clip, vae)
    found = FamilyModel(model, clip, vae)
    if method is not None:
        found.require_method(method)
    return found


def with_unet(model: Any, clip: Any, vae: Any) -> ComfyModel:
    """MODEL, CLIP and VAE of Stable Diffusion behind the protocol. Raises ValueError for any other family: a
    tuning-encoder looks with the down-path of a UNet and predicts changes of its cross-attention."""
    family = family_of(model)
    if family is not None:
        raise ValueError(
            f"a tuning-encoder looks with a UNet of Stable Diffusion, and {family.title} has none; use Train Concept "
            'there ("word and LoRA together")'
        )
    return ComfyModel(model, clip, vae)
