"""Pretraining a tuning-encoder (METHODS.md 3.5, D5) as a stream of events, on one process or many.

Every draw is a pure function of the seed, the step and the sample's number, so several processes that share a batch see
what one process would, and a resumed run what an uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ...maths.norms import vocabulary_norm
from ...maths.objective import weighted_sum
from ...maths.schedule import diffusion_loss
from ...models.dual_path import DualPath, predict_dual
from ...models.image_encoder import ImageEncoder, ImageFeatures
from ...models.low_rank import apply_deltas
from ...models.protocol import ImageSize, TextToImageModel
from ...models.sampling import as_pictures, sample
from ...networks.tuning_encoder import PRESETS, Identity, Prediction, Shape, TuningEncoder, initialise
from ..run.checkpoint import (
    Checkpoint,
    checkpoint_path,
    load_checkpoint,
    require_same_run,
    restore_optimizer,
    save_checkpoint,
)
from ..run.draws import generator_for, sample_order, send
from ..run.events import CheckpointSaved, Preview, Started, Step
from ..run.history import History
from ..run.loss_scale import LossScale
from ..run.noising import Noising
from ..run.pretraining_loop import Stopwatch, pretraining_steps
from ..run.processes import Processes
from ..run.schedules import learning_rate_factor
from ..run.stream import EventStream
from .near_words import EmbeddingRegularization, HardWords, KnownWords
from .pictures import PictureSource
from .prediction import PREDICTION_TEMPLATE, Observer, deltas_of, predicted_conditioning, worded_conditioning
from .prepared import PreparedPictures
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


EncoderPretrainingEvent = Started | Step | Preview | CheckpointSaved | PretrainedEncoder


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
    if settings.batch % processes.size:
        raise ValueError(f"{processes.size} processes cannot share a batch of {settings.batch} evenly")
    with model.session(gradient_checkpointing=settings.gradient_checkpointing):
        training = _Pretraining(model, images, pictures, settings, processes, known)
        before = training.restore(resume) if resume is not None else 0.0
        seconds = Stopwatch(before)
        yield Started(training.done, settings.steps, training.encoder.numbers)

        def previews() -> list[Preview]:
            due = settings.preview_every and processes.first and training.done % settings.preview_every == 0
            return [training.preview()] if due else []

        steps = (training.step() for _ in range(training.done, settings.steps))
        yield from pretraining_steps(
            training, steps, settings, first=processes.first, seconds=seconds, previews=previews
        )
        yield training.finish(seconds())


class _Pretraining:
    """All that a step changes, and how."""

    def __init__(
        self,
        model: TextToImageModel,
        images: ImageEncoder,
        pictures: PictureSource,
        settings: EncoderPretrainSettings,
        processes: Processes,
        known: KnownWords | None,
    ) -> None:
        self.model, self.images, self.pictures = model, images, pictures
        self.settings, self.processes = settings, processes
        self.device = model.device
        self.done, self.whole = 0, True
        self.history = History()
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
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.noised = Noising(model)
        self.scale = LossScale(model.dtype, self.device)
        self.identity = {
            **settings.identity(),
            "models": asdict(self.encoder.identity),
            "pictures": pictures.state(),
        }

    def step(self) -> None:
        """One optimiser step; nothing here waits for the device."""
        settings = self.settings
        terms = self._backward()
        gradients = [value.grad if value.grad is not None else torch.zeros_like(value) for value in self.parameters]
        self.processes.share_gradients(self.parameters, gradients)
        self.scale.unscale([value.grad for value in self.parameters])
        if settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, settings.clip_norm, foreach=False)
        factor = learning_rate_factor(self.done, settings.steps, schedule=settings.schedule, warmup=settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        self.whole = False
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._average()
        names, values = list(terms), self.processes.mean(torch.stack(list(terms.values())))
        self.history.add(dict(zip(names, values, strict=True)))
        self.done, self.whole = self.done + 1, True

    def _backward(self) -> dict[str, torch.Tensor]:
        """METHODS.md D5 on this process's share, scaled so that the mean over processes is that of the whole batch."""
        settings = self.settings
        rows, samples = self._rows()
        latents, features = self.prepared(rows)
        timesteps, noise = self._noise("loss", samples, latents.shape[1:])
        seen_at, seen_noise = self._noise("sight", samples, latents.shape[1:])
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

    def _rows(self) -> tuple[list[int], range]:
        """The pictures of this process's share of the step, and the numbers of its samples in the run."""
        settings = self.settings
        order = sample_order(settings.seed, self.done, settings.batch, len(self.pictures))
        share = settings.batch // self.processes.size
        part = slice(self.processes.rank * share, (self.processes.rank + 1) * share)
        return order[part], range(settings.batch)[part]

    def _noise(self, stream: str, samples: range, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """t ~ U{0 .. T-1} and noise ~ N(0, I) of each sample."""
        steps, times, noises = self.model.schedule.steps, [], []
        for sample_ in samples:
            generator = generator_for(self.settings.seed, stream, self.done * self.settings.batch + sample_)
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

    def report(self) -> Mapping[str, torch.Tensor]:
        """What happened since the last report. Raises RuntimeError where a loss was not finite."""
        losses = self.history.fetch()
        for name, values in losses.items():
            if not bool(torch.isfinite(values).all()):
                raise RuntimeError(f"{name} is no longer finite by step {self.done}; try a smaller learning rate")
        return losses

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

    @torch.no_grad()
    def preview(self) -> Preview:
        """The first pictures above what the model draws for them, one seed each."""
        rows = list(range(min(self.settings.preview_pictures, len(self.pictures))))
        latents, features = self.prepared(rows)
        prediction = self._predicted(self.averaged(), latents, features)
        drawn = self._draw(prediction, len(rows))
        originals = self.model.to_images(latents)
        return Preview(self.done, as_pictures(torch.cat([originals, drawn])), PREDICTION_TEMPLATE)

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

    def save(self, seconds: float) -> Path:
        state = {
            "encoder": self.encoder.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict()["state"],
            "done": self.done,
            "scale": self.scale.state(),
        }
        checkpoint = Checkpoint(self.identity, state, self.history.tensors(), {"seconds": seconds})
        save_checkpoint(self.settings.checkpoint_dir, self.done, checkpoint)
        return checkpoint_path(self.settings.checkpoint_dir, self.done)

    def restore(self, source: Path) -> float:
        """Go on from a checkpoint; returns the seconds that went into it."""
        checkpoint = load_checkpoint(source)
        require_same_run(self.identity, checkpoint)
        state = checkpoint.state
        self.encoder.load_state_dict(state["encoder"])
        for name, value in state["average"].items():
            self.average[name].copy_(value)
        restore_optimizer(self.optimizer, state["optimizer"])
        self.done = state["done"]
        if "scale" in state:  # earlier versions knew of none
            self.scale.load(state["scale"])
        self.history = History(checkpoint.losses)
        return float(checkpoint.facts["seconds"])

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
