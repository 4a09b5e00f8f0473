"""What is minimised: the diffusion loss of the instance prompts (METHODS.md C1) and every regularizer's terms (C4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from ..maths.objective import weighted_sum
from ..maths.schedule import diffusion_loss
from ..models.protocol import Conditioning, TextToImageModel
from .instances import InstanceBatch, Instances
from .latent_bank import LatentBank
from .passes import Seen, predict, watch
from .prompts import PromptEncoder, StepView
from .regularizers.seam import AttentionPass, LossTerm, Regularizer, Terms
from .run.draws import generator_for
from .run.precision import autocast
from .settings import TrainSettings


class Objective:
    """The loss of one step after another, cut into batches that fit, with as few UNet passes as there can be."""

    def __init__(
        self,
        model: TextToImageModel,
        settings: TrainSettings,
        regularizers: Sequence[Regularizer],
        bank: LatentBank,
        prompts: PromptEncoder,
    ) -> None:
        self.model, self.settings, self.prompts = model, settings, prompts
        self.regularizers = regularizers
        self.streams = _streams(regularizers)
        self.instances = Instances(model, settings, bank)
        self._nothing = torch.zeros((), device=model.device)

    def loss(self, batch: InstanceBatch, terms: Sequence[Terms]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """METHODS.md C4: L = L_diff + the sum of lambda_i L_i, (); and the value of each, detached.

        `batch` is a share of what the step sees, and so is its L_diff; the regularizers' `terms` are whole.
        """
        watched = [one.attention for one in terms if one.attention]
        if self.settings.diffusion_weight == 0:  # METHODS.md C6: nobody wants the prediction
            main, seen = {}, watch(self.model, watched)
        else:
            diffusion, seen = self._diffusion(batch, watched)
            main = {"diffusion": LossTerm(diffusion, self.settings.diffusion_weight)}
        losses = _with_terms(main, terms, seen)
        weighed = [(term.weight, term.value) for term in losses.values() if term.weight != 0]  # the rest is only shown
        total = weighted_sum(weighed, start=self._nothing)
        return total, {name: term.value.detach() for name, term in losses.items()}

    def gather(
        self, step: int, backward: Callable[[torch.Tensor], None]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Hand every part of the loss of `step` (0 is the first) to `backward`. Returns each term's value and the
        total, detached and on the device."""
        whole = self.instances(step)
        with self._autocast():
            terms = self.terms(step, whole.noised.latents, whole.noised.timesteps)
        values: dict[str, torch.Tensor] = {}
        total = self._nothing
        for batch in whole.parts(self.settings.batch):
            with self._autocast():
                loss, found = self.loss(batch, terms)
            if loss.requires_grad:
                backward(loss)
            total = total + loss.detach()
            values |= {name: values[name] + value if name in values else value for name, value in found.items()}
            terms = []  # a step's regularizers go along with its first part
        return values, total

    def terms(self, step: int, latents: torch.Tensor, timesteps: torch.Tensor) -> list[Terms]:
        """What every regularizer that is asked at `step` answers, as heavy as it is there. Each has random numbers of
        its own, a function of the step: the same ones however seldom it is asked."""
        seed = self.settings.seed
        return [
            regularizer(
                StepView(
                    model=self.model,
                    latents=latents,
                    timesteps=timesteps,
                    class_word=self.settings.class_word,
                    generator=generator_for(seed, stream, step),
                    prompts=self.prompts,
                )
            ).times(weight)
            for regularizer, stream in zip(self.regularizers, self.streams, strict=True)
            if (weight := self._times(regularizer, step))
        ]

    def _times(self, regularizer: Regularizer, step: int) -> int:
        """How many times its own weight a regularizer has at `step`; 0 where it is not asked."""
        every = 1 if getattr(regularizer, "every_step", False) else self.settings.regularize_every
        return every * (step % every == 0)

    def _diffusion(self, batch: InstanceBatch, watched: Sequence[AttentionPass]) -> tuple[torch.Tensor, Seen]:
        """METHODS.md C1: the share of L_diff that is this batch's; and what the `watched` passes see beside it."""
        z_t, timesteps = batch.noised.latents, batch.noised.timesteps
        main = AttentionPass(z_t, timesteps, self._instance_conditioning(batch.templates))
        prediction, seen = predict(self.model, main, watched, together=self.settings.passes == "joint")
        error = diffusion_loss(prediction, batch.noised.target, weight_map=batch.pixels, sample_weight=batch.samples)
        return error / self.settings.gradient_accumulation, seen

    def _instance_conditioning(self, templates: Sequence[int]) -> Conditioning:
        """The instance prompts of one batch, each of them encoded once."""
        distinct = list(dict.fromkeys(templates))
        encodings = self.prompts.with_concept([self.settings.prompts[index] for index in distinct])
        return self.prompts.conditioning(encodings).rows([distinct.index(index) for index in templates])

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.settings.precision, self.model.device)


def _with_terms(main: Mapping[str, LossTerm], terms: Sequence[Terms], seen: Seen) -> dict[str, LossTerm]:
    """All loss terms by name, the `main` ones first; a name that is used twice gets a number."""
    found, maps = dict(main), iter(seen)
    for term in terms:
        losses = dict(term.losses)
        if term.attention is not None and term.finish is not None:
            losses |= term.finish(next(maps))
        for name, loss in losses.items():
            number = 1 + sum(other.split("#")[0] == name for other in found)
            found[name if number == 1 else f"{name}#{number}"] = loss
    return found


def _streams(regularizers: Sequence[Regularizer]) -> list[str]:
    """A stream of random numbers for each: its name, numbered where a name comes twice."""
    count: Counter[str] = Counter()
    streams = []
    for regularizer in regularizers:
        count[regularizer.name] += 1
        streams.append(f"regularizer/{regularizer.name}#{count[regularizer.name]}")
    return streams
