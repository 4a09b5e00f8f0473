"""Prior preservation as a regularizer: the class must stay what the model makes of it (METHODS.md 2.6)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ...concept import PLACEHOLDER
from ...files.atomic import atomic_write_verified
from ...maths.finite import require_finite
from ...maths.schedule import diffusion_loss
from ...models.frozen import autograd
from ...models.protocol import ImageSize, TextToImageModel
from ...models.sampling import sample
from ...models.text import encode_prompts
from ...prompts.tokens import ConceptRows, Words
from ..methods import Method
from ..run.checkpoint import CHECKSUM, checksum
from ..run.draws import send
from ..run.noising import Noising
from .seam import LossTerm, Terms, TrainingStep, one_class_word

log = logging.getLogger(__name__)

PRIOR_PROMPT = "a picture of a {}"
"""METHODS.md 2.6."""
Progress = Callable[[int, int], None]
"""Receives (pictures there are, pictures wanted)."""


def require_weights(method: Method) -> None:
    """Raises ValueError where no weights are trained: hours of drawing and a pass a step would then hold nothing."""
    if not method.trains_weights:
        raise ValueError(
            f"prior preservation holds what the model makes of the class word, and {method.title} changes no weights: "
            "set its weight to 0"
        )


class PriorPreservation:
    """The diffusion loss on `pictures` of the class that the model itself draws, `weight` times.

    They are drawn once, by the model as it came, and kept in `folder` under a name that says which model, words and
    numbers they belong to; where an interrupted run has left some, the rest is drawn. `batch` of them are looked at in
    a step, and in each step, whatever `TrainSettings.regularize_every` says: they are the other half of the papers'
    batch, with as much weight as the first, and no term beside it. Weights would drift for k - 1 steps with nothing to
    hold them, and be pulled back by a loss k times the pictures' own. `resolution` is that of the training pictures, in
    pixels a side. `applied` is whatever else changes what the model draws, such as LoRAs on it. Weight 0 costs nothing
    and changes nothing.
    """

    name = "prior"
    every_step = True

    def __init__(
        self,
        folder: Path | None = None,
        *,
        resolution: int,
        weight: float = 1.0,
        pictures: int = 100,
        batch: int = 4,
        prompt: str = PRIOR_PROMPT,
        steps: int = 25,
        guidance: float = 7.5,
        seed: int = 0,
        progress: Progress | None = None,
        applied: str = "",
    ) -> None:
        require_finite(prior_preservation=weight)
        if weight < 0 or pictures < 1 or batch < 1 or steps < 1:
            raise ValueError(f"weight >= 0, pictures, batch and steps >= 1: {weight}, {pictures}, {batch}, {steps}")
        if prompt.count(PLACEHOLDER) != 1:
            raise ValueError(f"the prior's prompt needs one {PLACEHOLDER} for the class word: {prompt!r}")
        self.folder, self.weight, self.pictures, self.batch = folder, weight, pictures, batch
        self.prompt, self.resolution = prompt, resolution
        self.steps, self.guidance, self.seed, self.progress = steps, guidance, seed, progress
        self.applied = applied
        self.latents: torch.Tensor | None = None

    def prepare(self, model: TextToImageModel, class_word: Words, rows: ConceptRows) -> None:
        """Draw what is missing. Raises ValueError without a class word, or with several."""
        if self.weight == 0:
            return
        class_word = one_class_word(class_word, "prior preservation")
        if not class_word.strip():
            raise ValueError("prior preservation draws pictures of the class: give the class word")
        side = self.resolution // model.latent_factor
        self.size = ImageSize(side * model.latent_factor, side * model.latent_factor)
        path = None if self.folder is None else self.folder / f"class_{self._key(model, class_word, side)}.safetensors"
        with torch.no_grad():
            self.latents = self._drawn(model, class_word, side, path)
        self.noised = Noising(model)

    def __call__(self, step: TrainingStep) -> Terms:
        if self.weight == 0:
            return Terms()
        model, generator, device = step.model, step.generator, step.latents.device
        rows = send(torch.randint(self.pictures, (self.batch,), generator=generator), device)
        timesteps = send(torch.randint(model.schedule.steps, (self.batch,), generator=generator), device)
        noise = send(torch.randn((self.batch, *self.latents.shape[1:]), generator=generator), device)
        noised = self.noised(self.latents[rows], noise, timesteps)
        # With gradient: a text encoder that learns has to keep what it says about the class.
        encodings = encode_prompts(model, [self.prompt], words=one_class_word(step.class_word, "prior preservation"))
        given = model.conditioning(encodings, self.size).expand(self.batch)
        loss = diffusion_loss(model.predict(noised.latents, timesteps, given), noised.target)
        return Terms({f"{self.name}/diffusion": LossTerm(loss, self.weight)})

    def state(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weight": self.weight,
            "pictures": self.pictures,
            "batch": self.batch,
            "prompt": self.prompt,
            "resolution": self.resolution,
            "steps": self.steps,
            "guidance": self.guidance,
            "seed": self.seed,
        }

    def _drawn(self, model: TextToImageModel, class_word: str, side: int, path: Path | None) -> torch.Tensor:
        """(pictures, C, h, w) latents on the model's device."""
        parts = [] if path is None else _kept(path, (model.latent_channels, side, side))
        positive = model.conditioning(encode_prompts(model, [self.prompt], words=class_word), self.size)
        negative = model.conditioning(encode_prompts(model, [""]), self.size)
        while (done := sum(map(len, parts))) < self.pictures:
            if self.progress is not None:
                self.progress(done, self.pictures)
            count = min(self.batch, self.pictures - done)
            shape = (count, model.latent_channels, side, side)
            seeds = [self.seed + done + index for index in range(count)]
            drawn = sample(model, positive, negative, shape=shape, steps=self.steps, guidance=self.guidance, seed=seeds)
            parts.append(drawn.float().cpu())
            if path is not None:
                _keep(path, torch.cat(parts))
        with autograd():
            return torch.cat(parts)[: self.pictures].to(model.device, copy=True)

    def _key(self, model: TextToImageModel, class_word: str, side: int) -> str:
        facts = [model.fingerprint, class_word, self.prompt, side, self.steps, self.guidance, self.seed]
        facts += [encoder.fingerprint for encoder in model.text_encoders.values()]
        facts += [self.applied] if self.applied else []
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _kept(path: Path, shape: tuple[int, ...]) -> list[torch.Tensor]:
    """What an earlier run has drawn; nothing, which is said, where the disk has damaged it."""
    if not path.exists():
        return []
    try:
        with safe_open(path, framework="pt") as file:
            header, latents = file.metadata() or {}, file.get_tensor("latents")
    except (SafetensorError, OSError) as error:
        log.warning("Contextual Inversion draws the class pictures of %s again: %s", path, error)
        return []
    # Earlier versions wrote no checksum.
    whole = header.get(CHECKSUM) in (None, checksum("", {"latents": latents}))
    if not whole or latents.shape[1:] != shape:
        log.warning("Contextual Inversion draws the class pictures of %s again: the disk has changed them", path)
        return []
    return [latents]


def _keep(path: Path, latents: torch.Tensor) -> None:
    """Write them for the next run; where the disk fails, which is said, this one goes on without."""
    tensors = {"latents": latents}
    try:
        data = save(tensors, {CHECKSUM: checksum("", tensors)})
        atomic_write_verified(path, data, if_exists="replace")
    except OSError as error:
        log.warning("Contextual Inversion does not keep the class pictures: %s", error)
