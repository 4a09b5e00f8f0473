"""Losses wait on the device and come over in one copy, so that no step waits for them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch


class History:
    """One value a step for every name; a step that has none of a name counts as NaN."""

    def __init__(self, values: Mapping[str, torch.Tensor] | None = None) -> None:
        self.values = {name: value.tolist() for name, value in (values or {}).items()}
        self._waiting: list[dict[str, torch.Tensor]] = []
        self._given: list[set[str]] = []

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        """Note detached scalars of one step, still on the device."""
        self._waiting.append({name: value.detach().float() for name, value in values.items()})

    def fetch(self) -> dict[str, torch.Tensor]:
        """(k,) CPU values of the k steps since the last call. This waits for the device."""
        if not self._waiting:
            return {}
        flat = torch.stack([value for step in self._waiting for value in step.values()]).cpu().tolist()
        numbers, names = iter(flat), {name: None for step in self._waiting for name in step}
        steps = [{name: next(numbers) for name in step} for step in self._waiting]
        self._given = [set(step) for step in steps]
        self._waiting.clear()
        past = len(self)
        for name in names:
            self.values.setdefault(name, [math.nan] * past)
        for name, column in self.values.items():
            column += [step.get(name, math.nan) for step in steps]
        return {name: torch.tensor([step.get(name, math.nan) for step in steps], dtype=torch.float64) for name in names}

    def not_finite(self, step: int) -> list[str]:
        """What was given for `step`, one of those last fetched, and is no finite number."""
        given = self._given[step - len(self)]
        return [name for name, column in self.values.items() if name in given and not math.isfinite(column[step])]

    def cut(self, steps: int) -> None:
        """Forget everything after the first `steps` steps."""
        self.fetch()
        for column in self.values.values():
            del column[steps:]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every name's (steps,) values so far fetched, float64 on the CPU."""
        return {name: torch.tensor(column, dtype=torch.float64) for name, column in self.values.items()}

    def __len__(self) -> int:
        return max((len(column) for column in self.values.values()), default=0)
