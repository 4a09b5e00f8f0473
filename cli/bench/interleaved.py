"""Two ways to do the same, measured in turns in one process, so that a busy machine slows both; for `bench`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ...core.models.protocol import TextToImageModel
from ...core.training.regularizers.seam import Regularizer
from ...core.training.run.events import Step
from ...core.training.settings import TrainSettings
from ...core.training.trainer import TrainingRun, train


@dataclass(frozen=True)
class Cost:
    """`seconds` on the clock, and `processor` seconds of this process over all threads."""

    seconds: float
    processor: float


class Stopwatch:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self._begin = time.perf_counter(), time.process_time()

    def cost(self, share: int = 1) -> Cost:
        """What has passed, divided by `share`."""
        clock, processor = self._begin
        return Cost((time.perf_counter() - clock) / share, (time.process_time() - processor) / share)


def ratios(name: str, pairs: Sequence[tuple[Cost, Cost]]) -> dict[str, Any]:
    """`pairs` of plain and other costs: medians of the turns' ratios, by the clock (`name`, and its range) and by
    processor time, which is the steadier one on a CPU that others use as well."""
    clock = [other.seconds / plain.seconds for plain, other in pairs]
    return {
        name: statistics.median(clock),
        f"{name}_range": [min(clock), max(clock)],
        f"{name}_processor_time": statistics.median(other.processor / plain.processor for plain, other in pairs),
    }


def step_figures(
    name: str,
    subject: TextToImageModel,
    settings: TrainSettings,
    pictures: torch.Tensor,
    regularizer: Regularizer,
    *,
    turns: int,
    steps: int,
) -> tuple[dict[str, Any], float]:
    """Steps with `regularizer` and plain ones in turns, the first of which warms up; and a plain step's seconds.

    `<name>_over_ti_operations` counts multiplications and additions, which no other program on the machine can change.
    A turn has `steps`, a multiple of `settings.regularize_every`, and as many as that are counted after the last turn.
    """
    every = settings.regularize_every
    plain, treated = train(subject, pictures, settings), train(subject, pictures, settings, regularizers=[regularizer])
    with plain, treated:
        pairs = [(_step_cost(plain, steps), _step_cost(treated, steps)) for _ in range(turns)][1:]
        operations = _operations(plain, every), _operations(treated, every)
    figures = {
        f"{name}_step_s": statistics.median(other.seconds for _, other in pairs),
        **ratios(f"{name}_over_ti", pairs),
        f"{name}_over_ti_operations": operations[1] / operations[0],
    }
    return figures, statistics.median(ti.seconds for ti, _ in pairs)


def sampling_figures(
    name: str,
    run: Callable[[bool], torch.Tensor],
    repetitions: int,
    check: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
) -> dict[str, Any]:
    """`run(False)`, plain, and `run(True)` in turns, which change places; the first turn warms up. `check` gets what
    both gave, in this order."""
    pairs = []
    for turn in range(repetitions + 1):
        found: dict[bool, tuple[torch.Tensor, Cost]] = {}
        for other in (False, True) if turn % 2 else (True, False):
            watch = Stopwatch()
            latents = run(other)
            found[other] = latents, watch.cost()
        if check is not None:
            check(found[False][0], found[True][0])
        if turn:
            pairs.append((found[False][1], found[True][1]))
    return ratios(name, pairs)


def _step_cost(run: TrainingRun, steps: int) -> Cost:
    """Mean cost of the next `steps` steps; the last of them reports its losses, which waits for the device."""
    taken, watch = 0, Stopwatch()
    while taken < steps:
        if isinstance(next(run), Step):
            taken += 1
        else:  # `Started`: the pictures are encoded now
            taken, watch = 0, Stopwatch()
    return watch.cost(steps)


def _operations(run: TrainingRun, steps: int) -> int:
    """Those of the next `steps` steps."""
    with FlopCounterMode(display=False) as counter:
        _step_cost(run, steps)
    return counter.get_total_flops()
