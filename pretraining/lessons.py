"""What a denoiser practises on: cached latents, captions drawn anew at each visit, and the frozen text encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ..core.models.tiny.weights import read_tensors
from ..core.world.scenes import Scene
from .captions import Words, sample_captions, token_batch
from .forms import Form
from .pictures import pictures
from .processes import Processes
from .run import Run

CAPTION_DROPOUT = 0.1
SHARE_OF_PAIRS = 0.4
"""Share of visits that go to scenes with a second object (a quarter of all scenes): they are the harder ones."""
PRACTICE = {"plain": 1.0, "two-tone": 2.0, "striped": 4.0, "spotted": 4.0}
"""How often subjects of each texture are visited, beside a plain one: colours have places to be learned, and the
smaller their places the more practice it takes."""
CAPTIONS = 2
"""Captions that are drawn for a visit; the one that says more of a subject's two colours is taken."""
VALIDATED = 128


def latents(folder: Path, split: str, n: int, processes: Processes, form: Form) -> torch.Tensor:
    """Encoded pictures (n, channels, 16, 16) fp16; every process encodes its share once, then all read the files."""
    rank, size = processes.rank, processes.size
    stem = f"{split}-{n}.{encoder_digest(form)}.latents"
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
    for key, value in sorted(read_tensors(form.found("vae")).items()):
        if key.startswith("encoder."):
            digest.update(value.numpy().tobytes())
    return digest.hexdigest()[:8]


class Told(NamedTuple):
    """What a denoiser is told of a batch: the final norm's output (B, L, width), and the whole text's embedding."""

    states: torch.Tensor
    pooled: torch.Tensor


class Lesson(NamedTuple):
    """A batch: latents (B, channels, 16, 16), what is told of them, and how much of each latent's place is the subject
    and the second object (B, 2, 16, 16), 0 to 1."""

    x0: torch.Tensor
    told: Told
    objects: torch.Tensor


def object_shares(masks: np.ndarray, side: int) -> torch.Tensor:
    """Share of each of `side` x `side` places that subject and second object cover, (n, 2, side, side) fp16.

    `masks` (n, height, width) has bit 1 for the subject and bit 2 for the second object; `side` divides its sides.
    """
    out = torch.empty(len(masks), 2, side, side, dtype=torch.float16)
    for first in range(0, len(masks), 1024):
        part = torch.from_numpy(np.array(masks[first : first + 1024]))
        both = torch.stack([part & 1, (part >> 1) & 1], 1).float()
        out[first : first + len(part)] = F.adaptive_avg_pool2d(both, side).half()
    return out


def chances(scenes: Sequence[Scene]) -> torch.Tensor:
    """The share of all visits that each scene gets (n,), by `SHARE_OF_PAIRS` and `PRACTICE`. There is one scene with a
    second object at least and one without."""
    pair = torch.tensor([scene.second is not None for scene in scenes])
    weight = torch.tensor([PRACTICE[scene.texture] for scene in scenes], dtype=torch.float64)
    share = torch.where(pair, SHARE_OF_PAIRS / weight[pair].sum(), (1 - SHARE_OF_PAIRS) / weight[~pair].sum())
    return (weight * share).float()


class Lessons:
    """Scenes of the world as latents with their captions; one batch after another, on the device of `processes`."""

    def __init__(self, folder: Path, processes: Processes, form: Form, scenes: int, share: int, tokens: int) -> None:
        self.device, self.share, self.tokens = processes.device, share, tokens
        self.world, _, masks = pictures(folder / "pictures", "train", scenes)
        self.test_world, _, _ = pictures(folder / "pictures", "test", 256)
        self.latents = latents(folder, "train", scenes, processes, form)
        self.test_latents = latents(folder, "test", 256, processes, form)
        self.objects = object_shares(masks, self.latents.shape[-1])
        self.words = Words()
        self.text = form.load("text_encoder", self.device)
        self.text.config._attn_implementation = "eager"
        self.chance = chances(self.world)

    def encode(self, captions: list[str]) -> Told:
        """Captions as the frozen text encoder has them."""
        ids = token_batch(captions, self.words, self.tokens).to(self.device)
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16):
            out = self.text(input_ids=ids)
        return Told(out.last_hidden_state.float(), out.text_embeds.float())

    def batch(self, run: Run, rng: np.random.Generator) -> Lesson:
        """Drawn scenes and their captions, a tenth of which is empty."""
        index = torch.multinomial(self.chance, self.share, replacement=True, generator=run.generator)
        captions = sample_captions(self.world, index.tolist(), rng, CAPTIONS)
        dropped = torch.rand(self.share, generator=run.generator) < CAPTION_DROPOUT
        captions = ["" if drop else c for drop, c in zip(dropped.tolist(), captions, strict=True)]
        x0, objects = (kept[index].float().to(self.device) for kept in (self.latents, self.objects))
        return Lesson(x0, self.encode(captions), objects)

    def held_out(self) -> tuple[torch.Tensor, torch.Tensor, Told, Told]:
        """Latents of held-out scenes, noise, their captions, and empty ones; the same at every call."""
        captions = sample_captions(self.test_world, list(range(VALIDATED)), np.random.default_rng(7))
        x0 = self.test_latents[:VALIDATED].float().to(self.device)
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(8)).to(self.device)
        return x0, noise, self.encode(captions), self.encode([""] * VALIDATED)
