"""What a tuning-encoder says about pictures, put to use: seen by the UNet, said in prompts, applied to its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch

from ...models.image_encoder import ImageFeatures
from ...models.low_rank import LowRankDelta
from ...models.protocol import Conditioning, ImageSize, TextToImageModel
from ...models.text import encode_prompts
from ...networks.hypernetwork import Factors
from ...networks.trunk import TrunkFeatures
from ...networks.tuning_encoder import TuningEncoder
from ...prompts.tokens import input_embeddings, tokenize_prompt
from ..run.draws import generator_for, send
from ..run.noising import Noising

PREDICTION_TEMPLATE = "a photo of a {}"
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


def predicted_conditioning(
    model: TextToImageModel, vectors: Mapping[str, torch.Tensor], templates: Sequence[str], size: ImageSize
) -> Conditioning:
    """Prompt i with row i of `vectors` ((B, d) by text encoder) in its placeholder, differentiably."""
    encodings = {}
    for name, encoder in model.text_encoders.items():
        prompts = [tokenize_prompt(encoder, template, rows=1) for template in templates]
        # Each prompt's one concept row is its own: input_embeddings then places a whole batch of words at once.
        own = [
            replace(prompt, concept_rows=tuple(index if row >= 0 else row for row in prompt.concept_rows))
            for index, prompt in enumerate(prompts)
        ]
        encodings[name] = encoder.encode(*input_embeddings(encoder, own, vectors[name].float()))
    return model.conditioning(encodings, size)


@torch.no_grad()
def worded_conditioning(
    model: TextToImageModel, words: Sequence[str], templates: Sequence[str], size: ImageSize
) -> Conditioning:
    """Prompt i with plain word i in its placeholder."""
    encodings = {}
    for name, encoder in model.text_encoders.items():
        prompts = [tokenize_prompt(encoder, text, words=word) for text, word in zip(templates, words, strict=True)]
        encodings[name] = encoder.encode(*input_embeddings(encoder, prompts, None))
    return model.conditioning(encodings, size)


def deltas_of(factors: Mapping[str, Factors], *, copies: int = 1) -> dict[str, LowRankDelta]:
    """The deltas of every picture (METHODS.md D1) for a batch that holds the pictures `copies` times."""
    return {name: LowRankDelta(a.repeat(copies, 1, 1), b.repeat(copies, 1, 1)) for name, (a, b) in factors.items()}
