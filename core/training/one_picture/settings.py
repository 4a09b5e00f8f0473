"""Every choice of a tuning-encoder's pretraining (METHODS.md 3.4 and 3.5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...maths.contrastive import LAMBDA_CONTRASTIVE, LAMBDA_NORM, NEIGHBOURS, TAU
from ...maths.finite import require_finite_fields
from ...networks.tuning_encoder import PRESETS, TIMESTEPS
from ..defaults import EncoderPrecision
from ..run.checks import choices_without, require_at_least_one, require_not_negative, require_one_of
from ..run.schedules import LearningRateSchedule


@dataclass(frozen=True)
class EncoderPretrainSettings:
    """Every choice of a pretraining, checked when it is made; the defaults are METHODS.md 3.4's table.

    `batch` is that of all processes together. `ema` averages the weights, None does not. `alpha` is the dual path's
    blend, None trains the soft path alone. `cache` pictures keep their latents and CLIP features in memory,
    `prepared.CACHE_BYTES` at most.
    """

    steps: int = 150_000
    batch: int = 16
    learning_rate: float = 1.6e-5
    weight_decay: float = 1e-2
    schedule: LearningRateSchedule = "constant"
    warmup: int = 0
    preset: str = "sd"
    rank: int = 4
    resolution: int = 512
    timesteps: tuple[int, ...] = TIMESTEPS
    contrastive: float = LAMBDA_CONTRASTIVE
    l2: float = LAMBDA_NORM
    temperature: float = TAU
    positives: int = NEIGHBOURS
    detach_negatives: bool = False
    alpha: float | None = None
    ema: float | None = 0.999
    precision: EncoderPrecision = "fp32"
    gradient_checkpointing: bool = False
    clip_norm: float | None = 1.0
    seed: int = 0
    cache: int = 20_000
    log_every: int = 50
    checkpoint_dir: Path | None = None
    checkpoint_every: int = 1000
    preview_every: int = 0
    preview_pictures: int = 4

    def __post_init__(self) -> None:
        counts = ("steps", "batch", "rank", "positives", "log_every", "checkpoint_every", "preview_pictures")
        require_finite_fields(self)
        require_at_least_one(self, counts)
        weights = ("contrastive", "l2", "weight_decay")
        require_not_negative(self, ("warmup", "seed", "cache", "preview_every", *weights))
        if not self.learning_rate > 0 or not self.temperature > 0:
            raise ValueError("the learning rate and the temperature are greater than 0")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ValueError(f"ema is a decay within 0 <= ema < 1, not {self.ema}")
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is a share within 0 to 1, not {self.alpha}")
        require_one_of("preset", self.preset, tuple(PRESETS))
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"unknown precision {self.precision!r}: fp32 or bf16")
        if not self.timesteps or not all(0 <= one < 1000 for one in self.timesteps):
            raise ValueError(f"timesteps lie within 0 to 999, at least one of them, not {self.timesteps}")

    def identity(self) -> dict[str, Any]:
        """What decides the numbers of a run, as JSON data."""
        return {**choices_without(self, _REPORTING), "timesteps": list(self.timesteps)}


_REPORTING = (
    "log_every",
    "checkpoint_dir",
    "checkpoint_every",
    "cache",
    "preview_every",
    "preview_pictures",
    "gradient_checkpointing",
)
"""Choices that report, store or save memory and leave every number as it is."""
