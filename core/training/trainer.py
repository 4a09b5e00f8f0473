"""The training loop as a stream of events (METHODS.md 1.4; textual inversion with any list of regularizers)."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..concept import Concept
from ..files.errors import LearnedNothingError
from ..files.learned import check_learned
from ..models.frozen import autograd
from ..models.low_rank import Delta
from ..models.protocol import TextToImageModel
from ..models.sampling import as_pictures, sample
from ..models.text import encode_prompts
from ..prompts.phrases import require_tokens
from .latent_bank import LatentBank
from .learner import Learner
from .preparation import Prepared, latent_bank_of, prepare
from .regularizers.seam import Regularizer
from .run.checkpoint import (
    Checkpoint,
    CheckpointMismatchError,
    go_on_from,
    require_like,
    require_place,
    require_same_run,
    save_checkpoint,
    written,
)
from .run.events import Event, Finished, Preview, Started, Step
from .run.history import History
from .run.stream import EventStream
from .settings import TrainSettings
from .word import Word

FLAGS = ("failed",)
"""Columns of the history that are checks, not losses."""


class NonFiniteLossError(RuntimeError):
    """The very first step was not finite, so there is nothing good to keep."""


def train(
    model: TextToImageModel,
    images: torch.Tensor | Sequence[torch.Tensor] | LatentBank,
    settings: TrainSettings,
    *,
    regularizers: Sequence[Regularizer] = (),
    masks: torch.Tensor | Sequence[torch.Tensor] | None = None,
    resume: Path | None = None,
    initial: Concept | Word | None = None,
    changes: Mapping[str, Delta | Sequence[Delta]] | None = None,
) -> TrainingRun:
    """Learn a word for what is in `images` ((H, W, 3) in [0, 1] each); `masks` (H, W) say which pixels count.

    What is trained is `settings.method`; the word starts from the class word, or from `initial`. Instead of pictures a
    `LatentBank` will do. `changes` of the model's weights stay in force as they are. `resume` is a
    checkpoint file or a folder of them; it has to come from the same settings, model and pictures. Nothing happens
    before the first event is asked for. Close the run, or use it in a `with`, to have unfinished work in
    `checkpoint_dir`:

        with train(model, images, settings) as run:
            for event in run: ...

    Raises (while iterating): ValueError for what cannot be trained on, `CheckpointMismatchError` for a checkpoint of
    another training, `DamagedCheckpointError`, `LearnedNothingError`, `NonFiniteLossError`; OSError, before the first
    step, where `checkpoint_dir` takes no file. A checkpoint that cannot be written later is an event and no more.
    """
    return TrainingRun(model, images, settings, tuple(regularizers), masks, resume, initial, changes)


class TrainingRun(EventStream[Event]):
    """A training that goes on while it is iterated. `concept` is what was learned so far, at any time.

    To close it ends it now: unfinished work goes into the checkpoint folder and the model is as it was before.
    """

    def __init__(
        self,
        model: TextToImageModel,
        images: torch.Tensor | Sequence[torch.Tensor] | LatentBank,
        settings: TrainSettings,
        regularizers: tuple[Regularizer, ...],
        masks: torch.Tensor | Sequence[torch.Tensor] | None,
        resume: Path | None,
        initial: Concept | Word | None,
        changes: Mapping[str, Delta | Sequence[Delta]] | None = None,
    ) -> None:
        self.model = model
        self.settings = settings
        self.regularizers = regularizers
        self.history = History()
        self.prepared: Prepared | None = None
        self._images, self._masks, self._resume, self._initial = images, masks, resume, initial
        self._changes = dict(changes or {})
        self._stop: str | None = None
        self._saved = 0
        self._drawn: int | None = None
        self._before = 0.0
        self._started = time.perf_counter()
        super().__init__(self._run())

    def stop(self, reason: str = "stopped") -> None:
        """Ask for the end: the next events are a checkpoint, where there is a folder for it, and `Finished`."""
        self._stop = reason

    @property
    def learner(self) -> Learner | None:
        """What moves; None before the first event."""
        return self.prepared and self.prepared.learner

    @property
    def concept(self) -> Concept:
        """The concept as of the last finished step. Raises RuntimeError before the first event."""
        if self.prepared is None:
            raise RuntimeError("the training has not started: take its first event")
        learner, weights, given = self.prepared.learner, self.prepared.weights, self.settings.class_word
        with autograd():
            word = learner.learned()
            layers = word.slots and {name: value[list(word.slot_of_layer)] for name, value in word.slots.items()}
            return Concept(
                name=self.settings.name,
                class_word=given if isinstance(given, str) else ", ".join(given),
                vectors=dict(word.vectors),
                layer_vectors=layers,
                latents=self._kept_latents(),
                lora=None if weights is None else weights.lora(learner.learned_weights()),
                provenance=self._provenance(),
            )

    def _kept_latents(self) -> torch.Tensor | None:
        """What was kept before stays with the concept, so that its prompts can be repaired after a second stage too."""
        if self.settings.keep_latents:
            return self.prepared.bank.kept()
        return getattr(self._initial, "latents", None)

    def _run(self) -> Generator[Event, None, None]:
        with ExitStack() as stack:
            stack.enter_context(self.model.session(gradient_checkpointing=self.settings.gradient_checkpointing))
            learner = self._begin(stack).learner
            try:
                yield Started(learner.done, self.settings.steps, learner.numbers)
                if learner.done == 0:
                    yield from self._previews()
                while learner.done < self.settings.steps and self._stop is None:
                    self._advance()
                    yield from self._report()
                yield from self._finish()
            except BaseException:
                # Also GeneratorExit: whoever stops listening keeps the work.
                self._keep()
                raise

    def _begin(self, stack: ExitStack) -> Prepared:
        settings, model = self.settings, self.model
        if self._resume is None:
            require_place(settings.checkpoint_dir)
        if settings.precision == "fp32" and model.dtype != torch.float32:
            raise ValueError(f"the model is loaded in {model.dtype}: load it in float32, or set precision to 'model'")
        words = [settings.class_word] if isinstance(settings.class_word, str) else settings.class_word
        for word in words:
            require_tokens(model.text_encoders.values(), word)
        bank = latent_bank_of(model, settings, self._images, self._masks)
        del self._images, self._masks  # the bank has them, as long as it needs them
        prepared = self.prepared = prepare(
            stack,
            model,
            settings,
            bank,
            regularizers=self.regularizers,
            initial=self._initial,
            changes=self._changes,
        )
        if self._resume is not None:
            go_on_from(self._resume, partial(self._continue, prepared))
        if prepared.learner.done < settings.steps:
            require_place(settings.checkpoint_dir, prepared.learner.numbers)
        self._started = time.perf_counter()
        return prepared

    def _continue(self, prepared: Prepared, checkpoint: Checkpoint) -> None:
        learner = prepared.learner
        require_same_run(prepared.identity, checkpoint)
        if checkpoint.state["weights"].keys() != learner.weights.keys():
            raise CheckpointMismatchError("this checkpoint belongs to another training: other layers learn in it")
        for part in ("vectors", "weights", "average"):
            require_like(getattr(learner, part), checkpoint.state[part])
        self.history = History(checkpoint.losses)
        learner.load(checkpoint.state)
        if not 0 < learner.done <= self.settings.steps:
            raise ValueError(f"it is of step {learner.done} of {self.settings.steps}")
        self._before = float(checkpoint.facts["seconds"])
        self._saved = learner.done

    def _advance(self) -> None:
        """One optimiser step."""
        learner = self.learner
        try:
            losses, total = self.prepared.objective.gather(learner.done, learner.backward)
            failed = learner.step(total)
        except BaseException:
            learner.forget_gradients()
            raise
        self.history.add({**losses, "failed": failed})

    def _report(self) -> Iterator[Event]:
        settings, done = self.settings, self.learner.done
        last = done == settings.steps or self._stop is not None
        preview = settings.preview_every > 0 and done % settings.preview_every == 0
        checkpoint = settings.checkpoint_dir is not None and done % settings.checkpoint_every == 0
        losses = None
        if last or preview or checkpoint or done % settings.log_every == 0:
            losses = self._fetch()
        yield Step(self.learner.done, settings.steps, losses)
        if self._stop is None and checkpoint and not last:
            yield written(done, self._save)
        if self._stop is None and preview:
            yield from self._previews()

    def _fetch(self) -> Mapping[str, torch.Tensor]:
        """Losses since the last time. Where a step was not finite, the run goes back to the one before and ends."""
        start = len(self.history)
        self.history.fetch()
        failures = [step for step in range(start, len(self.history)) if self.history.values["failed"][step]]
        if failures:
            self._go_back_to(failures[0])
        return {name: value[start:] for name, value in self.history.tensors().items() if name not in FLAGS}

    def _go_back_to(self, good: int) -> None:
        """The vectors are already those after `good` steps: nothing moved since."""
        culprits = [name for name in self.history.not_finite(good) if name not in FLAGS] or ["gradient"]
        self.history.cut(good)
        self.learner.done = good
        reason = f"{' and '.join(culprits)} not finite at step {good + 1}"
        if good == 0:
            raise NonFiniteLossError(
                f"{reason}, the first: nothing was learned, and no learning rate has counted yet. Load the model in "
                "bf16 or fp32 instead of fp16, and see whether it draws pictures at all"
            )
        advice = "try a smaller learning rate, or bf16 or fp32 instead of fp16"
        self._stop = f"{reason}; the vectors are those after step {good}; {advice}"

    def _finish(self) -> Iterator[Event]:
        learner = self.learner
        self._fetch()
        if learner.done > self._saved and self.settings.checkpoint_dir is not None:
            yield written(learner.done, self._save)
        if self._stop is None:
            self._require_learning()
        # After the checkpoint: whatever happens to a picture, the work is kept.
        yield from self._previews()
        losses = {name: value for name, value in self.history.tensors().items() if name not in FLAGS}
        yield Finished(self.concept, learner.done, losses, self._seconds(), self._stop)

    def _require_learning(self) -> None:
        learner = self.learner
        try:
            check_learned(
                {name: value.flatten(0, -2) for name, value in learner.initial.items()},
                {name: value.flatten(0, -2) for name, value in learner.vectors.items()},
            )
            if self.prepared.weights is not None:
                self.prepared.weights.check_learned()
        except LearnedNothingError as error:
            advice = "raise the learning rate or the steps, and see that the masks leave something to learn from"
            raise LearnedNothingError(f"{error}. After {learner.done} steps: {advice}") from None

    def _keep(self) -> None:
        if self.settings.checkpoint_dir is not None and self.learner is not None and self.learner.done > self._saved:
            written(self.learner.done, self._save)

    def _save(self) -> Path:
        learner = self.learner
        self.history.cut(learner.done)
        facts = {"seconds": self._seconds()}
        checkpoint = Checkpoint(self.prepared.identity, learner.state(), self.history.tensors(), facts)
        path = save_checkpoint(self.settings.checkpoint_dir, learner.done, checkpoint)
        self._saved = learner.done
        return path

    def _previews(self) -> Iterator[Preview]:
        """A picture of this step where there are to be any, unless it was drawn already."""
        if self.settings.preview_every > 0 and self._drawn != self.learner.done:
            self._drawn = self.learner.done
            yield self._preview()

    @torch.no_grad()
    def _preview(self) -> Preview:
        settings, prompts = self.settings, self.prepared.prompts
        side = self.prepared.bank.shape[-1]
        latents = sample(
            self.model,
            prompts.conditioning(prompts.with_concept([settings.preview_prompt])),
            prompts.conditioning(encode_prompts(self.model, [""])),
            shape=(1, self.model.latent_channels, side, side),
            steps=settings.preview_steps,
            guidance=settings.preview_guidance,
            seed=settings.preview_seed,
        )
        return Preview(self.learner.done, as_pictures(self.model.to_images(latents)), settings.preview_prompt)

    def _seconds(self) -> float:
        return self._before + time.perf_counter() - self._started

    def _provenance(self) -> dict[str, Any]:
        losses = {name: value for name, value in self.history.tensors().items() if name not in FLAGS}
        tail = {name: _late(value) for name, value in losses.items() if len(value)}
        before = getattr(self._initial, "provenance", None)
        return {
            **({"began_with": dict(before)} if before else {}),
            "model": self.model.name,
            "model_fingerprint": self.model.fingerprint,
            "text_encoders": {name: encoder.fingerprint for name, encoder in self.model.text_encoders.items()},
            "steps": self.learner.done,
            "settings": self.settings.identity(),
            "regularizers": [regularizer.state() for regularizer in self.regularizers],
            "losses": tail,
            "seconds": round(self._seconds(), 3),
        }


def _late(values: torch.Tensor) -> float:
    """The mean of a loss over its last tenth of the steps (steps,), or its last value where it is in none of those."""
    tail = values[-max(1, len(values) // 10) :]
    seen = values[~values.isnan()]
    return (seen[-1:] if tail.isnan().all() else tail).nanmean().item()
