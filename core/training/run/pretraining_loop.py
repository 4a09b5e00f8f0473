"""A pretraining as events, with checkpoints, also when whoever listens stops."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from .checkpoint import require_place, written
from .events import CheckpointFailed, CheckpointSaved, Preview, Started, Step
from .pretraining import Pretraining


def pretraining_events(
    training: Pretraining, resume: Path | None, previews: Callable[[], Iterable[Preview]] = tuple
) -> Generator[Any, None, None]:
    """`Started`, the steps that are still to come with what they bring, and last what `training` finishes with.

    `resume` is a checkpoint or a folder of them to go on from. Only the first process keeps. Closing the stream, or an
    error in a step, keeps the work so far where the settings name a folder. One that takes no file is an OSError before
    the first step; a checkpoint that cannot be written later is an event and no more.
    """
    before = 0.0 if resume is None else training.restore(resume)
    if training.processes.first and training.done < training.settings.steps:
        require_place(training.settings.checkpoint_dir, training.numbers)
    keeper = _Keeper(training, before)
    yield Started(training.done, training.settings.steps, training.numbers)
    try:
        for _ in _steps(training, keeper):
            yield from _told(training, keeper)
            yield from previews()
    except GeneratorExit:  # stopped by whoever listens, always between two steps
        keeper.keep()
        raise
    yield training.finish(keeper.seconds)


class _Keeper:
    """Writes the checkpoints of a run that took `before` seconds already."""

    def __init__(self, training: Pretraining, before: float) -> None:
        self.training, self.saved = training, training.done
        self._begin = time.perf_counter() - before

    @property
    def seconds(self) -> float:
        """How long the run has taken so far."""
        return time.perf_counter() - self._begin

    def save(self) -> CheckpointSaved | CheckpointFailed:
        """Write one now."""
        event = written(self.training.done, lambda: self.training.save(self.seconds))
        if isinstance(event, CheckpointSaved):
            self.saved = event.step
        return event

    def keep(self) -> None:
        """Write what is newer than the last one, where that is wanted and whole."""
        training = self.training
        wanted = training.settings.checkpoint_dir is not None and training.processes.first
        if wanted and training.whole and training.done > self.saved:
            with suppress(RuntimeError):  # what is no longer finite is not worth going on from
                training.report()
                self.save()


def _steps(training: Pretraining, keeper: _Keeper) -> Iterator[None]:
    try:
        yield from training.steps()
    except GeneratorExit:  # kept by whoever closes the stream
        raise
    except BaseException:  # ComfyUI's Cancel among them, which ends a step from within the model
        keeper.keep()
        raise


def _told(training: Pretraining, keeper: _Keeper) -> Iterator[Step | CheckpointSaved | CheckpointFailed]:
    """What is to be said, and kept, of the step that is just done."""
    settings, done = training.settings, training.done
    last = done == settings.steps
    checkpoint = settings.checkpoint_dir is not None and (last or done % settings.checkpoint_every == 0)
    report = last or checkpoint or done % settings.log_every == 0
    yield Step(done, settings.steps, training.report() if report else None)
    if checkpoint and training.processes.first:
        yield keeper.save()
