"""Stage "unet": v-prediction on cached latents, conditioned on the frozen text encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..core.maths.schedule import add_noise, alpha_bar, scaled_linear_betas, velocity
from ..core.models.tiny import config
from ..core.models.tiny.weights import read_tensors, write_tensors
from ..core.world.scenes import WORLD_VERSION
from .forms import BUNDLED, FRESH, Form, inherit, start_path
from .lessons import Lessons, Told
from .processes import Processes
from .run import Plan, Run

TIMESTEP_POWER = 0.75
"""Timesteps are `1000 u^0.75`, u uniform: a little more practice where the picture is still being decided."""
STRESS = (8.0, 8.0)
"""How much more an error weighs on the subject and on the second object than the 1 that it weighs on the background."""


def stressed(objects: torch.Tensor, share: float) -> torch.Tensor:
    """Weights (B, 1, h, w) of squared errors, of mean 1 over the batch: `1 + share * STRESS`, divided.

    `objects` (B, 2, h, w) is how much of each place the two cover. Objects are small and decide whether a prompt is
    obeyed, the background is most of the error. A weight that follows the picture draws predictions towards objects,
    so that `share` should end at 0.
    """
    subject, second = objects.split(1, 1)
    weights = 1 + share * (STRESS[0] * subject + STRESS[1] * second)
    return weights / weights.mean()


def inherit_unet(unet: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Take over a UNet on other latents: channels that it lacks are not heeded at first, and predicted as 0.

    Raises ValueError where more than the number of latent channels differs, or where `state` has more of them.
    """
    own = unet.state_dict()
    grown = {"conv_in.weight": 1, "conv_out.weight": 0, "conv_out.bias": 0}
    for key in grown:
        own[key] = torch.zeros_like(own[key])
    unet.load_state_dict(inherit(own, state, grown))


def train_unet(
    folder: Path,
    processes: Processes,
    steps: int = 5500,
    batch: int = 64,
    scenes: int = 24_000,
    compile_network: bool = True,
    form: Form = BUNDLED,
    start: str = "bundled",
    rate: float = 2e-3,
    decay: float = 0.3,
) -> None:
    """Train the UNet; every 250 steps its EMA becomes the form's weight file (rank 0).

    `start` is one of `STARTS`: the weights to begin from, on as many latent channels as they know, or "fresh" ones.
    `rate` falls to 0 over the last `decay` of the steps. `compile_network` saves about a fifth of the time on CPUs; the
    start takes minutes longer.
    """
    from diffusers.models.attention_processor import AttnProcessor

    device = processes.device
    lessons = Lessons(folder, processes, form, scenes, batch // processes.size, config.POSITIONS)
    torch.manual_seed(0)
    unet = form.build("unet")
    if start != FRESH:
        inherit_unet(unet, read_tensors(start_path(start, "unet")))
    unet = unet.to(device)
    if device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())  # the fused kernel's backward pass is slow on CPUs
    compiled = torch.compile(unet, dynamic=False) if compile_network else unet
    plan = Plan(steps, rate, warm_up=200, decay=decay, weight_decay=0.01, ema=0.999, save_every=250, muon=True)
    run = Run("unet", {"unet": unet}, plan, folder, processes)
    rng = np.random.default_rng([6, processes.rank, run.step])
    betas = scaled_linear_betas(*(config.SCHEDULER[key] for key in ("num_train_timesteps", "beta_start", "beta_end")))
    schedule = torch.from_numpy(alpha_bar(betas)).float().to(device)

    def errors(network: Callable, x0: torch.Tensor, told: Told, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        ab = schedule[t]
        z = add_noise(x0, noise, ab)
        with torch.autocast(device.type, torch.bfloat16):
            v = network(z, t, encoder_hidden_states=told.states).sample
        return (v.float() - velocity(x0, noise, ab)).square()

    def loss() -> torch.Tensor:
        x0, told, objects = lessons.batch(run, rng)
        t = (1000 * torch.rand(len(x0), generator=run.generator) ** TIMESTEP_POWER).long().clamp(max=999).to(device)
        noise = torch.randn(x0.shape, generator=run.generator).to(device)
        weights = stressed(objects, plan.rate_at(run.step) / plan.rate)
        return (weights * errors(compiled, x0, told, t, noise)).mean()

    def after(step: int) -> dict[str, float] | None:
        if (step % 250 and step != plan.steps) or not processes.first:
            return None
        run.swap_ema()
        x0, noise, told, untold = lessons.held_out()
        t = torch.linspace(500, 980, len(x0)).long().to(device)
        with torch.no_grad():
            figures = {
                "val_caption": float(errors(unet, x0, told, t, noise).mean()),
                "val_empty": float(errors(unet, x0, untold, t, noise).mean()),
            }
        facts = {"steps": str(step), "world": WORLD_VERSION, "command": "pretraining.tiny_model --stage unet"}
        write_tensors(form.path("unet"), dict(unet.state_dict()), facts)
        run.swap_ema()
        return figures

    run.train(loss, after)
