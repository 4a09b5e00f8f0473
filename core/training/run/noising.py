"""The forward process of a training: what the UNet is shown, and what it is asked for (METHODS.md C1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...maths.schedule import add_noise, at_timesteps, prediction_target
from ...models.protocol import TextToImageModel
from .draws import alpha_bar_on


@dataclass(frozen=True)
class Noised:
    """Latents z_t (B, C, h, w) at `timesteps` (B,), the `target` of the prediction (B, C, h, w), and alpha-bar_t (B,).

    Indexed by a slice of the batch it is that part of it.
    """

    latents: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor
    alpha_bar: torch.Tensor

    def __getitem__(self, rows: slice) -> Noised:
        return Noised(self.latents[rows], self.timesteps[rows], self.target[rows], self.alpha_bar[rows])


class Noising:
    """A model's noise schedule on its device, as exact as it can be there."""

    def __init__(self, model: TextToImageModel) -> None:
        self.kind = model.schedule.prediction_type
        self.alpha_bar = alpha_bar_on(model.schedule, model.device)

    def __call__(self, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> Noised:
        """`clean` latents and as much `noise`, (B, C, h, w), brought to `timesteps` (B,) on the device."""
        alpha_bar_t = at_timesteps(self.alpha_bar, timesteps)
        z_t = add_noise(clean, noise, alpha_bar_t)
        return Noised(z_t, timesteps, prediction_target(self.kind, clean, noise, alpha_bar_t), alpha_bar_t)
