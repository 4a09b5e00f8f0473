"""Every choice of a training run, checked when it is made."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import torch

from ..concept import PLACEHOLDER
from ..maths.finite import require_finite_fields
from ..maths.norms import NormMode
from ..maths.sphere import KAPPA
from ..prompts.phrases import checked_phrase, checked_text
from ..prompts.tokens import Words
from .defaults import Precision, UNetPasses
from .methods import Method, method_called
from .run.checks import require_at_least_one, require_not_negative, require_one_of
from .run.schedules import LearningRateSchedule

CORE_TEMPLATES = ("a photo of a {}",)
"""METHODS.md C1: the one instance prompt of the official CoRe code."""


@dataclass(frozen=True)
class Augmentation:
    """METHODS.md 1.4: rotate with `expand`, resize the short side, flip, crop at random, as the official code does.

    `rotation` is the largest angle in degrees, `rotate` and `flip` are probabilities. Corners that a rotation leaves
    empty are filled by reflection, so that the autoencoder sees no hard edge, and masked out of the loss. `bank`
    augmented versions of every picture are drawn from, each encoded when it is first drawn: a later step then
    costs no pass of the autoencoder.
    """

    rotation: float = 45.0
    rotate: float = 0.75
    flip: float = 0.25
    random_crop: bool = True
    bank: int = 16

    def __post_init__(self) -> None:
        for name in ("rotate", "flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, not {getattr(self, name)}")
        if not 0 <= self.rotation <= 180 or self.bank < 1:
            raise ValueError(f"rotation within 0..180 degrees and a bank of at least 1, not {self}")


@dataclass(frozen=True)
class TrainSettings:
    """What `trainer.train` needs beside a model and pictures. Raises ValueError for a value it cannot work with.

    `class_word` is the super-category, a word or a phrase: the vectors start from its tokens. The defaults are CoRe's
    stage 1 (METHODS.md 1.4). `batch` is what goes through the UNet at once; a step sees `batch * gradient_accumulation`
    samples and the result does not depend on how they are divided. `window` is a share of the run (METHODS.md C5).
    `resolution` None takes the model's own. `passes` runs the regularizers' UNet passes in one
    batch with the main pass ("joint") or after it ("separate"); the numbers differ by rounding only.

    `method` is one of `METHODS`, `rank` that of the weights' change (None: the method's own, 0: whole weights) and
    `weight_rate` their learning rate (None: the vectors'). With `identifier`, a rare word such as "sks", the word is
    the identifier and then the class word, as Custom Diffusion and DreamBooth write it; only the identifier's vectors
    are learned, where any are. `diffusion_weight` 0 leaves the diffusion loss and its UNet pass out (METHODS.md C6),
    `timestep_range` is the share of the schedule that timesteps are drawn from, and `keep_latents` stores the training
    pictures' latents with the concept (a few ten kilobytes each). `least_rank` makes the rank of the UNet's change
    depend on the timestep while it is trained, from all of it without noise to this one where there is most (T-LoRA,
    METHODS.md 6 no. 4); what is saved is an ordinary LoRA, which acts with its whole rank. `class_word` has one entry
    a placeholder where several concepts are trained together.

    With `preview_every` there is a picture before the first step, one every so many steps, and one where the run ends,
    also where it is stopped; 0: none at all.

    `captions` are prompts of each picture's own, in the order of the pictures, in place of the `templates` for that
    picture where there are any. With `transparent_masks` masks say where a picture is transparent, which is put on
    white and counts, and not what counts. `kappa` is the pull to the class word in norm mode "dti" (METHODS.md 5.1),
    where a step goes `learning_rate` radians, whatever the optimizer. With `only_layers` those of the method's layers
    alone learn whose names hold one of these ("attn1": self-attention).
    `encoders` are the text encoders that the word learns in; in the others it stays the class word. () leaves that to
    the model, whose own choice is all of them unless it says otherwise.

    With `regularize_every` k the regularizers are asked in steps 0, k, 2k, ... alone, and their terms weigh k times as
    much there: the same on average, more variance, and the steps between are plain ones. A regularizer that is a part
    of the batch (`Regularizer.every_step`) is asked in each step all the same.
    """

    class_word: Words
    name: str = "concept"
    vectors: int = 1
    steps: int = 300
    batch: int = 6
    gradient_accumulation: int = 1
    learning_rate: float = 5e-3
    schedule: LearningRateSchedule = "constant"
    warmup: int = 0
    optimizer: str = "AdamW"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    norm_mode: NormMode = "none"
    window: tuple[float, float] = (0.4, 0.6)
    ema: float | None = None
    min_snr_gamma: float | None = None
    templates: tuple[str, ...] = CORE_TEMPLATES
    resolution: int | None = None
    augmentation: Augmentation | None = None
    seed: int = 0
    precision: Precision = "model"
    passes: UNetPasses = "joint"
    gradient_checkpointing: bool = False
    log_every: int = 10
    checkpoint_dir: Path | None = None
    checkpoint_every: int = 50
    preview_every: int = 0
    preview_prompt: str = "a photo of a {}"
    preview_seed: int = 0
    preview_steps: int = 25
    preview_guidance: float = 4.0
    method: str = "ti"
    rank: int | None = None
    weight_rate: float | None = None
    identifier: str = ""
    diffusion_weight: float = 1.0
    timestep_range: tuple[float, float] = (0.0, 1.0)
    keep_latents: bool = False
    least_rank: int | None = None
    captions: tuple[tuple[str, ...], ...] = ()
    transparent_masks: bool = False
    kappa: float = KAPPA
    only_layers: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()
    regularize_every: int = 1

    def __post_init__(self) -> None:
        counts = ("vectors", "steps", "batch", "gradient_accumulation", "log_every", "checkpoint_every")
        require_at_least_one(self, (*counts, "regularize_every"))
        require_not_negative(self, ("warmup", "preview_every", "seed"))
        require_finite_fields(self)
        words = [self.class_word] if isinstance(self.class_word, str) else self.class_word
        if not words or not all(word.strip() for word in words):
            raise ValueError("a class word is needed: the nearest ordinary word for what is in the pictures")
        for word in words:
            checked_phrase(word)
        for prompt in (*self.templates, self.preview_prompt, self.identifier):
            checked_text(prompt, "a training prompt")
        low, high = self.timestep_range
        if not 0 <= low < high <= 1 or self.diffusion_weight < 0:
            raise ValueError(f"timesteps within 0..1 and a weight >= 0: {low}, {high}, {self.diffusion_weight}")
        if not self.learning_rate > 0 or not (self.weight_rate is None or self.weight_rate > 0):
            raise ValueError(f"learning rates are greater than 0, not {self.learning_rate} and {self.weight_rate}")
        if method_called(self.method).trains_weights and self.rank is not None and self.rank < 0:
            raise ValueError(f"the rank cannot be negative: {self.rank}")
        if self.least_rank is not None and not 1 <= self.least_rank <= self.low_rank:
            raise ValueError(
                f"the least rank is within 1 .. {self.low_rank}, the rank of the LoRA, not {self.least_rank}"
                if self.low_rank
                else f"{self.method!r} trains no LoRA whose rank could depend on the timestep"
            )
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ValueError(f"ema is a decay within 0 <= ema < 1, not {self.ema}")
        for name, allowed in _CHOICES.items():
            require_one_of(name, getattr(self, name), get_args(allowed))
        if not self.templates or any(PLACEHOLDER not in template for template in self.templates):
            raise ValueError(f"every training template needs a {PLACEHOLDER}: {self.templates}")
        for caption in chain(*self.captions):
            if PLACEHOLDER not in caption:
                raise ValueError(f"a caption to train on needs a {PLACEHOLDER}: {caption[:80]!r}")
        if self.norm_mode == "dti" and not isinstance(self.class_word, str):
            raise ValueError("norm mode 'dti' pulls to one class word, and several concepts are trained together")
        if not 0 <= self.kappa < float("inf"):
            raise ValueError(f"kappa, the pull to the class word, is 0 or more, not {self.kappa}")
        if self.regularize_every > self.steps:
            raise ValueError(
                f"regularize_every is {self.regularize_every} and there are {self.steps} steps: in one step the "
                f"regularizers would weigh more than in all of them; {self.steps} is the most"
            )
        if self.regularize_every > 1 and self.diffusion_weight == 0:
            raise ValueError(
                "without a diffusion loss a step without a regularizer teaches nothing: regularize_every has to be 1"
            )
        optimizer_class(self.optimizer)

    @property
    def prompts(self) -> tuple[str, ...]:
        """All that is trained on: the templates, then the captions of one picture after the other."""
        return (*self.templates, *chain(*self.captions))

    @property
    def prompts_of_pictures(self) -> tuple[range, ...]:
        """Which of `prompts` each picture is trained on; () where every picture takes the templates."""
        found, start = [], len(self.templates)
        for own in self.captions:
            found.append(range(start, start + len(own)) if own else range(len(self.templates)))
            start += len(own)
        return tuple(found)

    @property
    def samples(self) -> int:
        """Samples that one optimiser step sees."""
        return self.batch * self.gradient_accumulation

    @property
    def trains(self) -> Method:
        """What is trained."""
        return method_called(self.method)

    @property
    def low_rank(self) -> int:
        """The rank of the weights' change; 0 where whole weights change, or none does."""
        if not self.trains.trains_weights:
            return 0
        return self.trains.rank if self.rank is None else self.rank

    def identity(self) -> dict[str, Any]:
        """What decides the numbers of a run, as flat JSON data; a checkpoint is only resumed where all of it agrees."""
        values = asdict(self)
        for name in _REPORTING:
            values.pop(name)
        # What was added later is left out where it decides nothing, so that earlier checkpoints are gone on with.
        if not self.captions:
            values.pop("captions")
        if not self.transparent_masks:
            values.pop("transparent_masks")
        if self.norm_mode != "dti":
            values.pop("kappa")
        if not self.only_layers:
            values.pop("only_layers")
        if not self.encoders:
            values.pop("encoders")
        if self.regularize_every == 1:
            values.pop("regularize_every")
        augmentation = values.pop("augmentation")
        values |= {f"augmentation.{key}": value for key, value in (augmentation or {"bank": None}).items()}
        values["optimizer_options"] = dict(self.optimizer_options)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


_CHOICES = {
    "schedule": LearningRateSchedule,
    "norm_mode": NormMode,
    "precision": Precision,
    "passes": UNetPasses,
}
# Switches that report, store or save memory and leave every number as it is.
_REPORTING = (
    "gradient_checkpointing",
    "log_every",
    "checkpoint_dir",
    "checkpoint_every",
    "preview_every",
    "preview_prompt",
    "preview_seed",
    "preview_steps",
    "preview_guidance",
    "keep_latents",
)


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The optimizer of `torch.optim` called `name`.

    Raises ValueError that lists the usable ones; those whose step wants a closure (LBFGS) are not.
    """
    usable = {
        key: value
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and _steps_alone(value)
    }
    if name not in usable:
        raise ValueError(f"unknown optimizer {name!r}: expected one of {', '.join(sorted(usable))}")
    return usable[name]


def _steps_alone(optimizer: type[torch.optim.Optimizer]) -> bool:
    if optimizer is torch.optim.Optimizer:
        return False
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is None or closure.default is not inspect.Parameter.empty
