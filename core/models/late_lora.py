"""A LoRA that acts from a point of the sampling on.

Where the noise is strongest a denoiser decides what is where, and a LoRA of a few pictures of one thing has learned
that there is nothing beside it. Without the LoRA there, the word alone and the rest of the prompt lay the picture out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from .low_rank import Delta, apply_deltas
from .protocol import TextToImageModel

Reached = Callable[[int], None]
"""To be called with the timestep of every pass before it, from noise to picture."""


def require_start(start: float) -> None:
    """Raises ValueError unless 0 <= start <= 1."""
    if not 0 <= start <= 1:
        raise ValueError(
            f"a LoRA begins to act at 0 (from the first step) to 1 (never) of the sampling, not at {start:g}"
        )


def last_timestep(steps: int, start: float) -> float:
    """The noisiest timestep, of `steps`, at which a LoRA that begins at `start` acts: what ComfyUI makes of a
    `start_percent`."""
    return (1 - start) * (steps - 1)


@contextmanager
def deltas_from(
    model: TextToImageModel, deltas: Mapping[str, Delta | Sequence[Delta]], start: float
) -> Iterator[Reached]:
    """Inside, `model` gets `deltas` as `apply_deltas` once what is yielded hears of a timestep at which they act, and
    keeps them until the exit: for one sampling. Raises as `require_start`."""
    require_start(start)
    last = last_timestep(model.schedule.steps, start)
    with ExitStack() as stack:
        waiting = [deltas]

        def reached(timestep: int) -> None:
            if waiting and timestep <= last:
                stack.enter_context(apply_deltas(model, waiting.pop()))

        yield reached
