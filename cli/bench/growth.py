"""Whether a training's steps and memory grow with its pictures, its prompts, its steps, and the trainings before it."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ...core.models.protocol import TextToImageModel
from ...core.training.regularizers.context import CoReRegularizer
from ...core.training.run.events import Step
from ...core.training.settings import TrainSettings
from ...core.training.trainer import TrainingRun, train

PICTURES, PROMPTS = (1, 10, 100), (1, 100, 30_000)
EARLY = 10
"""The step that the last ones are compared with."""
SIDE = 64


def growth_figures(
    model: TextToImageModel,
    *,
    pictures: Sequence[int] = PICTURES,
    prompts: Sequence[int] = PROMPTS,
    steps: int = 3_000,
    trainings: int = 4,
    window: int = 20,
) -> dict[str, Any]:
    """Processor seconds of a step, medians of `window` steps, of small trainings with CoRe on pictures of 64 pixels.

    "growth_pictures" and "growth_prompts" by how many there are (prompts both to train on and to compare on), measured
    in turns in one process, and "growth_start_s", the processor seconds from asking for that training to its first
    step, by how many prompts; "growth_steps" from step 10 on and at the end of `steps`; "growth_memory_mb" what the
    process holds then and "growth_tensors" how many tensors live; "growth_trainings_mb" and "growth_trainings_tensors"
    the same after each of so many more `trainings`.
    """
    by_pictures, _ = _in_turns({count: _run(model, count, 1) for count in pictures}, window)
    by_prompts, starts = _in_turns({count: _run(model, 1, count) for count in prompts}, window)
    return {
        "growth_pictures": by_pictures,
        "growth_prompts": by_prompts,
        "growth_start_s": starts,
        **_long(model, steps, window),
        **_again(model, trainings, window),
    }


def written(count: int) -> tuple[str, ...]:
    """So many different prompts, all of one length."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return tuple(f"a {letters[n % 26]} {letters[n // 26 % 26]} {letters[n // 676 % 26]} {letters[n // 17576]} {{}}"
                 for n in range(count))  # fmt: skip


def _run(
    model: TextToImageModel, pictures: int, prompts: int, steps: int = 10**6, attention: float = 1.0
) -> TrainingRun:
    settings = TrainSettings(
        "dog",
        steps=steps,
        batch=1,
        resolution=SIDE,
        templates=written(prompts),
        log_every=10,
        checkpoint_every=10**6,
    )
    images = torch.rand(pictures, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0))
    core = CoReRegularizer(written(prompts), embedding_weight=0.1, attention_weight=attention, attention_batch=1)
    return train(model, images, settings, regularizers=[core])


def _in_turns(runs: dict[int, TrainingRun], window: int) -> tuple[dict[int, float], dict[int, float]]:
    """The median processor seconds of a step of each run, a step of one after a step of the other; and those to the end
    of its first step. All have encoded what they draw before they are measured."""
    seconds: dict[int, list[float]] = {count: [] for count in runs}
    starts = {}
    for count, run in runs.items():
        began = time.process_time()
        _steps(run, 1)
        starts[count] = time.process_time() - began
        run.prepared.bank.need(range(run.prepared.bank.pictures))
    for _ in range(window):
        for count, run in runs.items():
            seconds[count] += _steps(run, 1)
    for run in runs.values():
        run.close()
    return {count: statistics.median(found[1:]) for count, found in seconds.items()}, starts


def _long(model: TextToImageModel, steps: int, window: int) -> dict[str, Any]:
    """One training of so many steps, at its beginning and at its end."""
    with _run(model, 4, 4, steps, attention=0) as run:  # half the time, and every cache is used
        _steps(run, EARLY - 1)
        early, held, alive = statistics.median(_steps(run, window)), resident_mb(), tensors()
        _steps(run, steps - run.learner.done - window - 1)
        late = statistics.median(_steps(run, window))
        return {
            "growth_steps": {EARLY: early, steps: late},
            "growth_memory_mb": {EARLY: held, steps: resident_mb()},
            "growth_tensors": {EARLY: alive, steps: tensors()},
        }


def _again(model: TextToImageModel, trainings: int, window: int) -> dict[str, Any]:
    held, alive = [], []
    for _ in range(trainings):
        with _run(model, 4, 4, window) as run:
            for _ in run:
                pass
        del run
        held.append(resident_mb())
        alive.append(tensors())
    return {"growth_trainings_mb": held, "growth_trainings_tensors": alive}


def _steps(run: TrainingRun, count: int) -> list[float]:
    """Processor seconds of each of the next `count` steps."""
    return list(_costs(run, count))


def _costs(run: TrainingRun, count: int) -> Iterator[float]:
    for _ in range(count):
        began = time.process_time()
        while not isinstance(next(run), Step):
            pass
        yield time.process_time() - began


def tensors() -> int:
    """How many tensors live in this process."""
    gc.collect()
    return sum(
        issubclass(type(one), torch.Tensor) for one in gc.get_objects()
    )  # `isinstance` would ask each for its class


def resident_mb() -> float:
    """Memory that this process holds now, in MB of 2**20 bytes. Raises OSError where the system does not say."""
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
