"""A training that was cancelled waits in a checkpoint until exactly the same one is queued again, and what was learned
to its end waits until it is saved."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch

from ...core.concept import Concept
from ...core.files.atomic import atomic_write_verified
from ...core.training.run.checkpoint import CheckpointMismatchError, DamagedCheckpointError, checkpoints_in
from ...core.training.run.events import Started
from ..comfy.folders import checkpoints_root, finished_root, told

END = "finished.json"
"""Says of finished work what it is of, and why it ended before its last step."""


class Resumable:
    """One node's long work, and the folder where it waits unfinished: `start(settings, resume=...)` gives its events.

    The folder's name begins with `name` and ends in a hash of `facts` and `tensors`, which have to be everything that
    decides the numbers and the node's id, so that no other work is ever continued by mistake. Finished work waits in
    another folder for exactly the same settings, also those that decide no number, until it is saved or other work on
    the same `subject` is finished.
    """

    def __init__(
        self,
        name: str,
        start: Callable[..., Any],
        settings: Any,
        facts: Any,
        tensors: Sequence[torch.Tensor | None] = (),
        subject: Any = None,
    ) -> None:
        deciding = digest(facts, tensors)
        self.folder = checkpoints_root() / f"{name}-{deciding}"
        self.finished = finished_root() / f"{name}-{digest([deciding, asdict(settings)])}"
        self.settings = replace(settings, checkpoint_dir=self.folder)
        self._subject = deciding if subject is None else digest([name, subject])
        self._start = start
        self._run: Any = None

    def events(self) -> Iterator[Any]:
        """Train, from the checkpoint if there is one that can be used. Close it to have the work so far kept."""
        waiting = next((folder for folder in (self.finished, self.folder) if checkpoints_in(folder)), None)
        try:
            yield from self._events(waiting)
        except (CheckpointMismatchError, DamagedCheckpointError) as error:
            # The inputs are the same, so the disk changed it or an earlier version of this pack wrote it.
            logging.warning("Contextual Inversion begins again: %s", error)
            self.forget()
            yield from self._events(None)

    def stop(self, reason: str) -> None:
        """End a `TrainingRun` after the step it is in; the last event has what was learned by then."""
        if self._run is not None:
            self._run.stop(reason)

    def kept(self) -> int:
        """The steps in the newest checkpoint, 0 where there is none."""
        return _newest_step(self.folder)

    def forget(self) -> None:
        """Remove what waits."""
        for folder in (self.folder, self.finished):
            shutil.rmtree(folder, ignore_errors=True)

    def keep_finished(self, learned: Any, step: int, stopped: str | None) -> Path | None:
        """Let `learned`, the work's result after `step` steps, wait on the disk until it is `saved`. Returns where, or
        None where no checkpoint has it, as on a full disk."""
        if _newest_step(self.finished) != step:
            if _newest_step(self.folder) != step:
                return None
            self._move(stopped)
        place = self.finished if self.finished.exists() else self.folder
        _unsaved[place] = learned
        return place

    def _move(self, stopped: str | None) -> None:
        try:
            for older in checkpoints_in(self.folder)[1:]:
                older.unlink(missing_ok=True)
            end = {"subject": self._subject, "stopped": stopped}
            atomic_write_verified(self.folder / END, json.dumps(end).encode(), if_exists="replace")
            shutil.rmtree(self.finished, ignore_errors=True)
            self.finished.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.folder, self.finished)
            self._supersede()
        except OSError as error:  # it waits where it is, then
            logging.warning("Contextual Inversion: what was learned stays in %s: %s", self.folder, error)

    def _supersede(self) -> None:
        """Remove earlier finished work on the same subject."""
        for other in finished_root().iterdir():
            if other != self.finished and _end(other).get("subject") == self._subject:
                shutil.rmtree(other, ignore_errors=True)

    def _events(self, resume: Path | None) -> Iterator[Any]:
        stopped = None if resume is None else _end(resume).get("stopped")
        with closing(self._start(self.settings, resume=resume)) as self._run:
            for event in self._run:
                yield event
                if stopped is not None and isinstance(event, Started):
                    self.stop(str(stopped))


_unsaved: WeakValueDictionary[Path, Any] = WeakValueDictionary()


@contextmanager
def waiting(learned: Any) -> Iterator[None]:
    """An OSError inside, while `learned` is saved, says where that waits."""
    try:
        yield
    except OSError as error:
        place = next((folder for folder, one in _unsaved.items() if one is learned), None)
        if place is not None and error.strerror:
            error.strerror = f"{error.strerror}; what was learned waits in {told(place)}"
        raise


def saved(learned: Any) -> None:
    """Remove the finished work that made `learned`, which is in a file now with all that it holds."""
    for folder, one in list(_unsaved.items()):
        if one is learned or _is_part(one, learned):
            shutil.rmtree(folder, ignore_errors=True)
            del _unsaved[folder]


def _is_part(one: Any, whole: Any) -> bool:
    """Whether a concept is nothing but the word of another, as one that a second stage began with."""
    if not (isinstance(one, Concept) and isinstance(whole, Concept)) or one.lora or one.layer_vectors:
        return False
    same = one.vectors.keys() == whole.vectors.keys()
    return same and all(torch.equal(value, whole.vectors[name]) for name, value in one.vectors.items())


def _newest_step(folder: Path) -> int:
    paths = checkpoints_in(folder)
    return int(paths[0].stem.removeprefix("step_")) if paths else 0


def _end(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / END).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def digest(facts: Any, tensors: Sequence[torch.Tensor | None] = ()) -> str:
    """16 hex digits that tell JSON data and tensors apart from any others."""
    found = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for value in tensors:
        if value is not None:
            found.update(str(tuple(value.shape)).encode())
            found.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
