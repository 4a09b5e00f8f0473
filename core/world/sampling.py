"""Plain DDIM sampling with classifier-free guidance for the tiny model: the reports' and the training's own sampler."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..models.tiny import config

Denoiser = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""`(z (B, 4, h, w), t (B,), context (B, L, d)) -> v (B, 4, h, w)`."""

STEPS, GUIDANCE = 25, 4.0


def alpha_bar() -> torch.Tensor:
    """SD's "scaled linear" schedule: alpha_bar (1000,) float64 (METHODS.md section 0)."""
    s = config.SCHEDULER
    steps = s["num_train_timesteps"]
    betas = torch.linspace(s["beta_start"] ** 0.5, s["beta_end"] ** 0.5, steps, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


@torch.no_grad()
def ddim(
    denoise: Denoiser,
    context: torch.Tensor,
    empty: torch.Tensor,
    seed: int,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    size: int = config.LATENT_SIZE,
) -> torch.Tensor:
    """Latents (B, 4, size, size) for contexts (B, L, d); `empty` (1, L, d) is the empty prompt's context.

    DDIM with eta 0 on a v-predicting network, timesteps evenly spaced from 999 down, guided as
    `v = v_empty + guidance (v_prompt - v_empty)`. Picture i depends on `seed`, i and its prompt alone, on the CPU's
    random stream.
    """
    batch, device = len(context), context.device
    noises = [torch.randn(4, size, size, generator=torch.Generator().manual_seed(seed + i)) for i in range(batch)]
    z = torch.stack(noises).to(device)
    ab = alpha_bar().to(device)
    times = torch.linspace(999, 0, steps + 1).round().long()[:-1].tolist()
    both = torch.cat([empty.expand(batch, -1, -1), context])
    for i, t in enumerate(times):
        now = ab[t].float()
        later = ab[times[i + 1]].float() if i + 1 < steps else torch.ones((), device=device)
        v_empty, v_prompt = denoise(z.repeat(2, 1, 1, 1), torch.full((2 * batch,), t, device=device), both).chunk(2)
        v = v_empty + guidance * (v_prompt - v_empty)
        x0 = now.sqrt() * z - (1 - now).sqrt() * v
        noise = now.sqrt() * v + (1 - now).sqrt() * z
        z = later.sqrt() * x0 + (1 - later).sqrt() * noise
    return z
