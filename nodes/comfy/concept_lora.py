"""What a concept learned about the weights, in a clone of MODEL and CLIP, and refused where it is for another model."""

from __future__ import annotations

from typing import Any

import comfy.lora
import comfy.sd
import comfy.utils

from ...core.concept import Concept
from ...core.models.lora import DIFF, DIFF_BIAS, DOWN, ENDINGS, UP

MID = ".lora_mid.weight"
"""Of a convolution's LoRA in three parts, whose shapes say less."""


def with_weights(model: Any, clip: Any, concept: Concept, strength_model: float, strength_clip: float) -> Any:
    """Clones of `model` and `clip` with the concept's LoRA or whole changes of weights.

    Raises ValueError, before anything is changed, where a layer is missing or of another shape.
    """
    require_fit(model, clip, concept)
    return comfy.sd.load_lora_for_models(model, clip, dict(concept.lora), strength_model, strength_clip)


def require_fit(model: Any, clip: Any, concept: Concept) -> None:
    """Raises ValueError where a layer that the concept changes is missing or of another shape."""
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    clip_keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    ours = {ending for key in concept.lora for ending in ENDINGS if key.endswith(ending)}
    if ours:
        for stem in sorted({stem_of(key) for key in concept.lora}):
            place = clip.cond_stage_model if stem in clip_keys and stem not in keys else model.model
            _require_fit(concept, stem, {**clip_keys, **keys}.get(stem), place)


def stem_of(key: str) -> str:
    """The layer that a LoRA tensor is about, whichever of its parts the tensor is: a DoRA's scale too."""
    if key.startswith("lora_"):
        return key.partition(".")[0]  # in kohya's names the layer's own dots are underscores
    return next((key.removesuffix(ending) for ending in ENDINGS if key.endswith(ending)), key)


def _require_fit(concept: Concept, stem: str, target: str | None, place: Any) -> None:
    if target is None:
        raise ValueError(
            f"{concept.name!r} changes the layer {stem}, which this model does not have: it was trained on another "
            "kind of model."
        )
    weight = comfy.utils.get_attr(place, target)
    parts = {ending: concept.lora.get(stem + ending) for ending in (DOWN, UP, DIFF, DIFF_BIAS)}
    down, up, diff = parts[DOWN], parts[UP], parts[DIFF]
    fits = diff is None or diff.shape == weight.shape
    if down is not None and up is not None and concept.lora.get(stem + MID) is None:
        fits = up.shape[0] == weight.shape[0] and down[0].numel() == weight[0].numel()
    if not fits:
        raise ValueError(
            f"{concept.name!r} changes the layer {stem} of another model: this one's has the shape "
            f"{tuple(weight.shape)}."
        )
