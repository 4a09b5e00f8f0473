"""The steps of a pretraining as events, with checkpoints, also when whoever listens stops."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch

from .events import CheckpointSaved, Preview, Step


class Pretraining(Protocol):
    """What a step changes, and how that is reported and kept."""

    done: int
    whole: bool
    """False while the optimiser writes: what it has half written is nothing to go on from."""

    def report(self) -> Mapping[str, torch.Tensor]:
        """What happened since the last report. Raises RuntimeError where a loss was not finite."""

    def save(self, seconds: float) -> Path:
        """Write a checkpoint."""


class Stopwatch:
    """Seconds since it was made, and `before` that."""

    def __init__(self, before: float) -> None:
        self._begin = time.perf_counter() - before

    def __call__(self) -> float:
        return time.perf_counter() - self._begin


def pretraining_steps(
    training: Pretraining,
    steps: Iterable[Any],
    settings: Any,
    *,
    first: bool,
    seconds: Callable[[], float],
    previews: Callable[[], Iterable[Preview]] = tuple,
) -> Generator[Step | CheckpointSaved | Preview, None, None]:
    """Take every one of `steps` and tell of it. `settings` say how many there are, and when to report and to keep.

    Only the `first` process keeps. Closing the stream, or an error in a step, keeps the work so far where `settings`
    name a folder.
    """
    saved = training.done

    def keep() -> None:
        if settings.checkpoint_dir is not None and first and training.whole and training.done > saved:
            with suppress(RuntimeError):  # what is no longer finite is not worth going on from
                training.report()
                training.save(seconds())

    def taken() -> Iterator[Any]:
        try:
            yield from steps
        except Exception:  # ComfyUI's Cancel among them, which ends a step from within the model
            keep()
            raise

    try:
        for _ in taken():
            done, last = training.done, training.done == settings.steps
            checkpoint = settings.checkpoint_dir is not None and (last or done % settings.checkpoint_every == 0)
            report = last or checkpoint or done % settings.log_every == 0
            yield Step(done, settings.steps, training.report() if report else None)
            if checkpoint and first:
                saved = done
                yield CheckpointSaved(done, training.save(seconds()))
            yield from previews()
    except GeneratorExit:  # stopped by whoever listens, always between two steps
        keep()
        raise
