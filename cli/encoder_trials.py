"""`contextual-inversion encoder-trials`: one picture, one word, on held-out concepts: predicted, tuned, or inverted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.concept import Concept
from ..core.inspection.world_evaluation import GUIDANCE, SAMPLING_STEPS, as_bytes, as_training_images, draw, score
from ..core.models.dual_path import DualPath, DualPathModel
from ..core.models.image_encoder import ImageEncoder
from ..core.models.lora import from_lora
from ..core.models.protocol import ImageSize, TextToImageModel
from ..core.models.sampling import sample
from ..core.models.text import encode_prompts
from ..core.networks.tuning_encoder import TuningEncoder
from ..core.training.embedding_regularization import HardWords
from ..core.training.events import Finished
from ..core.training.footprint import Footprint
from ..core.training.predict import predict_concept
from ..core.training.presets import DEMO
from ..core.training.trainer import train
from ..core.training.tuning import TuneSettings, tune
from ..core.world import concepts as world
from ..core.world.prompts import EvaluationPrompt
from ..core.world.scenes import IMAGE_SIZE
from .claims import DEVELOPMENT
from .predict import chosen_encoder
from .trials import cached_trial, demo_model, held_out_prompts

ALPHA = 0.5
RATES = {"lora_learning_rate": 3e-3, "vector_learning_rate": 1e-2}
"""For the bundled model, whose weights are larger than Stable Diffusion's."""
MEASURES = ("fidelity", "recognised", "concept_score", "similarity", "leak", "seconds")
BATCH = 20

METHODS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "predicted": ("predicted", {"steps": 0}),
    "predicted, dual path": ("predicted-dual", {"steps": 0, "dual": True}),
    "+ 4 steps": ("tuned-4", {"steps": 4}),
    "+ 8 steps": ("tuned-8", {"steps": 8}),
    "+ 12 steps": ("tuned-12", {"steps": 12}),
    "+ 12 steps, no contrastive loss": ("tuned-12-free", {"steps": 12, "contrastive": 0.0}),
    "+ 12 steps, dual path": ("tuned-12-dual", {"steps": 12, "dual": True}),
    "plain TI, 12 steps": ("ti-12", {"inverted": 12}),
    "plain TI, 300 steps": ("ti-300", {"inverted": 300}),
}
"""Label -> the cell's name, and how the word is made."""


def main(
    *,
    encoder: Path | None = None,
    folder: Path = Path("out/encoder_trials"),
    concepts: tuple[str, ...] = (),
    seeds: int = 3,
    prompts: int = 0,
) -> dict[str, Any]:
    """Make a word of one picture of every held-out concept every way, and judge what it draws.

    Seeds are paired: every way sees the same picture and starts its pictures from the same noise. A cell that is done
    is kept in FOLDER, under the fingerprints of model and encoder, and not done again.

    Args:
        encoder: A tuning-encoder of the bundled model; the bundled one if not given.
        folder: Where each cell's figures are kept.
        concepts: Held-out concepts; if none are named, all that were not used for development.
        seeds: Seeds 1..N of each concept.
        prompts: So many of the evaluation prompts; 0: all.
    """
    from tqdm import tqdm

    unknown = [name for name in concepts if name not in world.CONCEPTS]
    if unknown or seeds < 1 or prompts < 0:
        raise ValueError(f"concepts are {', '.join(world.CONCEPTS)}, and at least one seed; unknown: {unknown}")
    model, images, network = demo_model(), ImageEncoder.tiny(), chosen_encoder("tiny", encoder)
    folder = folder / f"{model.fingerprint}-{digest(network)}"
    names = concepts or tuple(name for name in world.CONCEPTS if name not in DEVELOPMENT)
    cells = [(label, name, seed) for seed in range(1, seeds + 1) for name in names for label in METHODS]
    trials = []
    for label, name, seed in tqdm(cells, desc="trials"):
        cell, way = METHODS[label]

        def run(way: Mapping[str, Any] = way, name: str = name, seed: int = seed) -> dict[str, Any]:
            return run_cell(model, images, network, way, name, seed, prompts)

        key = f"{cell}.{name}.{seed}" + (f".{prompts}" if prompts else "")
        trials.append({"method": label, **cached_trial(folder, key, run)})
    lines = table(trials)
    print("\n".join(lines))
    return {"encoder": network.provenance, "trials": trials, "means": means(trials)}


def run_cell(
    model: TextToImageModel,
    images: ImageEncoder,
    network: TuningEncoder,
    way: Mapping[str, Any],
    name: str,
    seed: int,
    count: int = 0,
) -> dict[str, Any]:
    """One word from one picture, judged on one picture for each prompt."""
    subject = world.CONCEPTS[name]
    references, _, class_word = world.concept_images(name, 1, seed=seed)
    picture = as_training_images(references)[0]
    footprint = Footprint(model.device)
    concept = word(model, images, network, way, name, class_word, picture, seed)
    cost = footprint.stop()
    asked = held_out_prompts(subject.background)[: count or None]
    seeds = [1000 * seed + index for index in range(len(asked))]
    drawing: Callable[..., np.ndarray] = draw_dual if way.get("dual") else draw
    drawn = drawing(model, [prompt.text for prompt in asked], seeds, concept=concept)
    near = [EvaluationPrompt("a photo of a {}")] * 4
    plain = drawing(model, [one.text for one in near], [1000 * seed + 500 + i for i in range(4)], concept=concept)
    found = score(drawn, asked, subject, references).figures()
    return {
        "concept": name,
        "class_word": class_word,
        "seed": seed,
        **found,
        "plain_prompt": score(plain, near, subject, references).figures(),
        "hard_token": " ".join(HardWords(model, network.known)(concept.vectors)),
        "norm": float(next(iter(concept.vectors.values())).norm(dim=-1).mean()),
        "seconds": cost["seconds"],
        "peak_bytes": cost["peak_bytes"],
    }


def word(
    model: TextToImageModel,
    images: ImageEncoder,
    network: TuningEncoder,
    way: Mapping[str, Any],
    name: str,
    class_word: str,
    picture: torch.Tensor,
    seed: int,
) -> Concept:
    """The concept that `way` makes of the picture."""
    if "inverted" in way:
        settings = DEMO.settings(class_word, name=name, seed=seed, steps=way["inverted"], norm_mode="none")
        run = train(model, [picture], settings)
    elif way["steps"] == 0:
        return predict_concept(model, images, network, picture, name=name)
    else:
        settings = TuneSettings(
            steps=way["steps"],
            alpha=ALPHA if way.get("dual") else None,
            contrastive=way.get("contrastive", TuneSettings().contrastive),
            seed=seed,
            **RATES,
        )
        run = tune(model, images, network, picture, settings, name=name)
    with run:
        return next(event.concept for event in run if isinstance(event, Finished))


def draw_dual(
    model: TextToImageModel, templates: Sequence[str], seeds: Sequence[int], *, concept: Concept
) -> np.ndarray:
    """As `draw`, over both paths: the word and its LoRA beside the plain model with the word's nearest one."""
    side, size = IMAGE_SIZE // model.latent_factor, ImageSize(IMAGE_SIZE, IMAGE_SIZE)
    pictures = []
    with model.session(), torch.no_grad():
        empty = model.conditioning(encode_prompts(model, [""]), size)
        deltas = from_lora(model, concept.lora or {})
        for start in range(0, len(templates), BATCH):
            part = list(templates[start : start + BATCH])
            soft = model.conditioning(encode_prompts(model, part, vectors=concept.vectors), size)
            hard = model.conditioning(encode_prompts(model, part, words=concept.hard_token), size)
            # Guidance doubles the batch, the empty prompt's half first; only the other has two paths.
            path = DualPath(soft, deltas, ALPHA, rows=slice(len(part), 2 * len(part)))
            latents = sample(
                DualPathModel(model, path),
                hard,
                empty,
                shape=(len(part), model.latent_channels, side, side),
                steps=SAMPLING_STEPS,
                guidance=GUIDANCE,
                seed=list(seeds[start : start + BATCH]),
            )
            pictures.append(as_bytes(model.to_images(latents)))
    return np.concatenate(pictures)


def means(trials: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Each measure's mean over cells, by method; cells in which it is not asked for do not count."""
    found: dict[str, dict[str, float]] = {}
    for label in dict.fromkeys(str(trial["method"]) for trial in trials):
        own = [trial for trial in trials if trial["method"] == label]
        found[label] = {}
        for measure in MEASURES:
            values = [float(trial[measure]) for trial in own if not math.isnan(float(trial[measure]))]
            found[label][measure] = float(np.mean(values)) if values else math.nan
    return found


def table(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """The means as a Markdown table, and the nearest words of the predictions."""
    lines = ["| | " + " | ".join(MEASURES) + " | nearest words |", "| --- |" + " --- |" * (len(MEASURES) + 1)]
    for label, values in means(trials).items():
        own = [trial for trial in trials if trial["method"] == label]
        words = ", ".join(f"{trial['class_word']}: {trial['hard_token']}" for trial in own if trial["seed"] == 1)
        lines.append(f"| {label} | " + " | ".join(f"{values[one]:.2f}" for one in MEASURES) + f" | {words} |")
    return lines


def digest(network: TuningEncoder) -> str:
    """Tells encoders with different weights apart."""
    from ..core.models.protocol import fingerprint

    return fingerprint(network.state_dict())
