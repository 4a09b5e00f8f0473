"""All that a training step changes: the word's vectors, weights, their optimizer, norm rule, average, loss scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..maths import norms, sphere
from ..models.protocol import TextEncoder, TextToImageModel
from ..models.words import starting_vectors
from .run.checkpoint import restore_optimizer
from .run.loss_scale import LossScale
from .run.precision import gradient_dtype
from .run.schedules import learning_rate_factor
from .settings import TrainSettings, optimizer_class
from .word import Word

TensorTree = dict[str, torch.Tensor]


class Learner:
    """Float32 leaves and everything that moves with them: the learned `vectors` of the word, by text encoder, and the
    `weights`, by name. Only vectors know a norm rule.

    `done` counts finished steps. A step is all or nothing: where its loss or gradient is not finite, or an interrupt
    arrives in the middle, leaves and optimizer are what they were before it. The first is decided on the device.
    """

    def __init__(
        self,
        model: TextToImageModel,
        settings: TrainSettings,
        start: Word,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.settings = settings
        self.device = model.device
        self.done = 0
        self.window = norms.rescale_window(settings.steps, *settings.window)
        self.vectors: TensorTree = {}
        self.norms: TensorTree = {}
        self.toward: TensorTree = {}
        for name, value in start.learned.items():
            self._enter(name, model.text_encoders[name], value)
        fixed = {name: value.to(self.device) for name, value in start.fixed.items()}
        kept = {name: value.to(self.device) for name, value in start.kept.items()}
        self.word = Word(self.vectors, fixed, start.slot_of_layer, start.parts, kept)
        self.weights: TensorTree = dict(weights or {})
        self.leaves: TensorTree = {**self.vectors, **self.weights}
        self.initial = {name: value.detach().clone() for name, value in self.vectors.items()}
        self.average = {name: value.detach().clone() for name, value in self.leaves.items()} if settings.ema else {}
        self.optimizer = self._make_optimizer()
        self.scale = LossScale(gradient_dtype(settings.precision, model.dtype), self.device)
        self.failed = torch.zeros((), dtype=torch.bool, device=self.device)

    def _enter(self, name: str, encoder: TextEncoder, start: torch.Tensor) -> None:
        mean_norm = None
        if self.settings.norm_mode in norms.HELD:
            specials = sorted({encoder.bos, encoder.eos, encoder.pad})
            mean_norm = norms.vocabulary_norm(encoder.table().detach(), specials).to(self.device)
        rows, norm = norms.enter(self.settings.norm_mode, start.to(self.device), mean_norm)
        self.vectors[name] = rows.detach().clone().requires_grad_(True)
        if norm is not None:
            self.norms[name] = norm
        if self.walks:
            classes = starting_vectors(encoder, self.settings.class_word, rows.shape[-2]).to(self.device)
            self.toward[name] = classes.expand_as(rows)

    @property
    def walks(self) -> bool:
        """Whether vectors go a step of their own (METHODS.md 5.1) and not the optimizer's."""
        return self.settings.norm_mode == "dti"

    def _make_optimizer(self) -> torch.optim.Optimizer:
        kind = optimizer_class(self.settings.optimizer)
        options = {"lr": self.settings.learning_rate, **self.settings.optimizer_options}
        groups = [
            {"params": list(tree.values()), "lr": rate}
            for tree, rate in (
                ({} if self.walks else self.vectors, options["lr"]),
                (self.weights, self.settings.weight_rate or options["lr"]),
            )
            if tree or self.walks
        ]
        self.rates = [float(group["lr"]) for group in groups]
        try:
            return kind(groups, **options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.settings.optimizer} does not take the options {options}: {error}") from error

    @property
    def numbers(self) -> int:
        """How many numbers are trained."""
        return sum(value.numel() for value in self.leaves.values())

    def learned(self) -> Word:
        """The word as it is now, by its running average where there is one: float32 on the CPU."""
        now = self.average or self.leaves
        learned = {name: now[name].detach().to("cpu", copy=True) for name in self.vectors}
        if self.average and self.settings.norm_mode in norms.HELD:
            # The mean of points on a sphere lies inside it.
            learned = {name: norms.rescale(value, self.norms[name].cpu()) for name, value in learned.items()}
        fixed = {name: value.to("cpu", copy=True) for name, value in self.word.fixed.items()}
        kept = {name: value.to("cpu", copy=True) for name, value in self.word.kept.items()}
        return Word(learned, fixed, self.word.slot_of_layer, self.word.parts, kept)

    def learned_weights(self) -> TensorTree:
        """The weights as they are now, their running average where there is one: float32 on the CPU."""
        now = self.average or self.leaves
        return {name: now[name].detach().to("cpu", copy=True) for name in self.weights}

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of `loss` to the leaves, scaled up in half precision so that it does not vanish."""
        self.scale(loss).backward()

    def step(self, loss: torch.Tensor) -> torch.Tensor:
        """Move the leaves by what `backward` gathered. `loss` is the detached total, looked at for being finite.

        Returns a device flag (): this or an earlier step was not finite, and nothing moves any more.
        """
        gradients = self._gradients()
        total = torch.stack([value.abs().sum() for value in gradients]).sum()
        finite = torch.isfinite(loss) & torch.isfinite(total)
        failed = self.failed | (~finite & (~torch.isfinite(loss) | self.scale.hopeless()))
        good = finite & ~failed
        before = self._snapshot()
        try:
            self._move(gradients, good)
            self._keep_where(good, before)
            self.scale.adapt(finite)
            self.failed = failed
            self.done += 1
        except BaseException:
            self._restore(before)
            raise
        finally:
            self.forget_gradients()
        return failed

    def forget_gradients(self) -> None:
        """Drop what a step that was interrupted halfway had gathered."""
        for value in self.leaves.values():
            value.grad = None

    def _gradients(self) -> list[torch.Tensor]:
        return [
            torch.zeros_like(value) if value.grad is None else self.scale.undone(value.grad)
            for value in self.leaves.values()
        ]

    def _move(self, gradients: list[torch.Tensor], good: torch.Tensor) -> None:
        mode, number = self.settings.norm_mode, self.done + 1
        for (name, value), gradient in zip(self.leaves.items(), gradients, strict=True):
            gradient = torch.where(good, gradient, torch.zeros_like(gradient))
            value.grad = norms.direct(mode, gradient, value.detach()) if name in self.vectors else gradient
        factor = learning_rate_factor(
            self.done, self.settings.steps, schedule=self.settings.schedule, warmup=self.settings.warmup
        )
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        with torch.no_grad():
            if self.walks:
                self._walk(self.rates[0] * factor)
            for name, value in self.vectors.items():
                rows, norm = norms.constrain(
                    mode, value.detach(), self.norms.get(name), step=number, window=self.window
                )
                value.copy_(rows)
                if norm is not None:
                    self.norms[name] = norm
            for name, value in self.average.items():
                value.lerp_(self.leaves[name], 1 - self.settings.ema)

    def _walk(self, rate: float) -> None:
        for name, value in self.vectors.items():
            value.copy_(
                sphere.dti_step(value.detach(), value.grad, self.toward[name], rate=rate, kappa=self.settings.kappa)
            )

    def _snapshot(self) -> dict[str, Any]:
        state = self.optimizer.state
        return {
            "leaves": {name: value.detach().clone() for name, value in self.leaves.items()},
            "average": {name: value.clone() for name, value in self.average.items()},
            "norms": dict(self.norms),
            "optimizer": {key: {k: _copy(v) for k, v in values.items()} for key, values in state.items()},
            "scale": self.scale.state(),
            "failed": self.failed,
            "done": self.done,
        }

    @torch.no_grad()
    def _keep_where(self, good: torch.Tensor, before: dict[str, Any]) -> None:
        """Undo the step where it was not `good`, without asking the host."""
        for kind in ("leaves", "average"):
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
            # A norm changes once, when the window begins: where that step is undone, it is of the rows that stay.
            for name, norm in self.norms.items():
                self.norms[name] = torch.where(good, norm, norms.row_norms(self.vectors[name]))

    @torch.no_grad()
    def _restore(self, before: dict[str, Any]) -> None:
        for kind in ("leaves", "average"):
            for name, value in getattr(self, kind).items():
                value.copy_(before[kind][name])
        self.norms = before["norms"]
        self.optimizer.state.clear()
        self.optimizer.state.update(before["optimizer"])
        self.scale.load(before["scale"])
        self.failed = before["failed"]
        self.done = before["done"]

    def state(self) -> dict[str, Any]:
        """Everything as one tree of tensors and plain values, for a checkpoint."""
        return {
            "vectors": {name: value.detach() for name, value in self.vectors.items()},
            "weights": {name: value.detach() for name, value in self.weights.items()},
            "average": self.average,
            "norms": self.norms,
            "optimizer": self.optimizer.state_dict()["state"],
            "loss_scale": self.scale.value,
            "calm": self.scale.calm,
            "done": self.done,
        }

    @torch.no_grad()
    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave, on any device."""
        for name, value in self.vectors.items():
            value.copy_(state["vectors"][name])
        for name, value in self.weights.items():
            value.copy_(state["weights"][name])
        for name, value in self.average.items():
            value.copy_(state["average"][name])
        self.norms = {name: value.to(self.device) for name, value in state["norms"].items()}
        restore_optimizer(self.optimizer, state["optimizer"])
        self.scale.load({"value": state["loss_scale"], "calm": state["calm"]})
        self.done = int(state["done"])


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
