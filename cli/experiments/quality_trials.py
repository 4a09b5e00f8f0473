"""Time to quality: one training, judged at several of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ...core.concept import Concept
from ...core.inspection.world.world_evaluation import draw
from ...core.models.diffusers_adapter import DiffusersModel
from ...core.training.run.events import Step
from ...core.world import concepts as world
from ...core.world.prompts import held_out_prompts
from ...core.world.render import concept_images
from .tables import table_header, table_row
from .timing import stopwatch
from .trials import PICTURES, Arm, Trial, judge, training

STEPS = (25, 50, 100, 200)
"""Where a training is judged."""
JUDGED = ("fidelity", "recognised", "composed", "similarity")

Kept = tuple[int, Concept, float]
"""A step, what was learned until then, and the seconds it took."""


def run_quality_trial(model: DiffusersModel, arm: Arm, name: str, seed: int) -> Trial:
    """Train once and judge what was learned after each of `STEPS`, with pictures of one thing in a held-out place.

    `course` has the figures of every step and the seconds of training until there, of the processor where the model is
    on it, so that they hold beside other work; the other figures are those of the last step.
    """
    references, _, class_word = concept_images(name, PICTURES, seed=seed)
    kept: list[Kept] = []
    taken = stopwatch(model)
    with training(model, arm, name, class_word, references, seed) as run:
        for event in run:
            if isinstance(event, Step) and event.step in STEPS:
                kept.append((event.step, run.concept, taken()))
    return judged_course(model, arm, name, seed, references, kept)


def judged_course(
    model: DiffusersModel, arm: Arm, name: str, seed: int, references: np.ndarray, kept: Sequence[Kept]
) -> Trial:
    """The trial of a training on `references` (n, 128, 128, 3) that is over; while it goes on, the model has
    the weights that learn."""
    subject = world.CONCEPTS[name]
    prompts = [prompt for prompt in held_out_prompts(subject.background) if not prompt.second and not prompt.style]
    course: list[dict[str, float]] = []
    for step, concept, seconds in kept:
        pictures, found = judge(partial(draw, model, concept=concept), prompts, subject, references, seed)
        course.append({"step": step, "seconds": seconds, **{key: found[key] for key in JUDGED}})
    figures = {
        "method": arm.name,
        "concept": name,
        "class_word": subject.super_category,
        "seed": seed,
        **{key: course[-1][key] for key in (*JUDGED, "seconds")},
        "course": course,
    }
    return Trial(concept, pictures, prompts, figures)


def reached_table(arms: Sequence[Arm], trials: Sequence[dict[str, Any]]) -> list[str]:
    """When each method, on the mean over concepts and seeds, is first as good as the first of `arms` ever is:
    in similarity, in fidelity, and in both on the same step. Then the means at every step."""
    courses = {arm.name: mean_course([t for t in trials if t["method"] == arm.name]) for arm in arms}
    best = {key: max(at[key] for at in courses[arms[0].name]) for key in ("similarity", "fidelity")}
    lines = table_header("method", *(f"steps (s) to {name}" for name in ("similarity", "fidelity", "both")))
    for arm in arms:
        goals = [{"similarity": best["similarity"]}, {"fidelity": best["fidelity"]}, best]
        cells = [first_reaching(courses[arm.name], goal) for goal in goals]
        shown = ["never" if at is None else f"{at['step']:.0f} ({at['seconds']:.0f})" for at in cells]
        lines.append(table_row(arm.label, *shown))
    lines += ["", *table_header("method", "steps", "seconds", *JUDGED)]
    for arm in arms:
        for at in courses[arm.name]:
            figures = (f"{at[key]:.3f}" for key in JUDGED)
            lines.append(table_row(arm.label, f"{at['step']:.0f}", f"{at['seconds']:.0f}", *figures))
    return lines


def mean_course(trials: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """The mean over trials at every judged step."""
    courses = [trial["course"] for trial in trials]
    return [
        {key: sum(at[key] for at in same_step) / len(same_step) for key in same_step[0]}
        for same_step in zip(*courses, strict=True)
    ]


def first_reaching(course: Sequence[dict[str, float]], goal: dict[str, float]) -> dict[str, float] | None:
    """The first step at which everything of `goal` is reached."""
    return next((at for at in course if all(at[key] >= value for key, value in goal.items())), None)
