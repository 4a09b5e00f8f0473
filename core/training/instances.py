"""What one step looks at: training pictures with noise on them, the prompts beside them, and how much each counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch

from ..maths.schedule import min_snr_weight
from ..models.protocol import TextToImageModel
from .latent_bank import LatentBank
from .run.draws import Draws, draw_step, drawn_rows
from .run.noising import Noised, Noising
from .settings import TrainSettings


@dataclass(frozen=True)
class InstanceBatch:
    """B samples: noised latents, the numbers of their prompts (`templates`), and what their errors are weighed with.

    `pixels` (B, 1, h, w) and `samples` (B,) are None where all count alike.
    """

    noised: Noised
    templates: tuple[int, ...]
    pixels: torch.Tensor | None
    samples: torch.Tensor | None

    def parts(self, size: int) -> Iterator[InstanceBatch]:
        """Consecutive batches of `size`."""
        for start in range(0, len(self.templates), size):
            rows = slice(start, start + size)
            pixels, samples = (None if value is None else value[rows] for value in (self.pixels, self.samples))
            yield InstanceBatch(self.noised[rows], self.templates[rows], pixels, samples)


class Instances:
    """The batch of every step of a run, as its seed decides (METHODS.md 1.4)."""

    def __init__(self, model: TextToImageModel, settings: TrainSettings, bank: LatentBank) -> None:
        self.settings, self.bank, self.device = settings, bank, model.device
        self.noising = Noising(model)
        low, high = (round(share * model.schedule.steps) for share in settings.timestep_range)
        self.timesteps = range(low, max(high, low + 1))
        self.own = settings.prompts_of_pictures
        if len(self.own) not in (0, bank.pictures):
            raise ValueError(f"{bank.pictures} pictures have captions for {len(self.own)}: one entry for each")
        self._seen, self._span = range(0), 1

    def __call__(self, step: int) -> InstanceBatch:
        """The batch of `step`, 0 the first, on the device."""
        draws, bank, gamma = self.draw(step), self.bank, self.settings.min_snr_gamma
        self._see_to(step)
        latents, pixels = bank.at(draws.rows)
        noised = self.noising(latents, draws.noise, draws.timesteps)
        samples = None if gamma is None else min_snr_weight(self.noising.kind, noised.alpha_bar, gamma)
        return InstanceBatch(noised, draws.templates, pixels, samples)

    def draw(self, step: int) -> Draws:
        """The random choices of `step`."""
        settings, bank = self.settings, self.bank
        return draw_step(
            settings.seed,
            step,
            batch=settings.samples,
            pictures=bank.pictures,
            versions=bank.versions,
            shape=bank.shape,
            timesteps=self.timesteps.stop - self.timesteps.start,
            first_timestep=self.timesteps.start,
            templates=len(settings.templates),
            own=self.own,
            device=self.device,
        )

    def _see_to(self, step: int) -> None:
        """That all is encoded which `step` draws. Each time twice as many steps are seen to, so that the first step
        waits for nothing else, and the autoencoder comes and goes a few times only."""
        bank, settings = self.bank, self.settings
        if bank.complete or step in self._seen:
            return
        self._seen = range(step, max(step + 1, min(step + self._span, settings.steps)))
        self._span *= 2
        rows = [drawn_rows(settings.seed, one, settings.samples, bank.pictures, bank.versions) for one in self._seen]
        bank.need([*chain(*rows)])
