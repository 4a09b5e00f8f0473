"""All that a training step changes: the concept's vectors, their optimizer, norm rule, average and loss scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..concept import Concept
from ..maths import norms
from ..models.protocol import TextEncoder, TextToImageModel
from .schedules import learning_rate_factor
from .settings import TrainSettings, optimizer_class

LOSS_SCALE = 2.0**16
LOSS_SCALE_PATIENCE = 2000
"""Steps without an overflow after which the scale of fp16 losses doubles (torch's GradScaler takes the same)."""

TensorTree = dict[str, torch.Tensor]


def starting_vectors(encoder: TextEncoder, class_word: str, length: int) -> torch.Tensor:
    """(length, d) float32 input embeddings of the class word's tokens, taken in order and again from the first where
    there are more vectors than tokens; one vector of a phrase is its first token (METHODS.md 1.4 no. 1).

    Raises ValueError where the class word has no token.
    """
    tokens = encoder.tokenize(class_word)
    if not tokens:
        raise ValueError(f"the class word {class_word!r} holds no token of {encoder.name}")
    rows = [tokens[index % len(tokens)] for index in range(length)]
    return encoder.table()[rows].detach().float().clone()


def vectors_of(concept: Concept, model: TextToImageModel, length: int) -> TensorTree:
    """The vectors of a concept to continue from. Raises ValueError where they do not fit the model or `length`."""
    wanted = {name: (length, encoder.width) for name, encoder in model.text_encoders.items()}
    found = {name: tuple(value.shape) for name, value in concept.vectors.items()}
    if wanted != found:
        raise ValueError(f"the concept {concept.name!r} has vectors {found}, this training needs {wanted}")
    return {name: concept.vectors[name].detach().float().clone() for name in wanted}


class Learner:
    """Float32 master vectors, one leaf (n, d) a text encoder, and everything that moves with them.

    `done` counts finished steps. A step is all or nothing: where its loss or gradient is not finite, or an interrupt
    arrives in the middle, vectors and optimizer are what they were before it. The first is decided on the device.
    """

    def __init__(self, model: TextToImageModel, settings: TrainSettings, initial: Mapping[str, torch.Tensor]) -> None:
        self.settings = settings
        self.device = model.device
        self.done = 0
        self.window = norms.rescale_window(settings.steps, *settings.window)
        self.vectors: TensorTree = {}
        self.norms: TensorTree = {}
        for name, encoder in model.text_encoders.items():
            self._enter(name, encoder, initial[name])
        self.initial = {name: value.detach().clone() for name, value in self.vectors.items()}
        self.average = {name: value.detach().clone() for name, value in self.vectors.items()} if settings.ema else {}
        self.optimizer = self._make_optimizer()
        half = settings.precision == "fp16" or (settings.precision == "model" and model.dtype == torch.float16)
        self.scale = torch.tensor(LOSS_SCALE if half else 1.0, device=self.device)
        self.calm = torch.zeros((), device=self.device)
        self.failed = torch.zeros((), dtype=torch.bool, device=self.device)
        self.scaled = half

    def _enter(self, name: str, encoder: TextEncoder, start: torch.Tensor) -> None:
        mean_norm = None
        if self.settings.norm_mode in ("fixed_mean", "spherical"):
            specials = sorted({encoder.bos, encoder.eos, encoder.pad})
            mean_norm = norms.vocabulary_norm(encoder.table().detach(), specials).to(self.device)
        rows, norm = norms.enter(self.settings.norm_mode, start.to(self.device), mean_norm)
        self.vectors[name] = rows.detach().clone().requires_grad_(True)
        if norm is not None:
            self.norms[name] = norm

    def _make_optimizer(self) -> torch.optim.Optimizer:
        kind = optimizer_class(self.settings.optimizer)
        options = {"lr": self.settings.learning_rate, **self.settings.optimizer_options}
        try:
            return kind(list(self.vectors.values()), **options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.settings.optimizer} does not take the options {options}: {error}") from error

    @property
    def numbers(self) -> int:
        """How many numbers are trained."""
        return sum(value.numel() for value in self.vectors.values())

    def learned(self) -> TensorTree:
        """The vectors as they are now, their running average where there is one: float32 on the CPU."""
        return {name: value.detach().to("cpu", copy=True) for name, value in (self.average or self.vectors).items()}

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of `loss` to the vectors, scaled up in half precision so that it does not vanish."""
        (loss * self.scale if self.scaled else loss).backward()

    def step(self, loss: torch.Tensor) -> torch.Tensor:
        """Move the vectors by what `backward` gathered. `loss` is the detached total, looked at for being finite.

        Returns a device flag (): this or an earlier step was not finite, and nothing moves any more.
        """
        gradients = self._gradients()
        total = torch.stack([value.abs().sum() for value in gradients]).sum()
        finite = torch.isfinite(loss) & torch.isfinite(total)
        hopeless = ~torch.isfinite(loss) | (self.scale <= 1) if self.scaled else torch.ones_like(finite)
        failed = self.failed | (~finite & hopeless)
        good = finite & ~failed
        before = self._snapshot()
        try:
            self._move(gradients, good)
            self._keep_where(good, before)
            self._rescale_loss(finite)
            self.failed = failed
            self.done += 1
        except BaseException:
            self._restore(before)
            raise
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        return failed

    def forget_gradients(self) -> None:
        """Drop what a step that was interrupted halfway had gathered."""
        self.optimizer.zero_grad(set_to_none=True)

    def _gradients(self) -> list[torch.Tensor]:
        return [
            torch.zeros_like(value) if value.grad is None else value.grad / self.scale if self.scaled else value.grad
            for value in self.vectors.values()
        ]

    def _move(self, gradients: list[torch.Tensor], good: torch.Tensor) -> None:
        mode, number = self.settings.norm_mode, self.done + 1
        for value, gradient in zip(self.vectors.values(), gradients, strict=True):
            gradient = torch.where(good, gradient, torch.zeros_like(gradient))
            value.grad = norms.direct(mode, gradient, value.detach())
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * learning_rate_factor(
                self.done, self.settings.steps, schedule=self.settings.schedule, warmup=self.settings.warmup
            )
        self.optimizer.step()
        with torch.no_grad():
            for name, value in self.vectors.items():
                rows, norm = norms.constrain(
                    mode, value.detach(), self.norms.get(name), step=number, window=self.window
                )
                value.copy_(rows)
                if norm is not None:
                    self.norms[name] = norm
                if self.average:
                    self.average[name].lerp_(value, 1 - self.settings.ema)

    def _snapshot(self) -> dict[str, Any]:
        state = self.optimizer.state
        return {
            "vectors": {name: value.detach().clone() for name, value in self.vectors.items()},
            "average": {name: value.clone() for name, value in self.average.items()},
            "norms": dict(self.norms),
            "optimizer": {key: {k: _copy(v) for k, v in values.items()} for key, values in state.items()},
            "scale": (self.scale, self.calm, self.failed),
            "done": self.done,
        }

    @torch.no_grad()
    def _keep_where(self, good: torch.Tensor, before: dict[str, Any]) -> None:
        """Undo the step where it was not `good`, without asking the host."""
        for kind in ("vectors", "average"):
            for name, value in getattr(self, kind).items():
                value.copy_(torch.where(good, value, before[kind][name]))
        for key, values in before["optimizer"].items():
            for name, old in values.items():
                new = self.optimizer.state[key][name]
                # Step counters live on the CPU beside a GPU's vectors; one step too many there shifts Adam's bias
                # correction by a step and nothing else.
                if isinstance(old, torch.Tensor) and old.device == good.device:
                    new.copy_(torch.where(good, new, old))
        if self.settings.norm_mode == "core_window":
            for name, old in before["norms"].items():
                self.norms[name] = torch.where(good, self.norms[name], old)

    def _rescale_loss(self, finite: torch.Tensor) -> None:
        if not self.scaled:
            return
        calm = torch.where(finite, self.calm + 1, torch.zeros_like(self.calm))
        grown = torch.where(calm >= LOSS_SCALE_PATIENCE, self.scale * 2, self.scale)
        self.scale = torch.where(finite, grown, self.scale / 2)
        self.calm = torch.where(calm >= LOSS_SCALE_PATIENCE, torch.zeros_like(calm), calm)

    @torch.no_grad()
    def _restore(self, before: dict[str, Any]) -> None:
        for kind in ("vectors", "average"):
            for name, value in getattr(self, kind).items():
                value.copy_(before[kind][name])
        self.norms = before["norms"]
        self.optimizer.state.clear()
        self.optimizer.state.update(before["optimizer"])
        self.scale, self.calm, self.failed = before["scale"]
        self.done = before["done"]

    def state(self) -> dict[str, Any]:
        """Everything as one tree of tensors and plain values, for a checkpoint."""
        return {
            "vectors": {name: value.detach() for name, value in self.vectors.items()},
            "initial": self.initial,
            "average": self.average,
            "norms": self.norms,
            "optimizer": self.optimizer.state_dict()["state"],
            "loss_scale": self.scale,
            "calm": self.calm,
            "done": self.done,
        }

    @torch.no_grad()
    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave, on any device."""
        for name, value in self.vectors.items():
            value.copy_(state["vectors"][name])
            self.initial[name] = state["initial"][name].to(self.device)
            if self.average:
                self.average[name].copy_(state["average"][name])
        self.norms = {name: value.to(self.device) for name, value in state["norms"].items()}
        groups = self.optimizer.state_dict()["param_groups"]
        entries = {int(key): value for key, value in state["optimizer"].items()}
        self.optimizer.load_state_dict({"state": entries, "param_groups": groups})
        self.scale, self.calm = state["loss_scale"].to(self.device), state["calm"].to(self.device)
        self.done = int(state["done"])


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
