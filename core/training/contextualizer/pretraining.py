"""Pretraining a contextualizer (METHODS.md 2.4, Algorithm 1) as a stream of events, on one process or many.

Every draw is a pure function of the seed, the step and the sample's number, so several processes that share a batch see
what one process would, and a resumed run what an uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from ...maths.finite import require_finite_fields
from ...maths.mlm import MASKED_WEIGHT, RHO, cross_entropy, masked_loss, non_padding_loss
from ...models.frozen import autograd
from ...models.protocol import TextEncoder
from ...networks.contextualizer import PRESETS, Contextualizer, EncoderIdentity, ShortEncoder, initialise
from ...prompts.captions import CaptionSource, SplitCaptions
from ..defaults import PretrainingMode
from ..run.checks import choices_without, require_at_least_one, require_not_negative, require_one_of
from ..run.draws import generator_for
from ..run.events import CheckpointFailed, CheckpointSaved, Started, Step
from ..run.pretraining import Pretraining
from ..run.pretraining_loop import pretraining_events
from ..run.processes import Processes
from ..run.schedules import LearningRateSchedule
from .held_out import HeldOut, Questions, drawn, held_out_accuracy, nothing
from .masking import MaskedBatch, caption_row, mask_rows, masked_inputs, nameable_ids


@dataclass(frozen=True)
class PretrainSettings:
    """Every choice of a pretraining, checked when it is made; the defaults are METHODS.md 2.4's.

    `batch` is that of all processes together. `mode` "non_padding" also asks for the tokens that are not masked (M4),
    "masked" for the masked ones alone (M5). `vocabulary_captions` > 0 gives the output layer rows only for the tokens
    of so many captions: right for an encoder that was trained on few words. `workers` prepare batches in processes of
    their own. `held_out` captions that were never trained on are guessed at the end; 0: none.
    """

    steps: int = 100_000
    batch: int = 300
    learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    schedule: LearningRateSchedule = "constant"
    warmup: int = 0
    rho: float = RHO
    mode: PretrainingMode = "non_padding"
    preset: str = "paper"
    vocabulary_captions: int = 0
    seed: int = 0
    held_out: int = 2000
    log_every: int = 50
    checkpoint_dir: Path | None = None
    checkpoint_every: int = 1000
    workers: int = 0

    def __post_init__(self) -> None:
        require_finite_fields(self)
        require_at_least_one(self, ("steps", "batch", "log_every", "checkpoint_every"))
        counts = ("warmup", "vocabulary_captions", "seed", "held_out", "workers")
        require_not_negative(self, (*counts, "weight_decay"))
        if not self.learning_rate > 0 or not 0 < self.rho <= 1:
            raise ValueError(f"a learning rate above 0 and 0 < rho <= 1, not {self.learning_rate} and {self.rho}")
        require_one_of("mode", self.mode, get_args(PretrainingMode))
        require_one_of("preset", self.preset, tuple(PRESETS))

    def identity(self) -> dict[str, Any]:
        """What decides the numbers of a run, as JSON data."""
        return choices_without(self, ("log_every", "checkpoint_dir", "checkpoint_every", "workers", "held_out"))


@dataclass(frozen=True)
class Pretrained:
    """The last event. `losses` maps "loss" and "masked accuracy" to their (steps,) history."""

    contextualizer: Contextualizer
    step: int
    losses: Mapping[str, torch.Tensor]
    seconds: float
    held_out: HeldOut | None


PretrainingEvent = Started | Step | CheckpointSaved | CheckpointFailed | Pretrained


def pretrain_contextualizer(
    encoder: TextEncoder,
    captions: CaptionSource,
    settings: PretrainSettings,
    *,
    processes: Processes | None = None,
    resume: Path | None = None,
    between: Callable[[], None] = nothing,
) -> Iterator[PretrainingEvent]:
    """METHODS.md 2.4, Algorithm 1: train psi and the mask row on `captions`; the text encoder stays as it is.

    `resume` is a checkpoint or a folder of them and has to come from the same settings, encoder and captions. Closing
    the stream early keeps the work so far in a checkpoint where `settings` name a folder. `between` is called
    often while captions are drawn and guessed, of which no event tells; what it raises ends the work.
    Raises ValueError for what cannot be trained, `CheckpointMismatchError`, and RuntimeError where the loss is no
    longer finite.
    """
    yield from pretraining_events(
        _ContextualizerPretraining(encoder, captions, settings, processes or Processes(), between), resume
    )


class _ContextualizerPretraining(Pretraining):
    """psi and its mask row learning to guess."""

    def __init__(
        self,
        encoder: TextEncoder,
        captions: CaptionSource,
        settings: PretrainSettings,
        processes: Processes,
        between: Callable[[], None],
    ) -> None:
        super().__init__(settings, processes)
        self.between = between
        self.captions, self.unseen = SplitCaptions(captions, held_out=False), SplitCaptions(captions, held_out=True)
        self.device = encoder.table().device
        named = None
        if settings.vocabulary_captions:
            named = used_tokens(encoder, self.captions, settings.vocabulary_captions, settings.seed, between)
        with autograd():
            self.psi = Contextualizer(EncoderIdentity.of(encoder), PRESETS[settings.preset], named)
            self.encoder = ShortEncoder(encoder, len(self.psi.positions))
            initialise(self.psi, encoder.table(), generator_for(settings.seed, "contextualizer", 0))
            self.psi.to(self.device)
            self.parameters = list(self.psi.parameters())
            self.optimizer = self.make_optimizer()
        self.nameable = nameable_ids(self.psi.rows)
        self.questions = self._questions() if settings.held_out else None
        self.identity = {
            **settings.identity(),
            "encoder": asdict(self.psi.encoder),
            "captions": captions.state(),
            "classes": self.psi.classes,
            "shape": asdict(self.psi.shape),
        }

    def _questions(self) -> Questions:
        """What is asked at the end: drawn at the beginning, so that a lack of it is not found after the training."""
        settings = self.settings
        asked = Questions.of(
            self.encoder,
            self.psi,
            self.unseen,
            settings.held_out,
            rho=settings.rho,
            seed=settings.seed,
            between=self.between,
        )
        if not len(asked.batch.targets):
            raise ValueError(
                f"no token of {settings.held_out} held-out captions is masked; raise held_out or rho, the mask rate"
            )
        return asked

    def steps(self) -> Iterator[None]:
        for batch in self.batches():
            yield self.step(batch)

    def batches(self) -> Iterator[CaptionBatch]:
        """This process's share of each step's batch that is still to come, on the CPU."""
        own = self.samples
        steps = _CaptionBatches(self.encoder, self.captions, self.nameable, self.settings, own.start, len(own))
        # A generator of its own: the loader would otherwise draw from everybody's.
        loader = torch.utils.data.DataLoader(
            steps,
            batch_size=None,
            sampler=range(self.done, self.settings.steps),
            num_workers=self.settings.workers,
            generator=torch.Generator(),
        )
        yield from loader

    def step(self, batch: CaptionBatch) -> None:
        """One optimiser step on one batch; nothing here waits for the device."""
        with autograd():
            loss, accuracy = self.loss(batch)
            # Of psi alone: the encoder's own parameters get no gradient, whatever their flags say.
            gradients = torch.autograd.grad(loss, self.parameters)
            self.processes.share_gradients(self.parameters, gradients)
            self.update()
        self.close_step({"loss": loss.detach(), "masked accuracy": accuracy})

    def loss(self, batch: CaptionBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """METHODS.md M4 or M5 on this process's share, scaled so that the mean over processes is that of the whole
        batch; and the share of masked tokens guessed right, scaled alike."""
        masked, positions, targets, hidden = batch.to(self.device)
        inputs = masked_inputs(self.encoder.table(), masked, self.psi.mask)
        outputs = self.encoder.encode(inputs, masked.ids).tokens
        logits = self.psi(outputs, positions)
        rows = self.psi.rows[targets]
        # Every process divides by the number of masks in the whole batch, not by its own.
        share = self.processes.mean(hidden.sum().float())
        with torch.no_grad():
            right = ((logits.argmax(dim=-1) == rows) & hidden).sum() / share.clamp(min=1e-9)
        entropy = cross_entropy(logits, rows)
        if self.settings.mode == "masked":
            return masked_loss(entropy, hidden, share), right
        return non_padding_loss(entropy, hidden, masked.ids.numel(), MASKED_WEIGHT), right

    def network_state(self) -> dict[str, Any]:
        return {"psi": self.psi.state_dict()}

    def load_network_state(self, state: Mapping[str, Any]) -> None:
        self.psi.load_state_dict(state["psi"])

    def finish(self, seconds: float) -> Pretrained:
        settings, held_out = self.settings, None
        self.psi.requires_grad_(False).eval()
        if self.questions is not None:
            held_out = held_out_accuracy(
                self.encoder,
                self.psi,
                self.captions,
                self.questions,
                rho=settings.rho,
                seed=settings.seed,
                between=self.between,
            )
        self.psi.provenance = {
            "settings": settings.identity(),
            "steps": self.done,
            "mode": settings.mode,
            "captions": self.identity["captions"],
            "held_out": None if held_out is None else held_out.figures(),
        }
        return Pretrained(self.psi, self.done, self.history.tensors(), seconds, held_out)


@dataclass(frozen=True)
class CaptionBatch:
    """A masked batch, and the K positions whose tokens are asked for: flat `positions`, their `targets` (vocabulary
    ids) and whether each is masked, `hidden`."""

    masked: MaskedBatch
    positions: torch.Tensor
    targets: torch.Tensor
    hidden: torch.Tensor

    def to(self, device: torch.device) -> tuple[MaskedBatch, torch.Tensor, torch.Tensor, torch.Tensor]:
        positions, targets = (value.to(device, non_blocking=True) for value in (self.positions, self.targets))
        return self.masked.to(device), positions, targets, self.hidden.to(device, non_blocking=True)


@dataclass(frozen=True)
class _CaptionBatches(torch.utils.data.Dataset):
    """Step number -> `CaptionBatch` of samples `start` to `start + size` of that step's batch."""

    encoder: TextEncoder
    captions: CaptionSource
    nameable: Any
    settings: PretrainSettings
    start: int
    size: int

    @torch.inference_mode(False)  # autograd keeps the positions
    def __getitem__(self, step: int) -> CaptionBatch:
        rows, uniform = [], []
        for sample in range(self.start, self.start + self.size):
            generator = generator_for(self.settings.seed, "caption", step * self.settings.batch + sample)
            rows.append(caption_row(self.encoder, self.captions.draw(1, generator)[0], self.nameable))
            uniform.append(torch.rand(self.encoder.max_length, generator=generator))
        masked = mask_rows(rows, torch.stack(uniform), self.settings.rho)
        hidden = torch.zeros(masked.ids.numel(), dtype=torch.bool)
        hidden[masked.masked] = True
        asked = hidden.clone()
        if self.settings.mode == "non_padding":
            # BOS, every token and EOT (METHODS.md 2.4), as far as they have a row to be named with
            ends = torch.tensor([row.end for row in rows])
            asked = (torch.arange(masked.ids.shape[1]) <= ends[:, None]).flatten()
            asked &= torch.from_numpy(self.nameable)[masked.ids.flatten()]
        positions = asked.nonzero()[:, 0]
        return CaptionBatch(masked, positions, masked.ids.flatten()[positions], hidden[positions])


def used_tokens(
    encoder: TextEncoder, captions: CaptionSource, count: int, seed: int, between: Callable[[], None] = nothing
) -> list[int]:
    """The vocabulary ids in `count` captions, and BOS and EOT, sorted."""
    texts = set(drawn(captions, count, generator_for(seed, "vocabulary", 0), between))
    found = {encoder.bos, encoder.eos}
    for text in texts:
        between()
        found.update(encoder.tokenize(text))
    return sorted(found)


__all__ = ["PretrainSettings", "Pretrained", "PretrainingEvent", "pretrain_contextualizer", "used_tokens"]
