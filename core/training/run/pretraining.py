"""What all pretrainings have in common: how a step ends, and how a run is reported, kept and taken up again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from ...models.frozen import autograd
from .checkpoint import Checkpoint, go_on_from, require_same_run, restore_optimizer, save_checkpoint
from .history import History
from .processes import Processes
from .schedules import LearningRateSchedule, learning_rate_factor


class PretrainingSettings(Protocol):
    """The choices that every pretraining has. `batch` is that of all processes together."""

    steps: int
    batch: int
    learning_rate: float
    weight_decay: float
    schedule: LearningRateSchedule
    warmup: int
    log_every: int
    checkpoint_dir: Path | None
    checkpoint_every: int


class Pretraining(ABC):
    """All that a step changes, and how.

    A subclass sets `parameters`, their `optimizer`, and `identity`: what decides the numbers, as JSON data. Raises
    ValueError where the processes cannot share a batch.
    """

    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    identity: Mapping[str, Any]

    def __init__(self, settings: PretrainingSettings, processes: Processes) -> None:
        self.settings, self.processes = settings, processes
        self.samples = processes.samples(settings.batch)
        self.done = 0
        self.whole = True
        """False while the optimiser writes: what it has half written is nothing to go on from."""
        self.history = History()

    @abstractmethod
    def steps(self) -> Iterator[None]:
        """Take the steps that are still to come, one whenever the next is asked for."""

    @abstractmethod
    def finish(self, seconds: float) -> Any:
        """The last event, of a run that took so long."""

    @abstractmethod
    def network_state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the optimiser's moments and the losses."""

    @abstractmethod
    def load_network_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `network_state` gave."""

    @property
    def numbers(self) -> int:
        """How many numbers are trained."""
        return sum(value.numel() for value in self.parameters)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """AdamW over the parameters, as both papers have it."""
        settings = self.settings
        return torch.optim.AdamW(self.parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)

    def update(self) -> None:
        """Move the parameters by their gradients, at this step's learning rate."""
        settings = self.settings
        factor = learning_rate_factor(self.done, settings.steps, schedule=settings.schedule, warmup=settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        self.whole = False
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def close_step(self, terms: Mapping[str, torch.Tensor]) -> None:
        """Note this process's detached terms () of the step's loss, and count the step as done."""
        means = self.processes.mean(torch.stack(list(terms.values())))
        self.history.add(dict(zip(terms, means, strict=True)))
        self.done, self.whole = self.done + 1, True

    def report(self) -> Mapping[str, torch.Tensor]:
        """What happened since the last report. Raises RuntimeError where a term was not finite."""
        losses = self.history.fetch()
        for name, values in losses.items():
            if not bool(torch.isfinite(values).all()):
                which = "the loss" if name == "loss" else name
                raise RuntimeError(f"{which} is no longer finite by step {self.done}; try a smaller learning rate")
        return losses

    def save(self, seconds: float) -> Path:
        """Write a checkpoint; its path."""
        state = {**self.network_state(), "optimizer": self.optimizer.state_dict()["state"], "done": self.done}
        checkpoint = Checkpoint(self.identity, state, self.history.tensors(), {"seconds": seconds})
        return save_checkpoint(self.settings.checkpoint_dir, self.done, checkpoint)

    def restore(self, source: Path) -> float:
        """Go on from a checkpoint, or the newest of a folder; returns the seconds that went into it.

        Raises as `go_on_from` and `require_same_run`.
        """
        return go_on_from(source, self._take_over)

    def _take_over(self, checkpoint: Checkpoint) -> float:
        require_same_run(self.identity, checkpoint)
        with autograd():
            self.load_network_state(checkpoint.state)
            restore_optimizer(self.optimizer, checkpoint.state["optimizer"])
        self.done = checkpoint.state["done"]
        self.history = History(checkpoint.losses)
        return float(checkpoint.facts["seconds"])
