"""Numbers that are none: NaN passes every comparison with a limit, so it is asked for by name."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any


def require_finite(**numbers: float | None) -> None:
    """Raises ValueError that names the first of `numbers` that is not finite; None is a number left out."""
    for name, value in numbers.items():
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name} is {value}, which is no finite number; give it another value")


def require_finite_fields(record: Any) -> None:
    """`require_finite` of every number in a dataclass, those in its tuples too."""
    for one in fields(record):
        value = getattr(record, one.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float):
                require_finite(**{one.name: number})
