"""A training out of plain choices: nodes, commands and comparisons put theirs into `Choices`, and `plan` does the
rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..concept import Concept
from ..maths.norms import NormMode
from ..models.protocol import TextToImageModel
from .defaults import CLASS_PICTURES
from .preparation import resolution_for
from .presets import Preset, without_core
from .regularizers.prior import PriorPreservation, Progress, require_weights
from .regularizers.registry import Added
from .regularizers.seam import Regularizer
from .settings import TrainSettings
from .trainer import TrainingRun, train


@dataclass(frozen=True)
class Prior:
    """Prior preservation as chosen: its `weight` (None: as the recipe says), how many class pictures, and the `seed`
    that they are drawn with (None: the training's). They are kept in `folder`; `progress` hears of each, and `applied`
    is whatever else changes what the model draws."""

    weight: float | None = None
    pictures: int = CLASS_PICTURES
    seed: int | None = None
    folder: Path | None = None
    progress: Progress | None = None
    applied: str = ""


@dataclass(frozen=True)
class Choices:
    """What was chosen of a training. `settings` replace the recipe's values, but for those that are None; `added` are
    regularizers in their order. `norm_mode` None leaves the vectors' length to the recipe, whose rescaling window
    goes where nothing keeps it. A training that goes on from `start` learns a word as long as that, unless `settings`
    has "vectors"."""

    recipe: Preset
    class_word: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    added: Sequence[Added] = ()
    norm_mode: NormMode | None = None
    prior: Prior = Prior()
    start: Concept | None = None


@dataclass(frozen=True)
class Outline:
    """What can be said of a training before its model is there: the `recipe` that was chosen, the settings with which
    it will run but for captions, and how many pictures of the class are drawn first (0 without prior preservation)."""

    recipe: Preset
    settings: TrainSettings
    class_pictures: int


@dataclass(frozen=True)
class Plan:
    """A training that can begin: what `train` needs beside the model and the pictures."""

    settings: TrainSettings
    regularizers: tuple[Regularizer, ...]
    start: Concept | None
    outline: Outline | None = None
    """What was said before the model was looked at, None where nobody asked."""

    def begin(
        self,
        model: TextToImageModel,
        images: torch.Tensor | Sequence[torch.Tensor],
        *,
        masks: torch.Tensor | Sequence[torch.Tensor] | None = None,
        resume: Path | None = None,
    ) -> TrainingRun:
        """As `train`."""
        return train(
            model,
            images,
            self.settings,
            regularizers=self.regularizers,
            masks=masks,
            resume=resume,
            initial=self.start,
        )


def plan(model: TextToImageModel, choices: Choices) -> Plan:
    """What was chosen, for this model. Raises ValueError for what cannot be trained."""
    outline = outlined(choices)
    settings, weight = outline.settings, prior_weight(choices, outline.settings)
    made = tuple(added.fitting(model, settings.method) for added in choices.added)
    if weight > 0:
        made += (prior_preservation(model, settings, choices.prior, weight),)
    return Plan(settings, made, choices.start, outline)


def outlined(choices: Choices) -> Outline:
    """What will be trained, without a model. Raises ValueError as `settings_of` and `prior_weight`."""
    settings = settings_of(choices)
    pictures = choices.prior.pictures if prior_weight(choices, settings) > 0 else 0
    return Outline(choices.recipe, settings, pictures)


def settings_of(choices: Choices) -> TrainSettings:
    """The recipe's settings with what was chosen in place of its own, and the rule for the vectors' length that goes
    with the regularizers. Raises ValueError as `TrainSettings`."""
    given = {name: value for name, value in choices.settings.items() if value is not None}
    if choices.start is not None:
        given.setdefault("vectors", choices.start.length)
    own = choices.recipe.settings(choices.class_word, **given)
    if choices.norm_mode is not None:
        return replace(own, norm_mode=choices.norm_mode)
    return own if any(added.kind.keeps_window for added in choices.added) else without_core(own)


def prior_weight(choices: Choices, settings: TrainSettings) -> float:
    """The weight of prior preservation, 0 for none. Raises ValueError where it would hold nothing."""
    weight = choices.prior.weight
    weight = float(choices.recipe.prior) if weight is None else weight
    if weight > 0:
        require_weights(settings.trains)
    return weight


def prior_preservation(
    model: TextToImageModel,
    settings: TrainSettings,
    chosen: Prior,
    weight: float,
) -> PriorPreservation:
    """Prior preservation on class pictures as large as the training pictures, as many a step."""
    return PriorPreservation(
        chosen.folder,
        weight=weight,
        pictures=chosen.pictures,
        batch=settings.batch,
        resolution=resolution_for(model, settings),
        seed=settings.seed if chosen.seed is None else chosen.seed,
        progress=chosen.progress,
        applied=chosen.applied,
    )
