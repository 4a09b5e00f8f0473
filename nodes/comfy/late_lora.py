"""A concept's LoRA that acts from a point of the sampling on: until there the word alone lays the picture out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from comfy.patcher_extension import WrappersMP

from ...core.concept import Concept
from ...core.models.low_rank import Delta, DeltaHook, hooked
from .attention import diffusers_names
from .concept_lora import require_fit
from .families.facts import family_of
from .lora_deltas import joint_deltas, known_names, unet_deltas, with_text_lora

KEY = "contextual_inversion_late_lora"


def with_late_weights(
    model: Any, clip: Any, concept: Concept, strength_model: float, strength_clip: float, start_percent: float
) -> tuple[Any, Any]:
    """Clones of `model`, with the concept's LoRA from `start_percent` of the sampling on, and of `clip`, with its part
    for text encoders, which acts all the time.

    Raises ValueError, before anything is changed, where it is for another model or of a kind that cannot be added while
    a layer runs.
    """
    require_fit(model, clip, concept)
    joint = family_of(model) is not None
    lora = dict(concept.lora or {}) if joint else known_names(model, concept.lora or {})
    names = {} if joint else diffusers_names(model.model.model_config.unet_config)
    try:
        deltas = joint_deltas(model, lora) if joint else unet_deltas(model, lora)
    except ValueError as error:
        raise ValueError(f"{concept.name!r}: {error}. With start_percent 0 it is applied as any other.") from error
    ours = {theirs: name for name, theirs in names.items()}
    late = {ours.get(name, name): replace(one, scale=strength_model * one.scale) for name, one in deltas.items()}
    clone = model.clone()
    if late and strength_model != 0:
        sigma = float(model.get_model_object("model_sampling").percent_to_sigma(start_percent))
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _LateLora(late, sigma))
    return clone, with_text_lora(clip, lora, strength_clip)


@dataclass(frozen=True)
class _LateLora:
    """Around one call of a model, whose layers have ComfyUI's names."""

    deltas: Mapping[str, Delta]
    sigma: float
    """The strongest noise at which they act."""
    found: WeakKeyDictionary[Any, Any] = field(default_factory=WeakKeyDictionary)

    def __call__(self, run: Any, x: torch.Tensor, t: torch.Tensor, *rest: Any, **conditions: Any) -> Any:
        if float(t.flatten()[0]) > self.sigma:
            return run(x, t, *rest, **conditions)
        with ExitStack() as stack:
            for layer, delta in self._layers(run.class_obj.diffusion_model):
                stack.enter_context(hooked(layer, DeltaHook(delta)))
            return run(x, t, *rest, **conditions)

    def _layers(self, denoiser: torch.nn.Module) -> list[tuple[torch.nn.Module, Delta]]:
        """Copies of a model have modules of their own."""
        if denoiser not in self.found:
            parts = dict(denoiser.named_modules())
            self.found[denoiser] = [(parts[name], delta) for name, delta in self.deltas.items()]
        return self.found[denoiser]
