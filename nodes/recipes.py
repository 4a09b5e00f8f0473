"""Numbers of a training that go together, chosen by name or by the model at hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..core.models.protocol import TextToImageModel
from ..core.training.presets import DEMO, PRESETS, Preset
from ..core.training.settings import TrainSettings

AUTO = "auto (for this model)"
AS_RECIPE = "as the recipe"

RECIPES = {**PRESETS, DEMO.name: DEMO}


def recipe_names() -> list[str]:
    """What a node offers, the default first."""
    return [AUTO, *RECIPES]


def recipe_for(name: str, model: TextToImageModel) -> Preset:
    """The recipe called `name`, or the one that suits the model for `AUTO`."""
    if name != AUTO:
        return RECIPES[name]
    widest = max(encoder.width for encoder in model.text_encoders.values())
    return next(iter(PRESETS.values())) if widest >= 768 else DEMO


def train_settings(recipe: Preset, *, norm_mode: str | None, numbers: dict[str, float], **others: Any) -> TrainSettings:
    """The recipe's settings with `others`, and with each of `numbers` that is not 0 in place of its own.

    `norm_mode` is the regularizer's, `AS_RECIPE` where it leaves that to the recipe, None where there is none: CoRe's
    window belongs to CoRe, so plain textual inversion goes without. Raises ValueError for what `TrainSettings` refuses.
    """
    own = recipe.settings(**others, **{name: value for name, value in numbers.items() if value != 0})
    if norm_mode is None:
        return replace(own, norm_mode="none") if own.norm_mode == "core_window" else own
    return own if norm_mode == AS_RECIPE else replace(own, norm_mode=norm_mode)
