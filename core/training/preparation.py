"""Everything that a run works with, made of a model, pictures and settings before the first step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from ..concept import Concept
from ..models.families import drawn_resolution
from ..models.low_rank import Delta, apply_deltas
from ..models.protocol import ImageSize, TextToImageModel
from .latent_bank import LatentBank
from .learner import Learner
from .objective import Objective
from .pictures import encode_pictures
from .prompts import PromptEncoder
from .regularizers.seam import Regularizer
from .settings import TrainSettings
from .weights import RankedModel, TrainableWeights
from .word import Word, starting_word


@dataclass(frozen=True)
class Prepared:
    """A run that is ready for its first step, or for the one after a checkpoint."""

    bank: LatentBank
    learner: Learner
    weights: TrainableWeights | None
    prompts: PromptEncoder
    objective: Objective
    identity: Mapping[str, Any]
    """Everything that decides the numbers of the run."""


def prepare(
    stack: ExitStack,
    model: TextToImageModel,
    settings: TrainSettings,
    bank: LatentBank,
    *,
    regularizers: Sequence[Regularizer] = (),
    initial: Concept | Word | None = None,
    changes: Mapping[str, Delta | Sequence[Delta]] | None = None,
) -> Prepared:
    """Prepare a run inside the model's session. What changes the model goes onto `stack`.

    Raises ValueError where word, regularizers, method or templates do not fit the model.
    """
    stack.enter_context(apply_deltas(model, changes or {}))
    start = initial if isinstance(initial, Word) else starting_word(model, settings, initial)
    for regularizer in regularizers:
        regularizer.prepare(model, settings.class_word, start.rows)
    weights = None
    if settings.trains.trains_weights:
        weights = TrainableWeights(model, settings)
        stack.enter_context(weights.on())
    learner = Learner(model, settings, start, weights and weights.leaves)
    identity = identity_of(model, settings, bank, regularizers, start)
    side = resolution_of(model, bank)
    prompts = PromptEncoder(model, learner.word, ImageSize(side, side), weights)
    prompts.require_room([*settings.prompts, *([settings.preview_prompt] if settings.preview_every else [])])
    seen = RankedModel(model, weights) if weights is not None and weights.ranked else model
    objective = Objective(seen, settings, regularizers, bank, prompts)
    return Prepared(bank, learner, weights, prompts, objective, identity)


def latent_bank_of(
    model: TextToImageModel,
    settings: TrainSettings,
    images: torch.Tensor | Sequence[torch.Tensor] | LatentBank,
    masks: torch.Tensor | Sequence[torch.Tensor] | None,
) -> LatentBank:
    """What a run looks at, on the model's device. Raises ValueError as `encode_pictures`."""
    if isinstance(images, LatentBank):
        return images.to(model.device)
    transparent = settings.transparent_masks
    return encode_pictures(
        model,
        images,
        None if transparent else masks,
        resolution=resolution_for(model, settings),
        augmentation=settings.augmentation,
        seed=settings.seed,
        transparency=masks if transparent else None,
    )


def resolution_for(model: TextToImageModel, settings: TrainSettings) -> int:
    """Side of the square training pictures in pixels: as set, else the one that the model draws at.

    A photograph has many times the pixels that a model knows, and a thumbnail hardly any. A multiple of eight latent
    cells, so that every UNet can halve it three times. Raises ValueError where it is not.
    """
    unit = model.latent_factor * 8
    if settings.resolution is None:
        return drawn_resolution(model)
    if settings.resolution % unit:
        raise ValueError(f"the resolution is a multiple of {unit} for this model, not {settings.resolution}")
    return settings.resolution


def resolution_of(model: TextToImageModel, bank: LatentBank) -> int:
    """Side in pixels of the pictures behind a bank's latents."""
    return int(bank.shape[-1]) * model.latent_factor


def identity_of(
    model: TextToImageModel,
    settings: TrainSettings,
    bank: LatentBank,
    regularizers: Sequence[Regularizer],
    start: Word,
) -> dict[str, Any]:
    """Everything that decides the numbers of a run that begins with the word `start`."""
    return {
        **settings.identity(),
        "resolution": resolution_of(model, bank),
        "model": model.fingerprint,
        "model.dtype": str(model.dtype),
        "text_encoders": {name: encoder.fingerprint for name, encoder in model.text_encoders.items()},
        "pictures": bank.digest,
        "starting vectors": _digest(start),
        "regularizers": [regularizer.state() for regularizer in regularizers],
    }


def _digest(word: Word) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in (word.learned, word.fixed, word.kept):
        for name in sorted(part):
            digest.update(part[name].cpu().numpy().tobytes())
    return digest.hexdigest()
