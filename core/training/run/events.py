"""What a training run says while it runs. The node turns it into progress and pictures, the command line into a bar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ...concept import Concept


@dataclass(frozen=True)
class Started:
    """Before the first step: latents are cached and what is trainable is known."""

    first_step: int
    total_steps: int
    trainable_numbers: int


@dataclass(frozen=True)
class Step:
    """One optimiser step is done. `losses` is None except every `log_every` steps, so that no step waits for
    the device.

    `losses` maps a term's name ("diffusion", "core/embedding", ...) to (k,) CPU values of the steps since the last
    report.
    """

    step: int
    total_steps: int
    losses: Mapping[str, torch.Tensor] | None = None


@dataclass(frozen=True)
class Preview:
    """Pictures of what was learned so far: `images` (B, H, W, 3) float in [0, 1] on the CPU, and the prompt. The first
    `originals` of them are the pictures that the others were drawn after."""

    step: int
    images: torch.Tensor
    prompt: str
    originals: int = 0


@dataclass(frozen=True)
class CheckpointSaved:
    step: int
    path: Path


@dataclass(frozen=True)
class CheckpointFailed:
    """A checkpoint could not be written. The training goes on, and tries again when the next one is due."""

    step: int
    reason: str


@dataclass(frozen=True)
class Finished:
    """The last event of every run, also of a stopped one. `stopped` says why when it is not the last planned step."""

    concept: Concept
    step: int
    losses: Mapping[str, torch.Tensor]
    """Every term's (steps,) history."""
    seconds: float
    stopped: str | None = None


Event = Started | Step | Preview | CheckpointSaved | CheckpointFailed | Finished
