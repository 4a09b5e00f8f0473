"""Stage "vae": the TAESD-shaped autoencoder, trained on crops with the weight on what stands in the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..core.models.tiny.build import build_vae
from ..core.models.tiny.weights import write_weights
from ..core.world.scenes import WORLD_VERSION
from .pictures import pictures
from .processes import Processes
from .run import Plan, Run

CROP = 64
OBJECT_WEIGHT = 2.0
LATENT_NOISE = 0.08


def crops(
    images: np.ndarray, masks: np.ndarray, batch: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random crops (B, 3, 64, 64) in -1..1 and their object masks (B, 1, 64, 64)."""
    index = torch.randint(len(images), (batch,), generator=generator).tolist()
    corner = torch.randint(images.shape[1] - CROP + 1, (batch, 2), generator=generator).tolist()
    picked = np.stack([images[i, y : y + CROP, x : x + CROP] for i, (y, x) in zip(index, corner, strict=True)])
    shown = np.stack([masks[i, y : y + CROP, x : x + CROP] > 0 for i, (y, x) in zip(index, corner, strict=True)])
    x = torch.from_numpy(picked).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x, torch.from_numpy(shown)[:, None].float()


def gradients(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences between horizontal and vertical neighbours."""
    return x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruction_loss(decoded: torch.Tensor, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """L1 of pixels and of their gradients, `1 + OBJECT_WEIGHT` times as heavy on objects."""
    weight = 1 + OBJECT_WEIGHT * mask
    loss = (weight * (decoded - x).abs()).mean()
    for d, g, w in zip(gradients(decoded), gradients(x), (weight[..., 1:], weight[..., 1:, :]), strict=True):
        loss = loss + (w * (d - g).abs()).mean()
    return loss


def latent_loss(z: torch.Tensor) -> torch.Tensor:
    """Distance of each channel's mean from 0 and standard deviation from 1, so that no scaling factor is needed."""
    return (z.mean((0, 2, 3)) ** 2 + (z.std((0, 2, 3)) - 1) ** 2).mean()


@torch.no_grad()
def reconstruct(vae: torch.nn.Module, images: np.ndarray, device: torch.device) -> torch.Tensor:
    """Images (N, H, W, 3) uint8 through the autoencoder: float (N, 3, H, W) in 0..1."""
    out = []
    for start in range(0, len(images), 32):
        x = torch.from_numpy(np.array(images[start : start + 32])).permute(0, 3, 1, 2).float().to(device) / 127.5 - 1
        out.append(vae.decode(vae.encode(x).latents).sample.clamp(-1, 1).cpu() / 2 + 0.5)
    return torch.cat(out)


def psnr(vae: torch.nn.Module, images: np.ndarray, masks: np.ndarray, device: torch.device) -> dict[str, float]:
    """PSNR (dB) of whole pictures and of the objects in them."""
    x = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255
    error = (reconstruct(vae, images, device) - x).square().mean(1)
    mask = torch.from_numpy(np.array(masks) > 0).float()
    overall, objects = error.mean(), (error * mask).sum() / mask.sum()
    return {"psnr": float(-10 * torch.log10(overall)), "object_psnr": float(-10 * torch.log10(objects))}


def train_vae(folder: Path, processes: Processes, steps: int = 3000, batch: int = 32, scenes: int = 6000) -> None:
    """Train the autoencoder; its checkpoint is `folder/vae.pt`."""
    device = processes.device
    if processes.first:
        pictures(folder / "pictures", "train", scenes)
        pictures(folder / "pictures", "test", 256)
    processes.wait()
    _, images, masks = pictures(folder / "pictures", "train", scenes)
    _, test_images, test_masks = pictures(folder / "pictures", "test", 256)
    torch.manual_seed(0)
    vae = build_vae().to(device, memory_format=torch.channels_last)
    plan = Plan(steps, rate=2e-3, warm_up=100, decay=0.5, weight_decay=0.0, ema=0.995, save_every=250)
    run = Run("vae", {"vae": vae}, plan, folder, processes)
    share = batch // processes.size

    def loss() -> torch.Tensor:
        x, mask = (t.to(device) for t in crops(images, masks, share, run.generator))
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            z = vae.encode(x).latents
            noise = torch.randn(z.shape, generator=run.generator).to(device)
            decoded = vae.decode(z + LATENT_NOISE * noise).sample
        return reconstruction_loss(decoded.float(), x, mask) + 0.1 * latent_loss(z.float())

    def after(step: int) -> dict[str, float] | None:
        if step % 250 or not processes.first:
            return None
        run.swap_ema()
        figures = psnr(vae, test_images[:64], test_masks[:64], device)
        run.swap_ema()
        return figures

    run.train(loss, after)
    if processes.first:
        run.swap_ema()
        facts = {"steps": str(run.step), "world": WORLD_VERSION, "command": "pretraining.tiny_model --stage vae"}
        write_weights("vae", dict(vae.state_dict()), facts)
        run.log(psnr(vae, test_images, test_masks, device))
