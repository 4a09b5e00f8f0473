"""Exact evaluation of a learned word on ConceptWorld: was the prompt obeyed, and is it still the subject?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange

from ...concept import Concept
from ...models.late_lora import Reached, deltas_from, require_start
from ...models.lora import from_lora
from ...models.low_rank import Delta, apply_deltas, text_weight_layers
from ...models.protocol import Conditioning, ImageSize, TextToImageModel
from ...models.sampling import sample
from ...models.text import encode_prompts
from ...models.tiny.config import SAMPLING
from ...world.captions import BACKGROUND_PHRASES
from ...world.concepts import WorldConcept
from ...world.prompts import EVALUATION_BACKGROUNDS, EvaluationPrompt
from ...world.scenes import CONCEPT_PREFIX, IMAGE_SIZE
from ..diagnosis.context_similarity import ContextProbe
from .checks import Judge, Verdict, default_judge, subject_similarity

SIZE = ImageSize(IMAGE_SIZE, IMAGE_SIZE)


@dataclass(frozen=True)
class WorldScore:
    """Rates over pictures, each in 0..1.

    `fidelity`: of everything the prompts ask for (background, second object, style), the share that is there.
    `background`, `held_out_background`, `second_object`, `style`: the same for one kind of demand; held out are the
    backgrounds that no regularisation prompt names. `leak`: another background was asked for and the training
    pictures' came. `recognised`: the judge names the concept. `concept_score`: its mean probability of the concept.
    `similarity`: cosine of the judge's subject features with the training pictures'. `composed`: everything that the
    prompt asks for is there *and* the judge names the concept. NaN where no prompt asks.
    """

    fidelity: float
    background: float
    held_out_background: float
    second_object: float
    style: float
    leak: float
    recognised: float
    concept_score: float
    similarity: float
    composed: float
    pictures: int

    def figures(self) -> dict[str, float | int]:
        """As plain data."""
        return asdict(self)


def draw(
    model: TextToImageModel,
    templates: Sequence[str],
    seeds: Sequence[int],
    *,
    concept: Concept | None = None,
    vectors: Mapping[str, torch.Tensor] | None = None,
    words: str | None = None,
    batch: int = 20,
    steps: int = SAMPLING["steps"],
    guidance: float = SAMPLING["guidance"],
    eta: float = SAMPLING["eta"],
    lora_start: float = 0.0,
) -> np.ndarray:
    """One picture a template, uint8 (N, 128, 128, 3): the slot filled with all of a `concept` (its vectors, those of
    the layers, its LoRA, whose part for the denoiser acts from `lora_start` of the sampling on), with bare `vectors`,
    or with `words`.

    Picture i depends on its template, its seed and nothing else. DDIM, with `eta` of DDPM's noise at every step
    (`core.models.sampling`). Raises ValueError as `require_start`.
    """
    require_start(lora_start)
    layers = None if concept is None else concept.layer_vectors
    vectors = vectors if concept is None else concept.vectors
    pictures = []
    now, late = parted(model, concept, lora_start)
    options: dict[str, Any] = {"steps": steps, "guidance": guidance, "eta": eta}
    with model.session(), apply_deltas(model, now), torch.no_grad():
        for start in range(0, len(templates), batch):
            part = slice(start, start + batch)
            encodings = encode_prompts(model, list(templates[part]), vectors=vectors, words=words, layers=layers)
            context = model.conditioning(encodings, SIZE)
            with deltas_from(model, late, lora_start) as reached:
                pictures.append(sampled(model, context, seeds[part], **options, reached=reached))
    return np.concatenate(pictures)


def parted(
    model: TextToImageModel, concept: Concept | None, lora_start: float
) -> tuple[dict[str, Delta], dict[str, Delta]]:
    """The changes of a concept's LoRA that act all the time, those of the text encoders among them, and those that act
    from `lora_start` of the sampling on."""
    deltas = {} if concept is None else from_lora(model, concept.lora or {})
    late = set(deltas) - set(text_weight_layers(model)) if lora_start > 0 else set()
    return tuple({name: deltas[name] for name in deltas if (name in late) == later} for later in (False, True))


@torch.no_grad()
def sampled(
    model: TextToImageModel,
    context: Conditioning,
    seeds: Sequence[int],
    *,
    steps: int = SAMPLING["steps"],
    guidance: float = SAMPLING["guidance"],
    eta: float = SAMPLING["eta"],
    reached: Reached | None = None,
) -> np.ndarray:
    """One picture a seed, uint8 (N, 128, 128, 3), for `context` (N prompts), guided away from the empty prompt.

    Inside a session of `model`, which may be a `DualPathModel`.
    """
    side = IMAGE_SIZE // model.latent_factor
    shape = (len(seeds), model.latent_channels, side, side)
    empty = model.conditioning(encode_prompts(model, [""]), SIZE)
    options: dict[str, Any] = {"steps": steps, "guidance": guidance, "eta": eta, "reached": reached}
    latents = sample(model, context, empty, shape=shape, seed=list(seeds), **options)
    return as_bytes(model.to_images(latents))


def with_lora(model: TextToImageModel, concept: Concept | None) -> AbstractContextManager[None]:
    """`model` with the concept's LoRA inside, where it has one."""
    now, _ = parted(model, concept, 0.0)
    return apply_deltas(model, now)


def score(
    pictures: np.ndarray,
    prompts: Sequence[EvaluationPrompt],
    concept: WorldConcept,
    references: np.ndarray,
    *,
    training_background: str | None = None,
    judge: Judge | None = None,
    verdicts: Sequence[Verdict] | None = None,
) -> WorldScore:
    """Judge one picture a prompt, by the `verdicts` of `judge` where it has read them already. `references` are the
    training pictures; raises ValueError where counts differ."""
    if len(pictures) != len(prompts) or len(prompts) == 0:
        raise ValueError(f"one picture for each prompt expected: {len(pictures)} pictures, {len(prompts)} prompts")
    judge = judge or default_judge()
    verdicts = judge.read(pictures) if verdicts is None else verdicts
    answers = [answered(prompt, verdict) for prompt, verdict in zip(prompts, verdicts, strict=True)]
    name = CONCEPT_PREFIX + concept.name
    home = training_background or concept.background
    elsewhere = [v for p, v in zip(prompts, verdicts, strict=True) if p.background not in (None, home)]
    held_out = [a["background"] for p, a in zip(prompts, answers, strict=True) if p.held_out]
    return WorldScore(
        fidelity=_mean([right for answer in answers for right in answer.values()]),
        background=_mean([a["background"] for a in answers if "background" in a]),
        held_out_background=_mean(held_out),
        second_object=_mean([a["second_object"] for a in answers if "second_object" in a]),
        style=_mean([a["style"] for a in answers if "style" in a]),
        leak=_mean([v.background == home for v in elsewhere]),
        recognised=_mean([v.subject == name for v in verdicts]),
        concept_score=float(judge.concept_score(verdicts, concept.name).mean()),
        similarity=float(subject_similarity(verdicts, judge.read(references)).mean()),
        composed=_mean([all(a.values()) and v.subject == name for a, v in zip(answers, verdicts, strict=True)]),
        pictures=len(pictures),
    )


def answered(prompt: EvaluationPrompt, verdict: Verdict) -> dict[str, bool]:
    """What the prompt asks for, and whether it is on the picture."""
    right = {}
    if prompt.background is not None:
        right["background"] = verdict.background == prompt.background
    if prompt.second is not None:
        right["second_object"] = verdict.second_present
    if prompt.style is not None:
        right["style"] = verdict.style == prompt.style
    return right


def obeys(prompts: Sequence[EvaluationPrompt], verdicts: Sequence[Verdict]) -> list[bool]:
    """For every picture whether all is there that its prompt asks for beside the subject."""
    return [all(answered(*one).values()) for one in zip(prompts, verdicts, strict=True)]


def context_probes(backgrounds: Sequence[str] = EVALUATION_BACKGROUNDS) -> list[ContextProbe]:
    """Probes for sim1 and sim2 (METHODS.md 2.7) in this world's words: "a photo of a {} in the snow", its last word
    "snow", and the same without the concept, "a photo in the snow"."""
    return [
        ContextProbe(f"a photo of a {{}} {phrase}", phrase.split()[-1], f"a photo {phrase}")
        for background in backgrounds
        for phrase in BACKGROUND_PHRASES[background]
    ]


def as_bytes(images: torch.Tensor) -> np.ndarray:
    """Images (N, 3, H, W) in [-1, 1] as uint8 (N, H, W, 3)."""
    return (
        rearrange(((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8), "b c h w -> b h w c")
        .cpu()
        .numpy()
    )


def as_training_images(pictures: np.ndarray) -> torch.Tensor:
    """uint8 (N, H, W, 3) as float32 in [0, 1], the form in which pictures enter a training."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).float() / 255


def _mean(values: Sequence[float | bool]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
