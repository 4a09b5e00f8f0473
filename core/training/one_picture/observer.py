"""What the UNet's encoder sees of noisy pictures, for a tuning-encoder to look at (METHODS.md 3.2)."""

from __future__ import annotations

from functools import cached_property

import torch

from ...models.image_encoder import ImageFeatures
from ...models.protocol import Conditioning, ImageSize, TextToImageModel
from ...models.text import encode_prompts
from ...networks.trunk import TrunkFeatures
from ...networks.tuning_encoder import TuningEncoder
from ..run.draws import generator_for, send
from ..run.noising import Noising

TIMESTEP_UNIT = 1000
"""An encoder's timesteps count this many to a noise schedule, however many it has."""


class Observer:
    """The UNet's encoder looking at noisy latents under the empty prompt (METHODS.md 3.2)."""

    def __init__(self, model: TextToImageModel, size: ImageSize) -> None:
        self.model, self.size = model, size

    @cached_property
    @torch.no_grad()
    def empty(self) -> Conditioning:
        """The empty prompt's (1, L, D)."""
        return self.model.conditioning(encode_prompts(self.model, [""]), self.size)

    @cached_property
    def _noised(self) -> Noising:
        return Noising(self.model)

    def maps(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> list[torch.Tensor]:
        """`model.features` of latents (B, C, h, w) with that noise at timesteps (B,)."""
        z_t = self._noised(latents, noise, timesteps).latents
        return self.model.features(z_t, timesteps, self.empty.expand(len(latents)))

    def channels(self) -> list[int]:
        """How wide each of the maps is."""
        side = self.size.height // self.model.latent_factor
        clean = torch.zeros(1, self.model.latent_channels, side, side, device=self.model.device)
        return [
            int(one.shape[1]) for one in self.maps(clean, clean, torch.zeros(1, dtype=torch.long, device=clean.device))
        ]

    def look(self, encoder: TuningEncoder, latents: torch.Tensor, features: ImageFeatures) -> TrunkFeatures:
        """The trunk's mean over the encoder's own timesteps, each with its own fixed noise, the same for every picture
        (METHODS.md 3.2)."""
        parts = []
        for number, timestep in enumerate(encoder.timesteps):
            noise = torch.randn(latents.shape[1:], generator=generator_for(encoder.seed, "prediction", number))
            tick = timestep * self.model.schedule.steps // TIMESTEP_UNIT
            ticks = torch.full((len(latents),), tick, device=latents.device)
            maps = self.maps(latents, send(noise, latents.device).expand_as(latents), ticks)
            parts.append(encoder.look(features, maps))
        return TrunkFeatures.mean(parts)
