"""A predicted word, tuned on its one picture for at most a dozen steps (METHODS.md 3.7), as a stream of events."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, get_args

import torch

from ...concept import PLACEHOLDER, Concept
from ...files.embedding import check_widths
from ...maths.contrastive import LAMBDA_CONTRASTIVE, LAMBDA_NORM, NEIGHBOURS, TAU
from ...maths.finite import require_finite_fields
from ...maths.objective import weighted_sum
from ...maths.schedule import diffusion_loss
from ...models.dual_path import DualPath, predict_dual
from ...models.image_encoder import ImageEncoder
from ...models.lora import from_lora
from ...models.low_rank import Delta, LowRankDelta, WeightDelta, apply_deltas
from ...models.protocol import Conditioning, ImageSize, TextToImageModel
from ...models.text import encode_prompts
from ...models.vocabulary import HardWords
from ...networks.tuning_encoder import TuningEncoder
from ..defaults import MOST_STEPS, Tuned
from ..run.draws import generator_for, send
from ..run.events import Event, Finished, Started, Step
from ..run.history import History
from ..run.loss_scale import LossScale
from ..run.noising import Noising
from ..run.stream import EventStream
from .applied import PREDICTION_TEMPLATE
from .footprint import Footprint
from .predict import concept_of, latents_of, origin, predict_concept, require_fit
from .regularization import EmbeddingRegularization
from .square import square_picture


@dataclass(frozen=True)
class TuneSettings:
    """METHODS.md 3.7 and the table of 3.4. `batch` noised copies of the picture a step. `alpha` blends the dual path,
    None tunes the soft path alone. More than twelve steps only with `more_steps`. Raises ValueError."""

    steps: int = MOST_STEPS
    batch: int = 4
    tuned: Tuned = "lora and vectors"
    lora_learning_rate: float = 1e-4
    vector_learning_rate: float = 1e-3
    contrastive: float = LAMBDA_CONTRASTIVE
    l2: float = LAMBDA_NORM
    temperature: float = TAU
    positives: int = NEIGHBOURS
    alpha: float | None = 0.5
    template: str = PREDICTION_TEMPLATE
    seed: int = 0
    more_steps: bool = False
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        require_finite_fields(self)
        if self.steps < 1 or self.batch < 1 or self.positives < 1 or self.seed < 0:
            raise ValueError(f"at least one step, one copy of the picture and one neighbour, not {self}")
        if self.steps > MOST_STEPS and not self.more_steps:
            raise ValueError(
                f"a prediction is tuned for {MOST_STEPS} steps at most, not {self.steps}: beyond that the word begins "
                "to hold this one picture instead of its subject; allow more steps if you mean it"
            )
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is a share within 0 to 1, not {self.alpha}")
        if min(self.lora_learning_rate, self.vector_learning_rate, self.contrastive, self.l2) < 0:
            raise ValueError("learning rates and weights of losses cannot be negative")
        if self.tuned not in get_args(Tuned):
            raise ValueError(f"unknown choice {self.tuned!r}: expected one of {', '.join(get_args(Tuned))}")
        if self.template.count(PLACEHOLDER) != 1:
            raise ValueError(f"the prompt to tune with needs one {PLACEHOLDER} for the word, not {self.template!r}")


def tune(
    model: TextToImageModel,
    images: ImageEncoder,
    encoder: TuningEncoder,
    picture: torch.Tensor,
    settings: TuneSettings | None = None,
    *,
    name: str | None = None,
    class_word: str | None = None,
    predicted: Concept | None = None,
) -> EventStream[Event]:
    """Predict a word for `picture`, or take over `predicted`, and tune vectors and LoRA factors on it.

    The hypernetwork is not touched: its prediction is where the LoRA starts. Where there is no `name` it stays that of
    `predicted`. Events as of a training: `Started`, `Step`
    and last `Finished` with the concept. Raises (while iterating) ValueError as `predict_concept` and for a concept
    that has no LoRA of this model, RuntimeError where the loss is not finite.
    """
    run = _tune(model, images, encoder, picture, settings or TuneSettings(), name, class_word, predicted)
    return EventStream(run)


def _tune(
    model: TextToImageModel,
    images: ImageEncoder,
    encoder: TuningEncoder,
    picture: torch.Tensor,
    settings: TuneSettings,
    name: str | None,
    class_word: str | None,
    predicted: Concept | None,
) -> Generator[Event, None, None]:
    require_fit(model, images, encoder)
    name = name or ("concept" if predicted is None else predicted.name)
    start = predicted or predict_concept(model, images, encoder, picture, name=name, class_word=class_word)
    check_widths(start, {key: one.width for key, one in model.text_encoders.items()})
    with ExitStack() as stack:
        stack.enter_context(model.session(gradient_checkpointing=settings.gradient_checkpointing))
        tuning = _Tuning(model, encoder, picture, settings, start)
        yield Started(0, settings.steps, tuning.numbers)
        for step in range(settings.steps):
            tuning.step(step)
            losses = tuning.history.fetch() if step + 1 == settings.steps else None
            yield Step(step + 1, settings.steps, losses)
        concept = tuning.concept(name, class_word)
        yield Finished(concept, settings.steps, tuning.history.tensors(), tuning.footprint.seconds)


class _Tuning:
    """The factors and vectors that are tuned, and how."""

    def __init__(
        self,
        model: TextToImageModel,
        encoder: TuningEncoder,
        picture: torch.Tensor,
        settings: TuneSettings,
        start: Concept,
    ) -> None:
        self.model, self.encoder, self.settings, self.start = model, encoder, settings, start
        self.footprint = Footprint(model.device)
        self.history = History()
        self.size = ImageSize(encoder.resolution, encoder.resolution)
        self.latents = latents_of(model, square_picture(picture, encoder.resolution))
        self.deltas, factors = _leaves(model, start, trainable=settings.tuned != "vectors")
        self.vectors = {
            key: value.detach().float().to(model.device).clone().requires_grad_(settings.tuned != "lora")
            for key, value in start.vectors.items()
        }
        self.regularization = EmbeddingRegularization(
            model,
            positives=settings.positives,
            temperature=settings.temperature,
            known=encoder.known,
            negatives=encoder.negatives,
        )
        vectors = list(self.vectors.values())
        parts = ((factors, settings.lora_learning_rate), (vectors, settings.vector_learning_rate))
        groups = [{"params": part, "lr": rate} for part, rate in parts if part[0].requires_grad]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        self.noised = Noising(model)
        self.scale = LossScale(model.dtype, model.device)

    @property
    def numbers(self) -> int:
        """How many numbers are tuned."""
        return sum(value.numel() for value in self.tuned)

    @property
    def tuned(self) -> list[torch.Tensor]:
        """The tensors that are tuned."""
        return [value for group in self.optimizer.param_groups for value in group["params"]]

    def step(self, number: int) -> None:
        """METHODS.md D5 on a batch of noised copies of the one picture."""
        terms = self._backward(number)
        # Of a dozen steps none is given away: one that overflows is taken again, with a smaller scale.
        while self.scale.on and not bool(self.scale.unscale(self._gradients())):
            require_finite({**terms, "gradient": torch.where(self.scale.value < 1, torch.nan, 0.0)})
            self.optimizer.zero_grad(set_to_none=True)
            terms = self._backward(number)
        self.footprint.look()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.history.add(terms)

    def _gradients(self) -> list[torch.Tensor]:
        return [value.grad for value in self.tuned if value.grad is not None]

    def _backward(self, number: int) -> dict[str, torch.Tensor]:
        """The gradient of one step, scaled; returns every term of its loss."""
        settings, model = self.settings, self.model
        generator = generator_for(settings.seed, "tuning", number)
        timesteps = torch.randint(model.schedule.steps, (settings.batch,), generator=generator)
        noise = torch.randn((settings.batch, *self.latents.shape[1:]), generator=generator)
        timesteps, noise = send(timesteps, model.device), send(noise, model.device)
        latents = self.latents.expand(settings.batch, -1, -1, -1)
        noised = self.noised(latents, noise, timesteps)
        diffusion = diffusion_loss(self._predict(noised.latents, timesteps), noised.target)
        contrastive, l2 = self.regularization(self.vectors)
        loss = weighted_sum([(1, diffusion), (settings.contrastive, contrastive), (settings.l2, l2)])
        self.scale(loss).backward()
        terms = {"diffusion": diffusion, "contrastive": contrastive, "l2": l2}
        return {name: value.detach() for name, value in terms.items()}

    def _predict(self, z_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        settings, model = self.settings, self.model
        if settings.alpha is None:
            with apply_deltas(model, self.deltas):  # also of the text encoders, where the LoRA has some
                return model.predict(z_t, timesteps, self._soft().expand(len(z_t)))
        path = DualPath(self._soft().expand(len(z_t)), self.deltas, settings.alpha)
        return predict_dual(model, z_t, timesteps, self._hard.expand(len(z_t)), path)

    def _soft(self) -> Conditioning:
        encodings = encode_prompts(self.model, [self.settings.template], vectors=self.vectors)
        return self.model.conditioning(encodings, self.size)

    @cached_property
    @torch.no_grad()
    def _hard(self) -> Conditioning:
        """The prompt with the prediction's nearest word, which stays while the soft one is tuned."""
        words = self.start.hard_token or " ".join(HardWords(self.model, self.encoder.known)(self.start.vectors))
        encodings = encode_prompts(self.model, [self.settings.template], words=words)
        return self.model.conditioning(encodings, self.size)

    def concept(self, name: str, class_word: str | None) -> Concept:
        """What was tuned, as a concept. Raises RuntimeError where that is not finite."""
        require_finite(dict(enumerate(value.detach() for value in self.tuned)))
        vectors = {key: value.detach().cpu().clone() for key, value in self.vectors.items()}
        provenance: dict[str, Any] = {
            **origin(self.model, self.encoder),
            "recipe": "tuning-encoder, tuned",
            "steps": self.settings.steps,
            "settings": asdict(self.settings),
            "predicted": self.start.provenance.get("predicted"),
            "tuned": self.footprint.stop(),
            "losses": {key: value.mean().item() for key, value in self.history.tensors().items()},
        }
        # A class word that nobody gave is the nearest word, and goes on being that.
        before = None if self.start.class_word == self.start.hard_token else self.start.class_word
        word = (class_word or "").strip() or before
        concept = concept_of(
            self.model, self.encoder, vectors, self.deltas, name=name, class_word=word, provenance=provenance
        )
        return replace(concept, latents=self.start.latents)


def require_finite(values: Mapping[Any, torch.Tensor]) -> None:
    """Raises RuntimeError that says what to do where one of `values` is not finite."""
    if not all(bool(torch.isfinite(value).all()) for value in values.values()):
        raise RuntimeError("the loss is not finite: tune with smaller learning rates")


def _leaves(
    model: TextToImageModel, concept: Concept, *, trainable: bool
) -> tuple[dict[str, Delta], list[torch.Tensor]]:
    """The concept's LoRA with numbers of its own, and these: a prediction's factors, or whole weights.

    Raises ValueError where it has none that could be tuned.
    """
    if concept.layer_vectors:
        raise ValueError(f"the concept {concept.name!r} has a vector for every layer, which cannot be tuned here")
    if not concept.lora:
        raise ValueError(f"the concept {concept.name!r} has no LoRA to tune; predict it with a tuning-encoder first")
    numbers: list[torch.Tensor] = []

    def leaf(value: torch.Tensor) -> torch.Tensor:
        numbers.append(value.detach().float().clone().requires_grad_(trainable))
        return numbers[-1]

    leaves: dict[str, Delta] = {}
    for layer, delta in from_lora(model, concept.lora).items():
        if isinstance(delta, LowRankDelta):
            leaves[layer] = LowRankDelta(leaf(delta.a), leaf(delta.b), delta.scale)
        else:
            weight, bias = (None if value is None else leaf(value) for value in (delta.weight, delta.bias))
            leaves[layer] = WeightDelta(weight, bias, delta.scale)
    return leaves, numbers


__all__ = ["MOST_STEPS", "TuneSettings", "Tuned", "tune"]
