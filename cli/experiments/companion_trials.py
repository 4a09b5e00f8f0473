"""A trial with two things in every training picture: which of them does the new word go to?"""

from __future__ import annotations

from typing import Any

from ...core.inspection.world.word_target import word_targets
from ...core.inspection.world.world_evaluation import draw, score
from ...core.models.diffusers_adapter import DiffusersModel
from ...core.world import concepts as world
from ...core.world.companions import COMPANIONS, companion_for, specific_prompts
from ...core.world.prompts import EvaluationPrompt, held_out_prompts
from ...core.world.render import concept_images
from ...core.world.scenes import SecondObject
from .timing import stopwatch
from .trials import PICTURES, Arm, Trial, learn

PLAIN = 12
"""Pictures of the prompt that was trained on."""
NEUTRAL = "picture"
"""A word that means neither of the two things."""


def run_companion_trial(model: DiffusersModel, arm: Arm, name: str, seed: int, start: str | None = None) -> Trial:
    """Train on `PICTURES` pictures that hold the concept and its companion, then ask for the word alone.

    The word begins as `start`, or as its class word. Regularizers get the list of prompts for this concept. Judged are
    `PLAIN` pictures of the trained prompt and one of each held-out place.
    """
    subject, companion = world.CONCEPTS[name], companion_of(name)
    pictures, _, class_word = concept_images(name, PICTURES, seed=seed, companion=companion)
    taken = stopwatch(model)
    prompts_of_it = specific_prompts(name, companion)
    concept = learn(model, arm, name, start or class_word, pictures, seed, prompts=prompts_of_it)
    seconds = taken()
    places = [prompt for prompt in held_out_prompts(subject.background) if prompt.second is None]
    prompts = [*[EvaluationPrompt("a photo of a {}")] * PLAIN, *places]
    seeds = [1000 * seed + index for index in range(len(prompts))]
    drawn = draw(model, [prompt.text for prompt in prompts], seeds, concept=concept)
    targets = word_targets(drawn, name, companion)
    references, _, _ = concept_images(name, PICTURES, seed=seed)
    figures: dict[str, Any] = {
        "method": arm.name,
        "concept": name,
        "companion": f"{companion.colour} {companion.shape}",
        "class_word": start or class_word,
        "seed": seed,
        **score(drawn[PLAIN:], places, subject, references).figures(),
        **{f"to_{key}": value for key, value in targets.figures().items() if isinstance(value, float)},
        "seconds": seconds,
    }
    return Trial(concept, drawn, prompts, figures)


def run_neutral_companion_trial(model: DiffusersModel, arm: Arm, name: str, seed: int) -> Trial:
    """As `run_companion_trial`, but the word begins as `NEUTRAL`, so nothing but training says which thing is meant."""
    return run_companion_trial(model, arm, name, seed, NEUTRAL)


def companion_of(name: str) -> SecondObject:
    """An ordinary thing of another class, a different one for each concept."""
    ordinary = [key for key, thing in COMPANIONS.items() if thing.concept is None]
    first = list(world.CONCEPTS).index(name)
    for step in range(len(ordinary)):
        try:
            return companion_for(name, ordinary[(first + step) % len(ordinary)])
        except ValueError:  # its own class
            continue
    raise ValueError(f"nothing can stand beside {name!r}")
