"""Stage "unet": v-prediction on cached latents, conditioned on the frozen text encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..core.maths.schedule import add_noise, alpha_bar, scaled_linear_betas, velocity
from ..core.models.tiny import config
from ..core.models.tiny.weights import read_tensors, write_tensors
from ..core.world.scenes import WORLD_VERSION
from .captions import Words, sample_captions, token_batch
from .forms import FORMS, Form, inherit
from .pictures import pictures
from .processes import Processes
from .run import Plan, Run

CAPTION_DROPOUT = 0.1
TIMESTEP_POWER = 0.75
"""Timesteps are `1000 u^0.75`, u uniform: a little more practice where the picture is still being decided."""
SHARE_OF_PAIRS = 0.4
"""Share of visits that go to scenes with a second object (a quarter of all scenes): they are the harder ones."""


def latents(folder: Path, split: str, n: int, processes: Processes, form: Form) -> torch.Tensor:
    """Encoded pictures (n, channels, 16, 16) fp16; every process encodes its share once, then all read the files."""
    rank, size = processes.rank, processes.size
    stem = f"{split}-{n}.{form.name}-{encoder_digest(form)}.latents"
    path = folder / "pictures" / f"{stem}{rank}of{size}.pt"
    if not path.exists():
        vae = form.load("vae", processes.device).to(memory_format=torch.channels_last)
        _, images, _ = pictures(folder / "pictures", split, n)
        mine, out = np.array_split(np.arange(n), size)[rank], []
        for index in np.array_split(mine, max(1, len(mine) // 64)):
            x = torch.from_numpy(np.array(images[index[0] : index[-1] + 1])).permute(0, 3, 1, 2).float() / 127.5 - 1
            with torch.no_grad(), torch.autocast(processes.device.type, torch.bfloat16):
                x = x.to(processes.device).contiguous(memory_format=torch.channels_last)
                out.append(vae.encode(x).latents.half().cpu().contiguous())
        torch.save(torch.cat(out), path)
    processes.wait()
    parts = [torch.load(path.with_name(f"{stem}{r}of{size}.pt"), weights_only=True) for r in range(size)]
    return torch.cat(parts)


def encoder_digest(form: Form) -> str:
    """Eight hex digits of the VAE encoder's weights: other weights make other latents, the decoder's make none."""
    digest = hashlib.sha256()
    for key, value in sorted(read_tensors(form.path("vae")).items()):
        if key.startswith("encoder."):
            digest.update(value.numpy().tobytes())
    return digest.hexdigest()[:8]


def inherit_unet(unet: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Take over a UNet on another form's latents: channels that it lacks are not heeded at first, and predicted as 0.

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
    form: str = "candidate",
    start: str = "bundled",
) -> None:
    """Train the UNet; every 250 steps its EMA becomes the form's weight file (rank 0).

    `form` is one of `FORMS`, `start` one of `STARTS`: the weights to begin from, on as many latent channels as they
    know, or "fresh" ones. `compile_network` saves about a fifth of the time on CPUs; the start takes minutes longer.
    """
    from diffusers.models.attention_processor import AttnProcessor

    device = processes.device
    world, _, _ = pictures(folder / "pictures", "train", scenes)
    test_world, _, _ = pictures(folder / "pictures", "test", 256)
    chosen = FORMS[form]
    train_latents = latents(folder, "train", scenes, processes, chosen)
    test_latents = latents(folder, "test", 256, processes, chosen)
    words = Words()
    text = chosen.load("text_encoder", device)
    text.config._attn_implementation = "eager"
    torch.manual_seed(0)
    unet = chosen.build("unet")
    if start != "fresh":
        inherit_unet(unet, read_tensors(FORMS[start].path("unet")))
    unet = unet.to(device)
    if device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())  # the fused kernel's backward pass is slow on CPUs
    compiled = torch.compile(unet, dynamic=False) if compile_network else unet
    plan = Plan(steps, rate=2e-3, warm_up=200, decay=0.3, weight_decay=0.01, ema=0.999, save_every=250, muon=True)
    run = Run("unet", {"unet": unet}, plan, folder, processes)
    share = batch // processes.size
    rng = np.random.default_rng([6, processes.rank, run.step])
    betas = scaled_linear_betas(*(config.SCHEDULER[key] for key in ("num_train_timesteps", "beta_start", "beta_end")))
    schedule = torch.from_numpy(alpha_bar(betas)).float().to(device)
    pair = torch.tensor([scene.second is not None for scene in world])
    chance = torch.where(pair, SHARE_OF_PAIRS / pair.sum(), (1 - SHARE_OF_PAIRS) / (~pair).sum())

    def encode(captions: list[str]) -> torch.Tensor:
        ids = token_batch(captions, words, config.POSITIONS).to(device)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            return text.text_model(input_ids=ids).last_hidden_state.float()

    def errors(
        network: Callable, x0: torch.Tensor, captions: list[str], t: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        ab = schedule[t]
        z = add_noise(x0, noise, ab)
        with torch.autocast(device.type, torch.bfloat16):
            v = network(z, t, encoder_hidden_states=encode(captions)).sample
        return (v.float() - velocity(x0, noise, ab)).square().mean((1, 2, 3))

    def loss() -> torch.Tensor:
        index = torch.multinomial(chance, share, replacement=True, generator=run.generator)
        captions = sample_captions(world, index.tolist(), rng)
        dropped = torch.rand(share, generator=run.generator) < CAPTION_DROPOUT
        captions = ["" if drop else c for drop, c in zip(dropped.tolist(), captions, strict=True)]
        t = (1000 * torch.rand(share, generator=run.generator) ** TIMESTEP_POWER).long().clamp(max=999).to(device)
        x0 = train_latents[index].float().to(device)
        noise = torch.randn(x0.shape, generator=run.generator).to(device)
        return errors(compiled, x0, captions, t, noise).mean()

    def after(step: int) -> dict[str, float] | None:
        if (step % 250 and step != plan.steps) or not processes.first:
            return None
        run.swap_ema()
        captions = sample_captions(test_world, list(range(128)), np.random.default_rng(7))
        generator = torch.Generator().manual_seed(8)
        t = torch.linspace(500, 980, 128).long().to(device)
        x0 = test_latents[:128].float().to(device)
        noise = torch.randn(x0.shape, generator=generator).to(device)
        with torch.no_grad():
            told = errors(unet, x0, captions, t, noise).mean()
            untold = errors(unet, x0, [""] * 128, t, noise).mean()
        facts = {"steps": str(step), "world": WORLD_VERSION, "command": f"pretraining.tiny_model --stage unet ({form})"}
        write_tensors(chosen.path("unet"), dict(unet.state_dict()), facts)
        run.swap_ema()
        return {"val_caption": float(told), "val_empty": float(untold)}

    run.train(loss, after)
