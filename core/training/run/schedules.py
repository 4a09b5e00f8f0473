"""Learning rate schedules as pure functions of the step: a resume needs no state of theirs."""

from __future__ import annotations

import math
from typing import Literal

LearningRateSchedule = Literal["constant", "linear", "cosine", "polynomial", "inverse_sqrt"]


def learning_rate_factor(
    step: int, steps: int, *, schedule: LearningRateSchedule = "constant", warmup: int = 0
) -> float:
    """What multiplies the learning rate at `step` (0 is the first) of `steps`.

    A linear warm-up over `warmup` steps ends at 1; then "linear", "cosine" and "polynomial" (power 2) fall to 0 just
    after the last step, and "inverse_sqrt" falls as 1 / sqrt(1 + steps since the warm-up). No factor is ever 0.
    Raises ValueError for an unknown schedule.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    left = 1 - (step - warmup) / max(1, steps - warmup)
    factors = {
        "constant": 1.0,
        "linear": left,
        "cosine": (1 + math.cos(math.pi * (1 - left))) / 2,
        "polynomial": left**2,
        "inverse_sqrt": 1 / math.sqrt(1 + step - warmup),
    }
    if schedule not in factors:
        raise ValueError(f"unknown schedule {schedule!r}: expected one of {', '.join(factors)}")
    return factors[schedule]
