"""The loop every stage shares: warm-up, constant rate, decay; average gradients; EMA; checkpoints that resume."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .muon import Muon
from .processes import Processes


@dataclass(frozen=True)
class Plan:
    """Length and pace of a stage. `decay` is the share of the steps, at the end, over which the rate falls to zero."""

    steps: int
    rate: float
    warm_up: int = 100
    decay: float = 0.3
    weight_decay: float = 0.01
    ema: float = 0.0
    clip: float = 1.0
    muon: bool = False
    save_every: int = 500

    def rate_at(self, step: int) -> float:
        """Learning rate of `step`, counted from 0."""
        falling = self.steps * self.decay
        return self.rate * min(1.0, (step + 1) / self.warm_up, max(0.0, (self.steps - step) / max(falling, 1.0)))


class Run:
    """One stage in training. Its checkpoint in `folder` holds weights, EMA, optimizer, step and every RNG state."""

    def __init__(
        self, name: str, modules: dict[str, torch.nn.Module], plan: Plan, folder: Path, processes: Processes
    ) -> None:
        self.name, self.modules, self.plan, self.folder, self.processes = name, modules, plan, folder, processes
        self.parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
        kind = Muon if plan.muon else torch.optim.AdamW
        self.optimizer = kind(self.parameters, lr=plan.rate, betas=(0.9, 0.99), weight_decay=plan.weight_decay)
        self.ema = [p.detach().clone() for p in self.parameters] if plan.ema else []
        self.generator = torch.Generator().manual_seed(1000 + processes.rank)
        self.step = 0
        folder.mkdir(parents=True, exist_ok=True)
        self.restore()

    def path(self, rank: int | None = None) -> Path:
        return self.folder / (f"{self.name}.pt" if rank is None else f"{self.name}.rng{rank}.pt")

    def restore(self) -> None:
        """Continue from the checkpoint, where there is one."""
        if not self.path().exists():
            return
        state = torch.load(self.path(), map_location="cpu", weights_only=True)
        for key, module in self.modules.items():
            module.load_state_dict(state["modules"][key])
        if state.get("muon", False) == self.plan.muon:  # another optimizer starts afresh on the same weights
            self.optimizer.load_state_dict(state["optimizer"])
        self.ema = [e.to(p.device) for e, p in zip(state["ema"], self.parameters, strict=True)] if state["ema"] else []
        self.step = state["step"]
        own = self.path(self.processes.rank)
        if own.exists():
            self.generator.set_state(torch.load(own, weights_only=True)["generator"])

    def save(self) -> None:
        """Write the checkpoint beside the old one, then put it in its place."""
        _replace({"generator": self.generator.get_state()}, self.path(self.processes.rank))
        if self.processes.first:
            state = {
                "modules": {key: module.state_dict() for key, module in self.modules.items()},
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema,
                "muon": self.plan.muon,
                "step": self.step,
            }
            _replace(state, self.path())
        self.processes.wait()

    def train(
        self,
        loss: Callable[[], torch.Tensor],
        after: Callable[[int], dict[str, float] | None] | None = None,
        log_every: int = 50,
    ) -> None:
        """Take the remaining steps. `after(step)` may return figures for the log, e.g. of a validation."""
        began, first_step, total = time.time(), self.step, torch.zeros((), device=self.processes.device)
        while self.step < self.plan.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.plan.rate_at(self.step)
            value = loss()
            self.optimizer.zero_grad(set_to_none=True)
            value.backward()
            self.processes.average_gradients(self.parameters)
            torch.nn.utils.clip_grad_norm_(self.parameters, self.plan.clip)
            self.optimizer.step()
            self.update_ema()
            self.step += 1
            total += value.detach()
            if self.step % log_every == 0:
                self.log({"loss": float(total) / log_every, "s/step": (time.time() - began) / (self.step - first_step)})
                total.zero_()
            if self.step % self.plan.save_every == 0 or self.step == self.plan.steps:
                self.save()
            figures = after(self.step) if after is not None else None
            if figures:
                self.log(figures)

    def update_ema(self) -> None:
        """`ema <- d ema + (1 - d) p`, with a shorter memory in the first steps."""
        if self.ema:
            decay = min(self.plan.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.parameters], 1 - decay)

    def averaged(self) -> list[torch.Tensor]:
        """The weights to ship: the EMA where there is one."""
        return self.ema or [p.detach() for p in self.parameters]

    def swap_ema(self) -> None:
        """Exchange weights and EMA; twice is where you began."""
        for p, e in zip(self.parameters, self.ema, strict=False):
            kept = p.detach().clone()
            p.data.copy_(e)
            e.copy_(kept)

    def log(self, figures: dict[str, float]) -> None:
        """Append one line to `<name>.jsonl` and print it (rank 0)."""
        if not self.processes.first:
            return
        line = json.dumps({"step": self.step, **{k: round(v, 5) for k, v in figures.items()}})
        print(self.name, line, flush=True)
        with (self.folder / f"{self.name}.jsonl").open("a") as file:
            file.write(line + "\n")


def _replace(state: dict, path: Path) -> None:
    fresh = path.with_suffix(".new")
    torch.save(state, fresh)
    os.replace(fresh, path)
