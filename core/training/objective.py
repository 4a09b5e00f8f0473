"""What is minimised: the diffusion loss of the instance prompts (METHODS.md C1) and every regularizer's terms (C4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ..maths.schedule import add_noise, at_timesteps, diffusion_loss, min_snr_weight, prediction_target
from ..models.protocol import Conditioning, TextToImageModel, TokenMeans
from .pictures import LatentBank
from .prompts import PromptEncoder, StepView
from .regularizers.seam import AttentionPass, LossTerm, Regularizer, Terms
from .run.draws import Draws, alpha_bar_on, draw_step, generator_for
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
        self.model, self.settings, self.bank, self.prompts = model, settings, bank, prompts
        self.regularizers = regularizers
        self.streams = _streams(regularizers)
        low, high = (round(share * model.schedule.steps) for share in settings.timestep_range)
        self.timesteps = range(low, max(high, low + 1))
        self.alpha_bar = alpha_bar_on(model.schedule, model.device)

    def gather(
        self, step: int, backward: Callable[[torch.Tensor], None]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Hand every part of the loss of `step` (0 is the first) to `backward`. Returns each term's value and the
        total, detached and on the device."""
        settings, kind, draws = self.settings, self.model.schedule.prediction_type, self._draw(step)
        z_0 = self.bank.latents[draws.rows]
        alpha_bar_t = at_timesteps(self.alpha_bar, draws.timesteps)
        z_t = add_noise(z_0, draws.noise, alpha_bar_t)
        target = prediction_target(kind, z_0, draws.noise, alpha_bar_t)
        weights = None if self.bank.weights is None else self.bank.weights[draws.rows]
        snr = None if settings.min_snr_gamma is None else min_snr_weight(kind, alpha_bar_t, settings.min_snr_gamma)
        with self._autocast():
            wanted = self._terms(step, z_t, draws.timesteps)
        values: dict[str, torch.Tensor] = {}
        diffusion = total = torch.zeros((), device=self.model.device)
        for start in range(0, settings.samples, settings.batch):
            part = slice(start, start + settings.batch)
            terms = wanted if start == 0 else []
            with self._autocast():
                watched = [term.attention for term in terms if term.attention]
                if settings.diffusion_weight == 0:
                    loss, seen = torch.zeros_like(total), self._watch(watched)
                else:
                    context = self._instance_conditioning(draws.templates[part])
                    passes = [AttentionPass(z_t[part], draws.timesteps[part], context)]
                    prediction, seen = self._predict(passes + watched)
                    error = diffusion_loss(
                        prediction,
                        target[part],
                        weight_map=None if weights is None else weights[part],
                        sample_weight=None if snr is None else snr[part],
                    )
                    loss = error / settings.gradient_accumulation
                    diffusion = diffusion + loss.detach()
                    if settings.diffusion_weight != 1:
                        loss = settings.diffusion_weight * loss
                for name, term in _finished(terms, seen).items():
                    values[name] = term.value.detach()
                    if term.weight != 0:
                        loss = loss + term.weighted
            if loss.requires_grad:
                backward(loss)
            total = total + loss.detach()
        return ({"diffusion": diffusion} if settings.diffusion_weight else {}) | values, total

    def _terms(self, step: int, z_t: torch.Tensor, timesteps: torch.Tensor) -> list[Terms]:
        settings = self.settings
        return [
            regularizer(
                StepView(
                    model=self.model,
                    step=step,
                    total_steps=settings.steps,
                    latents=z_t,
                    timesteps=timesteps,
                    class_word=settings.class_word,
                    length=self.prompts.word.fill,
                    generator=generator_for(settings.seed, stream, step),
                    prompts=self.prompts,
                )
            )
            for regularizer, stream in zip(self.regularizers, self.streams, strict=True)
        ]

    def _instance_conditioning(self, templates: Sequence[int]) -> Conditioning:
        """The instance prompts of one batch; a prompt that all samples share is encoded once."""
        chosen = templates[:1] if len(set(templates)) == 1 else templates
        encodings, _ = self.prompts.with_concept([self.settings.templates[index] for index in chosen])
        return self.prompts.conditioning(encodings).expand(len(templates))

    def _predict(self, passes: Sequence[AttentionPass]) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
        """The first pass's prediction, and per-layer token means of the others."""
        if len(passes) > 1 and self.settings.passes == "separate":
            prediction, _ = self._predict(passes[:1])
            return prediction, self._watch(passes[1:])
        sizes = [len(one.latents) for one in passes]
        probe = TokenMeans() if len(passes) > 1 else None
        prediction = self.model.predict(*_joined(passes), probe)
        seen = [] if probe is None else list(probe.split(sizes))[1:]
        return prediction[: sizes[0]], seen

    def _watch(self, passes: Sequence[AttentionPass]) -> list[list[torch.Tensor]]:
        """Per-layer token means of passes whose prediction nobody wants."""
        if not passes:
            return []
        probe = TokenMeans()
        self.model.predict(*_joined(passes), probe)
        return list(probe.split([len(one.latents) for one in passes]))

    def _autocast(self) -> AbstractContextManager[Any]:
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        if self.settings.precision not in kinds:
            return nullcontext()
        # Its weight cache would tie a cast made without gradient to one that needs it.
        return torch.autocast(self.model.device.type, kinds[self.settings.precision], cache_enabled=False)

    def _draw(self, step: int) -> Draws:
        settings, bank = self.settings, self.bank
        return draw_step(
            settings.seed,
            step,
            batch=settings.samples,
            pictures=bank.pictures,
            versions=bank.versions,
            shape=tuple(bank.latents.shape[1:]),
            timesteps=self.timesteps.stop - self.timesteps.start,
            first_timestep=self.timesteps.start,
            templates=len(settings.templates),
            device=self.model.device,
        )


def _finished(terms: Sequence[Terms], seen: Sequence[Sequence[torch.Tensor]]) -> dict[str, LossTerm]:
    """All loss terms by name; a name that two regularizers use gets a number."""
    found: dict[str, LossTerm] = {}
    maps = iter(seen)
    for term in terms:
        losses = dict(term.losses)
        if term.attention is not None and term.finish is not None:
            losses |= term.finish(next(maps))
        for name, loss in losses.items():
            number = 1 + sum(other.split("#")[0] == name for other in found)
            found[name if number == 1 else f"{name}#{number}"] = loss
    return found


def _joined(passes: Sequence[AttentionPass]) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    if len(passes) == 1:
        return passes[0].latents, passes[0].timesteps, passes[0].conditioning
    return (
        torch.cat([one.latents for one in passes]),
        torch.cat([one.timesteps for one in passes]),
        Conditioning.cat([one.conditioning for one in passes]),
    )


def _streams(regularizers: Sequence[Regularizer]) -> list[str]:
    """A stream of random numbers for each: its name, numbered where a name comes twice."""
    count: Counter[str] = Counter()
    streams = []
    for regularizer in regularizers:
        count[regularizer.name] += 1
        streams.append(f"regularizer/{regularizer.name}#{count[regularizer.name]}")
    return streams
