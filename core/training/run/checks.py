"""What every choice of a run is checked for, and which choices decide its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any


def require_at_least_one(settings: Any, names: Iterable[str]) -> None:
    """Raises ValueError that names the first of these choices that is below 1."""
    for name in names:
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} is at least 1, not {getattr(settings, name)}")


def require_not_negative(settings: Any, names: Iterable[str]) -> None:
    """Raises ValueError that names the first of these choices that is below 0."""
    for name in names:
        if getattr(settings, name) < 0:
            raise ValueError(f"{name} cannot be negative: {getattr(settings, name)}")


def require_one_of(kind: str, value: str, options: Sequence[str]) -> None:
    """Raises ValueError that lists the options unless `value` is one of them."""
    if value not in options:
        raise ValueError(f"unknown {kind} {value!r}: expected one of {', '.join(options)}")


def choices_without(settings: Any, names: Iterable[str]) -> dict[str, Any]:
    """The choices of a dataclass but for some, those that move no number, as plain data."""
    values = asdict(settings)
    for name in names:
        del values[name]
    return values
