"""A training that was cancelled waits in a checkpoint until exactly the same one is queued again."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch

from ...core.training.run.checkpoint import CheckpointMismatchError, checkpoints_in, load_checkpoint
from ..comfy.folders import checkpoints_root


class Resumable:
    """One node's long work, and the folder where it waits unfinished: `start(settings, resume=...)` gives its events.

    The folder's name begins with `name` and ends in a hash of `facts` and `tensors`, which have to be everything that
    decides the numbers and the node's id, so that no other work is ever continued by mistake.
    """

    def __init__(
        self,
        name: str,
        start: Callable[..., Any],
        settings: Any,
        facts: Any,
        tensors: Sequence[torch.Tensor | None] = (),
    ) -> None:
        self.folder = checkpoints_root() / f"{name}-{digest(facts, tensors)}"
        self.settings = replace(settings, checkpoint_dir=self.folder)
        self._start = start
        self._run: Any = None

    def events(self) -> Iterator[Any]:
        """Train, from the checkpoint if there is one that can be used. Close it to have the work so far kept."""
        try:
            yield from self._events(resume=self._usable())
        except CheckpointMismatchError as error:
            # The inputs are the same, so an earlier version of this pack wrote it.
            logging.warning("Contextual Inversion begins again: %s", error)
            self.forget()
            yield from self._events(resume=False)

    def stop(self, reason: str) -> None:
        """End a `TrainingRun` after the step it is in; the last event has what was learned by then."""
        if self._run is not None:
            self._run.stop(reason)

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

    def _events(self, resume: bool) -> Iterator[Any]:
        with closing(self._start(self.settings, resume=self.folder if resume else None)) as self._run:
            yield from self._run


def digest(facts: Any, tensors: Sequence[torch.Tensor | None] = ()) -> str:
    """16 hex digits that tell JSON data and tensors apart from any others."""
    found = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for value in tensors:
        if value is not None:
            found.update(str(tuple(value.shape)).encode())
            found.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
