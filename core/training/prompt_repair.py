"""Test-time optimisation (METHODS.md C6, 1.6): a few steps that make one prompt work, on words alone.

It is the one training loop with its diffusion loss at 0. What moves are the words of one or more concepts, and what
they follow is CoRe on the prompt at hand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import torch

from ..concept import PLACEHOLDER, Concept
from ..models.lora import from_lora
from ..models.low_rank import Delta, apply_deltas
from ..models.protocol import ImageSize, TextToImageModel
from ..models.sampling import as_pictures, sample
from ..models.text import encode_prompts
from ..models.words import layer_vectors_of, one_slot_a_layer, vectors_of
from ..wording import quoted
from .defaults import REPAIR_BATCH, REPAIR_RATE, REPAIR_STEPS
from .latent_bank import LatentBank, latent_bank
from .prompts import PromptEncoder
from .regularizers.context import CoReRegularizer, CoReWeights, recommended_weights
from .run.draws import generator_for
from .settings import TrainSettings
from .trainer import TrainingRun, train
from .word import Word

STEPS, LEARNING_RATE, BATCH = REPAIR_STEPS, REPAIR_RATE, REPAIR_BATCH
NOISY = (0.8, 1.0)
"""Share of the schedule for pure noise: its late timesteps, where that is what latents are (METHODS.md 1.10 no. 8)."""


@dataclass(frozen=True)
class PlacedPrompt:
    """A prompt with a placeholder for every mention of a concept, and which concept each stands for."""

    template: str
    concepts: tuple[int, ...]


def placed_prompt(prompt: str, concepts: Sequence[Concept]) -> PlacedPrompt:
    """Find `<name>` and `embedding:name` of the concepts in a prompt; "{}" is the first of them.

    Raises ValueError where a concept is not in the prompt, or two have one name.
    """
    names = [concept.name for concept in concepts]
    if len(set(names)) != len(names):
        raise ValueError(f"two concepts are called alike: {', '.join(names)}; rename one")
    some = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    pattern = re.compile(rf"<({some})>|embedding:({some})(?![\w+-])|{re.escape(PLACEHOLDER)}")
    found = tuple(names.index(match[1] or match[2] or names[0]) for match in pattern.finditer(prompt))
    missing = [name for index, name in enumerate(names) if index not in found]
    if missing:
        raise ValueError(
            f"the prompt {quoted(prompt)} does not mention <{missing[0]}>: write it where the concept goes"
        )
    return PlacedPrompt(pattern.sub(PLACEHOLDER, prompt), found)


def repair(
    model: TextToImageModel,
    concepts: Sequence[Concept],
    prompt: str,
    *,
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
    batch: int = BATCH,
    seed: int = 0,
    weights: CoReWeights | None = None,
    noise_side: int | None = None,
    checkpoint_dir: Path | None = None,
    resume: Path | None = None,
) -> Repair:
    """Optimise the words of `concepts` for one `prompt`: both terms of CoRe, no diffusion loss (METHODS.md C6).

    Both passes of a step see all `batch` latents: those of the training pictures that the first concept kept; with
    `noise_side`, the side of the latents, or where it kept none, pure noise at late timesteps. The LoRAs of the
    concepts are in force and stay as they are. `checkpoint_dir` and `resume` are those of `train`.
    Raises ValueError as `placed_prompt`, or where a concept does not fit the model or does not say its class word.
    """
    placed = placed_prompt(prompt, concepts)
    core = _core(model, placed, weights, batch)
    kept = None if noise_side is not None else concepts[0].latents
    if kept is not None and kept.shape[1] != model.latent_channels:
        raise ValueError(f"the latents kept with {concepts[0].name!r} are those of another autoencoder")
    classes = tuple(concepts[index].require_class_word() for index in placed.concepts)
    settings = TrainSettings(
        class_word=classes,
        name=concepts[0].name,
        steps=steps,
        learning_rate=learning_rate,
        batch=batch,
        seed=seed,
        templates=(placed.template,),
        diffusion_weight=0.0,
        timestep_range=(0.0, 1.0) if kept is not None else NOISY,
        log_every=1,
        checkpoint_dir=checkpoint_dir,
    )
    bank = _noise(model, settings, noise_side or 64) if kept is None else latent_bank(kept)
    word, changes = words_together(model, concepts, placed.concepts), _changes(model, concepts)
    run = train(model, bank, settings, regularizers=[core], resume=resume, initial=word, changes=changes)
    return Repair(run, tuple(concepts), prompt)


def _core(model: TextToImageModel, placed: PlacedPrompt, weights: CoReWeights | None, batch: int) -> CoReRegularizer:
    chosen = weights or recommended_weights(model)
    return CoReRegularizer(
        [placed.template],
        embedding_weight=chosen.embedding,
        attention_weight=chosen.attention,
        attention_batch=batch,  # nothing else looks at the latents
        places=len(placed.concepts),
    )


@dataclass(frozen=True)
class Repair:
    """A repair that goes on while `run` is iterated."""

    run: TrainingRun
    before: tuple[Concept, ...]
    prompt: str

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """The concepts as they are now, in the order in which they were given; for this prompt alone."""
        together, repaired = self.run.concept, []
        begin = dict.fromkeys(together.vectors, 0)
        for concept in self.before:
            rows = {name: slice(begin[name], begin[name] + len(value)) for name, value in concept.vectors.items()}
            begin = {name: part.stop for name, part in rows.items()}
            layers = together.layer_vectors if concept.layer_vectors else None
            repaired.append(
                replace(
                    concept,
                    vectors={name: value[rows[name]].clone() for name, value in together.vectors.items()},
                    layer_vectors=layers and {name: value[:, rows[name]].clone() for name, value in layers.items()},
                    provenance={
                        **concept.provenance,
                        "optimized_for": {
                            "prompt": self.prompt,
                            "steps": together.provenance["steps"],
                            "regularizers": together.provenance["regularizers"],
                        },
                    },
                )
            )
        return tuple(repaired)


def words_together(model: TextToImageModel, concepts: Sequence[Concept], placed: Sequence[int]) -> Word:
    """One word to train, of all `concepts`' vectors one after another; `placed` says which placeholder takes which.

    Raises ValueError where a concept does not fit the model, or only some have a vector for every layer.
    """
    rows = [vectors_of(concept, model) for concept in concepts]
    layers = [layer_vectors_of(concept, model) for concept in concepts]
    if any(one is None for one in layers) and any(one is not None for one in layers):
        raise ValueError("concepts with and without a vector for every layer cannot be optimised together")
    names = list(model.text_encoders)
    parts = _parts(concepts, placed, names)
    if layers[0] is None:
        return Word({name: torch.cat([one[name] for one in rows]) for name in names}, None, None, parts)
    joined = {name: torch.cat([one[name] for one in layers], dim=1) for name in names}
    return Word(joined, None, one_slot_a_layer(model.cross_attention_layers()), parts)


def _parts(
    concepts: Sequence[Concept], placed: Sequence[int], names: Sequence[str]
) -> tuple[range, ...] | dict[str, tuple[range, ...]]:
    """Where the rows of each placeholder's concept lie among those of all, by text encoder where these differ."""
    found = {}
    for name in names:
        ends = list(accumulate(len(one.vectors[name]) for one in concepts))
        found[name] = tuple(range(ends[at] - len(concepts[at].vectors[name]), ends[at]) for at in placed)
    first = found[names[0]]
    return first if all(part == first for part in found.values()) else found


def _changes(model: TextToImageModel, concepts: Sequence[Concept]) -> dict[str, list[Delta]]:
    changes: dict[str, list[Delta]] = {}
    for concept in concepts:
        for name, delta in (from_lora(model, concept.lora) if concept.lora else {}).items():
            changes.setdefault(name, []).append(delta)
    return changes


def _noise(model: TextToImageModel, settings: TrainSettings, side: int) -> LatentBank:
    """Latents that stay pure noise whatever noise is added to them: the sum of two normal draws is normal."""
    shape = (settings.samples, model.latent_channels, side, side)
    return latent_bank(torch.randn(shape, generator=generator_for(settings.seed, "repair", 0)))


@torch.no_grad()
def draw(
    model: TextToImageModel,
    concepts: Sequence[Concept],
    prompt: str,
    *,
    size: tuple[int, int],
    seed: int,
    steps: int = 25,
    guidance: float = 4.0,
) -> torch.Tensor:
    """One picture (1, H, W, 3) in [0, 1] on the CPU of a prompt with `concepts` in it, their LoRAs in force.

    `size` is (height, width) in pixels. Raises ValueError as `placed_prompt`, or where a concept does not fit.
    """
    placed = placed_prompt(prompt, concepts)
    height, width = (side // model.latent_factor for side in size)
    pixels = ImageSize(height * model.latent_factor, width * model.latent_factor)
    with apply_deltas(model, _changes(model, concepts)):
        word = words_together(model, concepts, placed.concepts)
        encodings = PromptEncoder(model, word, pixels).with_concept([placed.template])
        latents = sample(
            model,
            model.conditioning(encodings, pixels),
            model.conditioning(encode_prompts(model, [""]), pixels),
            shape=(1, model.latent_channels, height, width),
            steps=steps,
            guidance=guidance,
            seed=seed,
        )
    return as_pictures(model.to_images(latents))
