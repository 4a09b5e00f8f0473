"""Stage "transformer": flow matching on cached latents with joint attention, conditioned on the frozen text encoder.

Liu et al., "Flow Straight and Fast" (2022); Esser et al., "Scaling Rectified Flow Transformers" (2024); the network is
Flux.1's, made small.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..core.models.tiny import config
from ..core.models.tiny.flow import patches, places, shifted
from ..core.models.tiny.weights import write_tensors
from ..core.world.scenes import WORLD_VERSION
from .forms import BUNDLED, Form
from .lessons import Lessons, Told
from .processes import Processes
from .run import Plan, Run


def set_to_identity(network: torch.nn.Module) -> None:
    """Every block the identity and a prediction of 0 at first (adaLN-Zero: Peebles and Xie, "Scalable Diffusion Models
    with Transformers", 2022)."""
    for name, part in network.named_modules():
        modulation = isinstance(part, torch.nn.Linear) and ".norm" in f".{name}"
        if modulation or name == "proj_out":
            torch.nn.init.zeros_(part.weight)
            torch.nn.init.zeros_(part.bias)


def train_transformer(
    folder: Path,
    processes: Processes,
    steps: int = 6000,
    batch: int = 32,
    scenes: int = 24_000,
    compile_network: bool = True,
    form: Form = BUNDLED,
) -> None:
    """Train the transformer; every 250 steps its EMA becomes the form's weight file (rank 0)."""
    device = processes.device
    lessons = Lessons(folder, processes, form, scenes, batch // processes.size, config.FLOW_TOKENS)
    torch.manual_seed(0)
    network = form.build("transformer").to(device)
    set_to_identity(network)
    compiled = torch.compile(network, dynamic=False) if compile_network else network
    plan = Plan(steps, rate=2e-3, warm_up=200, decay=0.3, weight_decay=0.01, ema=0.999, save_every=250, muon=True)
    run = Run("transformer", {"transformer": network}, plan, folder, processes)
    rng = np.random.default_rng([11, processes.rank, run.step])
    side = config.LATENT_SIZE
    # The fused kernel's backward pass is slow on CPUs: 30 % of a step.
    kernels = [SDPBackend.MATH] if device.type == "cpu" else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    image_places, text_places = places(side, side).to(device), torch.zeros(config.FLOW_TOKENS, 3, device=device)

    def errors(
        network: torch.nn.Module, x0: torch.Tensor, told: Told, sigma: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        level = sigma[:, None, None, None]
        z = patches((1 - level) * x0 + level * noise)
        with torch.autocast(device.type, torch.bfloat16), sdpa_kernel(kernels):
            (v,) = network(
                z, told.states, told.pooled, sigma, img_ids=image_places, txt_ids=text_places, return_dict=False
            )
        return (v.float() - patches(noise - x0)).square().mean((1, 2))

    def loss() -> torch.Tensor:
        x0, told, _ = lessons.batch(run, rng)
        sigma = shifted(torch.rand(len(x0), generator=run.generator)).to(device)
        noise = torch.randn(x0.shape, generator=run.generator).to(device)
        return errors(compiled, x0, told, sigma, noise).mean()

    def after(step: int) -> dict[str, float] | None:
        if (step % 250 and step != plan.steps) or not processes.first:
            return None
        run.swap_ema()
        x0, noise, told, untold = lessons.held_out()
        sigma = torch.linspace(0.5, 0.98, len(x0)).to(device)
        with torch.no_grad():
            figures = {
                "val_caption": float(errors(network, x0, told, sigma, noise).mean()),
                "val_empty": float(errors(network, x0, untold, sigma, noise).mean()),
            }
        facts = {
            "steps": str(step),
            "world": WORLD_VERSION,
            "command": "pretraining.tiny_model --stage transformer",
        }
        write_tensors(form.path("transformer"), dict(network.state_dict()), facts)
        run.swap_ema()
        return figures

    run.train(loss, after)
