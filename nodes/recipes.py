"""Numbers of a training that go together, chosen by name or by the model at hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..core.models.families import is_narrow
from ..core.models.protocol import TextToImageModel
from ..core.training.presets import DEMO, PRESETS, Preset, demo_preset, without_core
from ..core.training.settings import TrainSettings
from .schema import inputs

AS_RECIPE = "as the recipe"

RECIPES = {**PRESETS, DEMO.name: DEMO}


def recipe_names(*methods: str) -> list[str]:
    """What a node offers, the default first; with `methods` only recipes for these."""
    return [inputs.AUTO, *(name for name, recipe in RECIPES.items() if not methods or recipe.method in methods)]


def recipe_for(name: str, model: TextToImageModel, method: str = "ti") -> Preset:
    """The recipe called `name` for `method`, or the one that suits the model for `AUTO`.

    A recipe of another method keeps its numbers and trains `method`. Raises ValueError as `Preset.training`.
    """
    if name != inputs.AUTO:
        return RECIPES[name].training(method)
    if not is_narrow(model):
        return next(recipe for recipe in PRESETS.values() if recipe.method == method)
    return DEMO if method == "ti" else demo_preset(method)


def sources(*methods: str) -> str:
    """Every recipe and where its numbers come from, for a tooltip."""
    wanted = [recipe for recipe in RECIPES.values() if not methods or recipe.method in methods]
    return " ".join(f"{recipe.name}: {recipe.source}." for recipe in wanted)


def train_settings(recipe: Preset, *, norm_mode: str | None, numbers: dict[str, float], **others: Any) -> TrainSettings:
    """The recipe's settings with `others`, and with each of `numbers` that is not 0 in place of its own.

    `norm_mode` is the regularizer's, `AS_RECIPE` where it leaves that to the recipe, None where there is none: CoRe's
    window belongs to CoRe, so plain textual inversion goes without. Raises ValueError for what `TrainSettings` refuses.
    """
    own = recipe.settings(**others, **inputs.chosen(**numbers))
    if norm_mode is None:
        return without_core(own)
    return own if norm_mode == AS_RECIPE else replace(own, norm_mode=norm_mode)
