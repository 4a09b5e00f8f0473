"""Deterministic pictures: DDIM (Song et al., 2021) with classifier-free guidance (Ho and Salimans, 2022)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from einops import rearrange

from ..maths.schedule import PredictionType, predicted_noise, predicted_sample
from .protocol import AttentionWatcher, Conditioning, TextToImageModel

SampleCallback = Callable[[int, int, torch.Tensor], None]
"""Receives `(step, steps, z_0)` after every step, with the clean latents as predicted there; step counts from 1."""

SampleProbe = Callable[[int, int, slice], AttentionWatcher | None]
"""Receives `(step, steps, rows)` before every step, step counting from 0, and answers who watches its UNet pass; `rows`
are those of the conditional half."""


def ddim_timesteps(schedule_steps: int, steps: int) -> list[int]:
    """Evenly spaced timesteps that start at the last one, where the latents are all noise (Lin et al., 2024).

    Raises ValueError unless 1 <= steps <= schedule_steps.
    """
    if not 1 <= steps <= schedule_steps:
        raise ValueError(f"sampling takes 1 to {schedule_steps} steps, not {steps}")
    return [round(schedule_steps * (steps - index) / steps) - 1 for index in range(steps)]


def guided(unconditional: torch.Tensor, conditional: torch.Tensor, guidance: float) -> torch.Tensor:
    """Classifier-free guidance: u + guidance (c - u)."""
    return unconditional + guidance * (conditional - unconditional)


def ddim_sigma(alpha_bar: torch.Tensor, alpha_bar_next: torch.Tensor, eta: float) -> torch.Tensor:
    """The noise added by a DDIM step (Song et al., 2021, Eq. 16): 0 for eta = 0, that of DDPM for eta = 1."""
    ratio = (1 - alpha_bar_next) / (1 - alpha_bar)
    return eta * torch.sqrt(ratio * (1 - alpha_bar / alpha_bar_next))


def ddim_step(
    kind: PredictionType,
    prediction: torch.Tensor,
    latents: torch.Tensor,
    alpha_bar: torch.Tensor,
    alpha_bar_next: torch.Tensor,
    sigma: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Song et al., 2021, Eq. 12 without its noise: the clean latents as predicted, and those at `alpha_bar_next`."""
    z_0 = predicted_sample(kind, prediction, latents, alpha_bar)
    direction = predicted_noise(kind, prediction, latents, alpha_bar)
    return z_0, alpha_bar_next.sqrt() * z_0 + torch.sqrt(1 - alpha_bar_next - sigma**2) * direction


def generators(seed: int | Sequence[int], batch: int) -> list[torch.Generator]:
    """A CPU generator for each of `batch` pictures. Raises ValueError for another number of seeds."""
    seeds = [seed + index for index in range(batch)] if isinstance(seed, int) else list(seed)
    if len(seeds) != batch:
        raise ValueError(f"{batch} pictures need {batch} seeds, got {len(seeds)}")
    return [torch.Generator().manual_seed(one) for one in seeds]


@torch.no_grad()
def sample(
    model: TextToImageModel,
    positive: Conditioning,
    negative: Conditioning,
    *,
    shape: Sequence[int],
    steps: int = 25,
    guidance: float = 4.0,
    seed: int | Sequence[int],
    eta: float = 0.0,
    callback: SampleCallback | None = None,
    probe: SampleProbe | None = None,
    reached: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """Scaled latents of `shape` (B, C, h, w) for `positive` (1 or B prompts) guided away from `negative` (1 or B).

    Every picture draws from a CPU generator of its own, so its noise depends neither on its neighbours nor on the
    device: `seed` is one seed for each, or the first of consecutive ones. `reached` hears of every timestep before the
    pass at it.

    Raises ValueError for a wrong number of seeds or steps.
    """
    batch = int(shape[0])
    drawing = generators(seed, batch)

    def noise() -> torch.Tensor:
        return torch.stack([torch.randn(tuple(shape[1:]), generator=one) for one in drawing]).to(model.device)

    kind = cast(PredictionType, model.schedule.prediction_type)
    timesteps = ddim_timesteps(model.schedule.steps, steps)
    # One transfer before the loop; the last step ends at alpha_bar = 1, clean latents.
    path = torch.cat([model.schedule.alpha_bar[timesteps], torch.ones(1, dtype=torch.float64)])
    alpha_bars, ticks = path.float().to(model.device), torch.tensor(timesteps).to(model.device)
    both = Conditioning.cat([negative.expand(batch), positive.expand(batch)])

    latents = noise()
    for index in range(steps):
        alpha_bar, alpha_bar_next = alpha_bars[index], alpha_bars[index + 1]
        if reached is not None:
            reached(timesteps[index])
        watcher = None if probe is None else probe(index, steps, slice(batch, 2 * batch))
        output = model.predict(torch.cat([latents, latents]), ticks[index].expand(2 * batch), both, watcher)
        prediction = guided(*output.chunk(2), guidance)
        sigma = ddim_sigma(alpha_bar, alpha_bar_next, eta)
        z_0, latents = ddim_step(kind, prediction, latents, alpha_bar, alpha_bar_next, sigma)
        if eta > 0 and index + 1 < steps:
            latents = latents + sigma * noise()
        if callback is not None:
            callback(index + 1, steps, z_0)
    return latents


def as_pictures(images: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W) in [-1, 1], as a model gives them, as pictures (B, H, W, 3) float32 in [0, 1] on the CPU."""
    return rearrange((images.float().cpu() / 2 + 0.5).clamp(0, 1), "b c h w -> b h w c").contiguous()
