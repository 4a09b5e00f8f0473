"""Pretraining a tuning-encoder (METHODS.md 3.5, D5) as a stream of events, on one process or many.

Every draw is a pure function of the seed, the step and the sample's number, so several processes that share a batch see
what one process would, and a resumed run what an uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...maths.norms import vocabulary_norm
from ...maths.objective import weighted_sum
from ...maths.schedule import diffusion_loss
from ...models.dual_path import DualPath, predict_dual
from ...models.image_encoder import ImageEncoder, ImageFeatures
from ...models.low_rank import apply_deltas
from ...models.protocol import ImageSize, TextToImageModel
from ...models.sampling import as_pictures, sample
from ...models.vocabulary import HardWords, KnownWords
from ...networks.tuning_encoder import PRESETS, Identity, Prediction, Shape, TuningEncoder, initialise
from ..run.checkpoint import require_like
from ..run.draws import generator_for, sample_order, send
from ..run.events import CheckpointFailed, CheckpointSaved, Preview, Started, Step
from ..run.loss_scale import LossScale
from ..run.noising import Noising
from ..run.pretraining import Pretraining
from ..run.pretraining_loop import pretraining_events
from ..run.processes import Processes
from ..run.stream import EventStream
from .applied import PREDICTION_TEMPLATE, deltas_of, predicted_conditioning, worded_conditioning
from .observer import Observer
from .pictures import PictureSource
from .prepared import PreparedPictures
from .regularization import EmbeddingRegularization
from .settings import EncoderPretrainSettings

NEGATIVES = 256
"""Embeddings of pretraining subjects that an encoder keeps, for a contrastive loss on one picture (METHODS.md 3.4)."""


@dataclass(frozen=True)
class PretrainedEncoder:
    """The last event. `losses` maps "diffusion", "contrastive" and "l2" to their (steps,) history."""

    encoder: TuningEncoder
    step: int
    losses: Mapping[str, torch.Tensor]
    seconds: float


EncoderPretrainingEvent = Started | Step | Preview | CheckpointSaved | CheckpointFailed | PretrainedEncoder


def pretrain_encoder(
    model: TextToImageModel,
    images: ImageEncoder,
    pictures: PictureSource,
    settings: EncoderPretrainSettings,
    *,
    processes: Processes | None = None,
    known: KnownWords | None = None,
    resume: Path | None = None,
) -> EventStream[EncoderPretrainingEvent]:
    """METHODS.md 3.5: each picture is what the encoder sees and what the model has to draw, under the prompt "a photo
    of a S*", with the embedding and the low-rank deltas predicted for it. UNet, text and image encoder stay as they
    are.

    `known` limits the ids among which nearest tokens are looked for, by text encoder: to the words that a model
    was trained on. `resume` is a checkpoint or a folder of them and has to come from the same settings, model and
    pictures. Nothing happens before the first event is asked for.

    Raises (while iterating): ValueError for what cannot be trained, `CheckpointMismatchError`, and RuntimeError where
    the loss is no longer finite.
    """
    return EventStream(_pretrain(model, images, pictures, settings, processes or Processes(), known, resume))


def _pretrain(
    model: TextToImageModel,
    images: ImageEncoder,
    pictures: PictureSource,
    settings: EncoderPretrainSettings,
    processes: Processes,
    known: KnownWords | None,
    resume: Path | None,
) -> Generator[EncoderPretrainingEvent, None, None]:
    with model.session(gradient_checkpointing=settings.gradient_checkpointing):
        training = _EncoderPretraining(model, images, pictures, settings, processes, known)
        yield from pretraining_events(training, resume, training.previews)


class _EncoderPretraining(Pretraining):
    """A tuning-encoder learning to say what a picture changes."""

    def __init__(
        self,
        model: TextToImageModel,
        images: ImageEncoder,
        pictures: PictureSource,
        settings: EncoderPretrainSettings,
        processes: Processes,
        known: KnownWords | None,
    ) -> None:
        super().__init__(settings, processes)
        self.model, self.pictures = model, pictures
        self.device = model.device
        if settings.resolution % (model.latent_factor * 8):
            raise ValueError(f"the resolution is a multiple of {model.latent_factor * 8} for this model")
        self.size = ImageSize(settings.resolution, settings.resolution)
        self.prepared = PreparedPictures(model, images, pictures, settings.resolution, settings.cache)
        self.observer = Observer(model, self.size)
        self.encoder = new_encoder(model, images, settings, self.observer.channels(), known).to(self.device)
        self.regularization = EmbeddingRegularization(
            model,
            positives=settings.positives,
            temperature=settings.temperature,
            detach_negatives=settings.detach_negatives,
            known=known,
        )
        self.hard_words = HardWords(model, known)
        self.average = {name: value.detach().clone() for name, value in self.encoder.state_dict().items()}
        self.parameters = list(self.encoder.parameters())
        self.optimizer = self.make_optimizer()
        self.noised = Noising(model)
        self.scale = LossScale(model.dtype, self.device)
        self.identity = {
            **settings.identity(),
            "models": asdict(self.encoder.identity),
            "pictures": pictures.state(),
        }

    def steps(self) -> Iterator[None]:
        for _ in range(self.done, self.settings.steps):
            yield self.step()

    def step(self) -> None:
        """One optimiser step; nothing here waits for the device."""
        terms = self._backward()
        gradients = [value.grad if value.grad is not None else torch.zeros_like(value) for value in self.parameters]
        self.processes.share_gradients(self.parameters, gradients)
        self.scale.unscale([value.grad for value in self.parameters])
        if self.settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm, foreach=False)
        self.update()
        self._average()
        self.close_step(terms)

    def _backward(self) -> dict[str, torch.Tensor]:
        """METHODS.md D5 on this process's share, scaled so that the mean over processes is that of the whole batch."""
        settings, rows = self.settings, self._rows()
        latents, features = self.prepared(rows)
        timesteps, noise = self._noise("loss", latents.shape[1:])
        seen_at, seen_noise = self._noise("sight", latents.shape[1:])
        maps = self.observer.maps(latents, seen_noise, seen_at)
        noised = self.noised(latents, noise, timesteps)
        templates = [self.pictures.template(row) for row in rows]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            prediction = self.encoder(self.encoder.look(features, maps))
            output = self._output(noised.latents, timesteps, prediction, templates)
        diffusion = diffusion_loss(output, noised.target)
        contrastive, l2 = self.regularization(prediction.vectors, self._everybody(prediction.vectors))
        # Every process has the contrastive loss of all subjects, but its gradient to its own predictions alone: the
        # whole is the sum over the processes, where that of the other terms is the mean.
        weights = (1, settings.contrastive * self.processes.size, settings.l2)
        loss = weighted_sum(zip(weights, (diffusion, contrastive, l2), strict=True))
        self.scale(loss).backward()
        terms = {"diffusion": diffusion, "contrastive": contrastive, "l2": l2}
        return {name: value.detach().float() for name, value in terms.items()}

    def _output(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, prediction: Prediction, templates: Sequence[str]
    ) -> torch.Tensor:
        """The UNet with every picture's own word and deltas."""
        model, alpha, deltas = self.model, self.settings.alpha, deltas_of(prediction.factors)
        soft = predicted_conditioning(model, prediction.vectors, templates, self.size)
        if alpha is None:
            with apply_deltas(model, deltas):
                return model.predict(z_t, timesteps, soft)
        hard = worded_conditioning(model, self.hard_words(prediction.vectors), templates, self.size)
        return predict_dual(model, z_t, timesteps, hard, DualPath(soft, deltas, alpha))

    def _rows(self) -> list[int]:
        """The pictures of this process's share of the step."""
        order = sample_order(self.settings.seed, self.done, self.settings.batch, len(self.pictures))
        return order[self.samples.start : self.samples.stop]

    def _noise(self, stream: str, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """t ~ U{0 .. T-1} and noise ~ N(0, I) of each sample of this process."""
        steps, times, noises = self.model.schedule.steps, [], []
        for number in self.samples:
            generator = generator_for(self.settings.seed, stream, self.done * self.settings.batch + number)
            times.append(torch.randint(steps, (1,), generator=generator))
            noises.append(torch.randn(tuple(shape), generator=generator))
        return send(torch.cat(times), self.device), send(torch.stack(noises), self.device)

    def _everybody(self, vectors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The predictions of the whole batch: this process's with its gradient, the others' without."""
        if self.processes.size == 1:
            return vectors
        whole = {}
        for name, own in vectors.items():
            start = self.processes.rank * len(own)
            mine = own.new_zeros(self.processes.size * len(own), own.shape[1])
            mine[start : start + len(own)] = own.detach()
            rest = self.processes.add(mine)
            whole[name] = torch.cat([rest[:start], own, rest[start + len(own) :]])
        return whole

    @torch.no_grad()
    def _average(self) -> None:
        # A short run must not end with the random weights it began with: the decay grows to its value.
        decay = 0.0 if self.settings.ema is None else min(self.settings.ema, (1 + self.done) / (10 + self.done))
        for name, value in self.encoder.state_dict().items():
            self.average[name].lerp_(value, 1 - decay)

    def averaged(self) -> TuningEncoder:
        """The encoder with its running average for weights."""
        encoder = self.encoder
        copy = TuningEncoder(
            encoder.identity,
            encoder.shape,
            resolution=encoder.resolution,
            timesteps=encoder.timesteps,
            seed=encoder.seed,
        )
        copy.load_state_dict(self.average)
        copy.known = encoder.known
        return copy.to(self.device).requires_grad_(False).eval()

    def previews(self) -> list[Preview]:
        """The one that is due after the step just done, if any."""
        every = self.settings.preview_every
        return [self.preview()] if every and self.processes.first and self.done % every == 0 else []

    @torch.no_grad()
    def preview(self) -> Preview:
        """The first pictures above what the model draws for them, one seed each."""
        rows = list(range(min(self.settings.preview_pictures, len(self.pictures))))
        latents, features = self.prepared(rows)
        prediction = self._predicted(self.averaged(), latents, features)
        drawn = self._draw(prediction, len(rows))
        originals = self.model.to_images(latents)
        return Preview(self.done, as_pictures(torch.cat([originals, drawn])), PREDICTION_TEMPLATE, len(rows))

    def _draw(self, prediction: Prediction, count: int) -> torch.Tensor:
        """What the model draws for each of `count` predictions, in [-1, 1]."""
        model, side = self.model, self.size.height // self.model.latent_factor
        positive = predicted_conditioning(model, prediction.vectors, [PREDICTION_TEMPLATE] * count, self.size)
        # Guidance doubles the batch, the empty prompt's half first: every picture's deltas are there twice.
        with apply_deltas(model, deltas_of(prediction.factors, copies=2)):
            latents = sample(
                model, positive, self.observer.empty, shape=(count, model.latent_channels, side, side), seed=0
            )
        return model.to_images(latents)

    def _predicted(self, encoder: TuningEncoder, latents: torch.Tensor, features: ImageFeatures) -> Prediction:
        return encoder(self.observer.look(encoder, latents, features))

    def network_state(self) -> dict[str, Any]:
        return {"encoder": self.encoder.state_dict(), "average": self.average, "scale": self.scale.state()}

    def load_network_state(self, state: Mapping[str, Any]) -> None:
        self.encoder.load_state_dict(state["encoder"])
        require_like(self.average, state["average"])
        for name, value in self.average.items():
            value.copy_(state["average"][name])
        if "scale" in state:  # earlier versions knew of none
            self.scale.load(state["scale"])

    def finish(self, seconds: float) -> PretrainedEncoder:
        encoder = self.averaged()
        encoder.negatives = self._negatives(encoder)
        encoder.provenance = {
            "settings": self.settings.identity(),
            "steps": self.done,
            "pictures": self.pictures.state(),
            "losses": {
                name: value[-max(1, len(value) // 10) :].nanmean().item()
                for name, value in self.history.tensors().items()
            },
            "seconds": round(seconds, 1),
        }
        return PretrainedEncoder(encoder.cpu(), self.done, self.history.tensors(), seconds)

    @torch.no_grad()
    def _negatives(self, encoder: TuningEncoder) -> dict[str, torch.Tensor]:
        found: dict[str, list[torch.Tensor]] = {}
        rows = list(range(min(NEGATIVES, len(self.pictures))))
        for start in range(0, len(rows), self.settings.batch):
            latents, features = self.prepared(rows[start : start + self.settings.batch])
            for name, value in self._predicted(encoder, latents, features).vectors.items():
                found.setdefault(name, []).append(value.float().cpu())
        return {name: torch.cat(parts) for name, parts in found.items()}


def new_encoder(
    model: TextToImageModel,
    images: ImageEncoder,
    settings: EncoderPretrainSettings,
    maps: Sequence[int],
    known: KnownWords | None = None,
) -> TuningEncoder:
    """An untrained tuning-encoder of the settings' size for a model whose `features` have `maps` channels."""
    preset = replace(PRESETS[settings.preset], rank=settings.rank)
    shape = Shape.of(model, images, preset, maps)
    norms = {}
    for name, encoder in model.text_encoders.items():
        specials = sorted({encoder.bos, encoder.eos, encoder.pad})
        norms[name] = float(vocabulary_norm(encoder.table().detach(), specials))
    encoder = TuningEncoder(
        Identity.of(model, images),
        shape,
        resolution=settings.resolution,
        timesteps=settings.timesteps,
        seed=settings.seed,
    )
    encoder.known = None if known is None else dict(known)
    return initialise(encoder, norms, generator_for(settings.seed, "tuning encoder", 0))


__all__ = [
    "EncoderPretrainingEvent",
    "PretrainedEncoder",
    "new_encoder",
    "pretrain_encoder",
]
