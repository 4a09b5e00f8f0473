"""A module that leaves memory while nobody needs it, and is loaded again by whoever asks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch

from .frozen import frozen, on_device

Again = Callable[[torch.dtype], torch.nn.Module]
"""Loads the same module anew, its weights in this type."""


class Resting:
    """`module`, and where there is `again` a way to do without it: after `leave` it takes no memory, provided that
    nobody else has it, and `get` loads it again as it was loaded first. Without `again` it always stays.

    Between `begin` and `end` it is on a device and frozen from when it is first asked for; `end` restores both.
    """

    def __init__(self, module: torch.nn.Module, again: Again | None = None) -> None:
        self._module: torch.nn.Module | None = module
        self._again = again
        self._dtype = next(module.parameters()).dtype
        self._device: torch.device | None = None
        self._held = ExitStack()

    def get(self) -> torch.nn.Module:
        """The module."""
        if self._module is None:
            self._module = self._again(self._dtype)
            self._hold()
        return self._module

    def begin(self, device: torch.device) -> None:
        """From now on it is on `device` and frozen, whenever it is there."""
        self._device = device
        self._hold()

    def end(self) -> None:
        """As it was before `begin`."""
        self._device = None
        self._held.close()

    def leave(self) -> None:
        """Nobody needs it for now."""
        if self._again is not None and self._module is not None:
            self._dtype = next(self._module.parameters()).dtype
            self._held.pop_all()  # nothing is to be restored on what goes
            self._module = None

    def _hold(self) -> None:
        if self._device is not None and self._module is not None:
            self._held.enter_context(on_device([self._module], self._device))
            self._held.enter_context(frozen([self._module]))
