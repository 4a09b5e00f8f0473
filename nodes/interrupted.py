"""A training that was cancelled waits in a checkpoint until exactly the same one is queued again."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..core.concept import Concept
from ..core.models.protocol import TextEncoder
from ..core.prompts.captions import CaptionSource
from ..core.training.checkpoint import CheckpointMismatchError, checkpoints_in, load_checkpoint
from ..core.training.contextualizer_pretraining import PretrainingEvent, PretrainSettings, pretrain_contextualizer
from ..core.training.events import Event
from ..core.training.regularizer import Regularizer
from ..core.training.settings import TrainSettings
from ..core.training.trainer import TrainingRun, train
from .comfy_model import ComfyModel
from .folders import checkpoints_root


class Resumable(ABC):
    """One node's long work, and the folder where it waits unfinished.

    The folder's name is a hash of everything that decides the numbers and of the node's id, so that no other work is
    ever continued by mistake.
    """

    folder: Path

    def events(self) -> Iterator[Any]:
        """Train, from the checkpoint if there is one that can be used. Close it to have the work so far kept."""
        try:
            yield from self._train(resume=self._usable())
        except CheckpointMismatchError as error:
            # The inputs are the same, so an earlier version of this pack wrote it.
            logging.warning("Contextual Inversion begins again: %s", error)
            self.forget()
            yield from self._train(resume=False)

    def kept(self) -> int:
        """The steps in the newest checkpoint, 0 where there is none."""
        paths = checkpoints_in(self.folder)
        return int(paths[0].stem.removeprefix("step_")) if paths else 0

    def forget(self) -> None:
        """Remove what waits."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _usable(self) -> bool:
        if not checkpoints_in(self.folder):
            return False
        try:
            load_checkpoint(self.folder)
        except ValueError as error:
            logging.warning("Contextual Inversion begins again, the checkpoint cannot be read: %s", error)
            self.forget()
            return False
        return True

    @abstractmethod
    def _train(self, resume: bool) -> Iterator[Any]:
        """The events of the work."""


class InterruptedPretraining(Resumable):
    """A contextualizer's pretraining."""

    def __init__(self, node_id: str, encoder: TextEncoder, captions: CaptionSource, settings: PretrainSettings) -> None:
        self.encoder, self.captions = encoder, captions
        facts = {
            "node": str(node_id),
            "encoder": encoder.fingerprint,
            "captions": captions.state(),
            "settings": settings.identity(),
        }
        key = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
        self.folder = checkpoints_root() / f"contextualizer-{key}"
        self.settings = replace(settings, checkpoint_dir=self.folder)

    def _train(self, resume: bool) -> Iterator[PretrainingEvent]:
        run = pretrain_contextualizer(
            self.encoder, self.captions, self.settings, resume=self.folder if resume else None
        )
        with closing(run):
            yield from run


class InterruptedWork(Resumable):
    """A concept's training with all its inputs."""

    def __init__(
        self,
        node_id: str,
        model: ComfyModel,
        settings: TrainSettings,
        *,
        images: torch.Tensor,
        masks: torch.Tensor | None,
        regularizers: tuple[Regularizer, ...],
        initial: Concept | None,
    ) -> None:
        self.model, self.images, self.masks = model, images, masks
        self.regularizers, self.initial = regularizers, initial
        key = _key(node_id, model, settings, images, masks, regularizers, initial)
        self.folder = checkpoints_root() / f"{settings.name}-{key}"
        self.settings = replace(settings, checkpoint_dir=self.folder)
        self._run: TrainingRun | None = None

    def stop(self, reason: str) -> None:
        """End after the step it is in; the last event has what was learned by then."""
        if self._run is not None:
            self._run.stop(reason)

    def _train(self, resume: bool) -> Iterator[Event]:
        with train(
            self.model,
            self.images,
            self.settings,
            regularizers=self.regularizers,
            masks=self.masks,
            resume=self.folder if resume else None,
            initial=self.initial,
        ) as run:
            self._run = run
            yield from run


def _key(
    node_id: str,
    model: ComfyModel,
    settings: TrainSettings,
    images: torch.Tensor,
    masks: torch.Tensor | None,
    regularizers: tuple[Regularizer, ...],
    initial: Concept | None,
) -> str:
    facts = {
        "node": str(node_id),
        "model": model.fingerprint,
        "patches": [_patches(model.patcher), _patches(model.clip_patcher)],
        "encoders": {name: encoder.fingerprint for name, encoder in model.text_encoders.items()},
        "settings": settings.identity(),
        "regularizers": [regularizer.state() for regularizer in regularizers],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    starting = {} if initial is None else initial.vectors
    for value in (images, masks, *(starting[name] for name in sorted(starting))):
        if value is not None:
            digest.update(str(tuple(value.shape)).encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _patches(patcher: Any) -> Mapping[str, list[tuple[float, float]]]:
    """Which weights LoRA patches change, and how strongly."""
    return {str(key): [(float(one[0]), float(one[2])) for one in patches] for key, patches in patcher.patches.items()}
