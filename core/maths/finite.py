"""Numbers that are none: NaN passes every comparison with a limit, so it is asked for by name."""

from __future__ import annotations

import math


def require_finite(**numbers: float | None) -> None:
    """Raises ValueError that names the first of `numbers` that is not finite; None is a number left out."""
    for name, value in numbers.items():
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name} is {value}, which is no finite number; give it another value")
