"""Equal seconds: what a word shows, recognised and obeying on the same picture, for the processor's time it took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ...core.concept import Concept
from ...core.inspection.world.world_evaluation import as_training_images
from ...core.models.diffusers_adapter import DiffusersModel
from ...core.training.one_picture.tuning import TuneSettings, tune
from ...core.training.plan import Choices, plan
from ...core.training.presets import demo_preset
from ...core.training.run.events import Finished, Step
from ...core.training.trainer import TrainingRun
from ...core.world.render import concept_images
from .encoder_ways import RATES, loaded
from .quality_trials import JUDGED, STEPS, judged_course, mean_course
from .tables import table_header, table_row
from .timing import stopwatch
from .trials import PICTURES, Arm, Trial, combined, plain_inversion, training

SHARE = 5
"""The part of plain textual inversion's time in which its best is to be reached."""
MEASURE = "composed"
TUNED, SECOND = "tuned", "second"
"""Arms that are no single training: the tuning-encoder's prediction, tuned; a word, then a LoRA."""


def run_fast_trial(model: DiffusersModel, arm: Arm, name: str, seed: int) -> Trial:
    """As `run_quality_trial`, also at the end and for arms that are no single training."""
    references, _, class_word = concept_images(name, PICTURES, seed=seed)
    if TUNED in arm.changes:
        loaded(None)  # the networks, once a process
    taken = stopwatch(model)
    learned = _learned(model, arm, name, class_word, references, seed)
    kept = [(step, concept, taken()) for step, concept in learned]
    return judged_course(model, arm, name, seed, references, kept)


def _learned(
    model: DiffusersModel, arm: Arm, name: str, class_word: str, references: np.ndarray, seed: int
) -> Iterator[tuple[int, Concept]]:
    """What an arm has learned after each of `STEPS` that it reaches, and at its end."""
    if TUNED in arm.changes:
        images, network = loaded(None)
        chosen = TuneSettings(steps=arm.changes[TUNED], alpha=None, seed=seed, **RATES)
        picture = as_training_images(references)[0]
        run = tune(model, images, network, picture, chosen, name=name, class_word=class_word)
        with closing(run):
            yield from ((event.step, event.concept) for event in run if isinstance(event, Finished))
        return
    own = {key: value for key, value in arm.changes.items() if key != SECOND}
    first = training(model, replace(arm, changes=own), name, class_word, references, seed)
    word = yield from _judged(first, 0)
    if SECOND in arm.changes:
        recipe = demo_preset("refine")
        settings = {"name": name, "seed": seed, "norm_mode": "none", **arm.changes[SECOND]}
        second = plan(model, Choices(recipe, class_word, settings, start=word))
        yield from _judged(second.begin(model, list(as_training_images(references))), own["steps"])


def _judged(run: TrainingRun, before: int) -> Iterator[tuple[int, Concept]]:
    """Of a training that `before` steps precede."""
    with run:
        for event in run:
            if isinstance(event, Step) and event.step in STEPS and event.step < event.total_steps:
                yield before + event.step, run.concept
            if isinstance(event, Finished):
                yield before + event.step, event.concept
                return event.concept
    raise RuntimeError("the training ended without a result")


def of_method(model: DiffusersModel, kind: str, name: str, label: str, **changes: Any) -> Arm:
    """`kind` of `METHODS` by the bundled model's recipe for it, with `changes`."""
    own = combined(model, kind, label, core=False, mlm=False)
    return replace(own, name=name, changes={**own.changes, **changes})


def fast_arms(model: DiffusersModel) -> tuple[Arm, ...]:
    """What is judged: plain textual inversion first, whose best counts; then the best of each kind of `sweep_arms`."""
    return (
        plain_inversion(model),
        quick_xti(model, 2e-2),
        quick_lora(model, 3e-3),
        quick_matrices(model, 4e-3),
        *(quick_word_lora(model, 1e-2, steps, 2) for steps in (30, 40)),
        prediction(model),
    )


def quick_xti(model: DiffusersModel, rate: float) -> Arm:
    """Extended textual inversion in a fifth of plain textual inversion's steps, at a rate that suits so few."""
    changes = {"steps": 40, "learning_rate": rate}
    return of_method(model, "xti", f"xti_{rate:g}", f"XTI, 40 steps at {rate:g}", **changes)


def quick_lora(model: DiffusersModel, rate: float) -> Arm:
    """DreamBooth's LoRA in a fifth of plain textual inversion's time, at a rate that suits so few steps."""
    changes = {"steps": 28, "weight_rate": rate}
    return of_method(model, "dreambooth-lora", f"lora_{rate:g}", f"LoRA, 28 steps at {rate:g}", **changes)


def quick_matrices(model: DiffusersModel, rate: float, steps: int = 35, batch: int = 4) -> Arm:
    """Custom Diffusion: a word, and the cross-attention's keys and values at `rate`."""
    name = f"cd_{rate:g}" + ("" if batch == 4 else f"x{batch}")
    label = f"word, keys and values, {rate:g}" + ("" if batch == 4 else f", batch {batch}")
    changes = {"steps": steps, "weight_rate": rate} | ({} if batch == 4 else {"batch": batch})
    return of_method(model, "custom-diffusion", name, label, **changes)


def quick_word_lora(model: DiffusersModel, rate: float, steps: int = 28, batch: int = 4) -> Arm:
    """A word and a LoRA at once, about a fifth of plain textual inversion's time; `rate` is the LoRA's."""
    changes: dict[str, Any] = {"steps": steps, "weight_rate": rate, "learning_rate": 2e-2}
    changes |= {} if batch == 4 else {"batch": batch}
    name = f"word_lora_{rate:g}" + ("" if (steps, batch) == (28, 4) else f"_{steps}x{batch}")
    return of_method(model, "word-lora", name, f"word + LoRA, {steps} steps of {batch} at {rate:g}", **changes)


def two_stages(model: DiffusersModel, word: int, lora: int, rate: float) -> Arm:
    """A word in so many steps, then a LoRA at `rate` in so many."""
    second = {"steps": lora, "weight_rate": rate}
    plain = plain_inversion(model)
    changes = {**plain.changes, "steps": word, "learning_rate": 2e-2, SECOND: second}
    return Arm(f"word{word}_lora{lora}_{rate:g}", f"word ({word} steps), then LoRA ({lora}, {rate:g})", changes=changes)


def prediction(model: DiffusersModel) -> Arm:
    """The tuning-encoder's prediction from the first picture, tuned on it for a dozen steps."""
    return Arm("predicted", "prediction + 12 steps (one picture)", changes={"norm_mode": "none", TUNED: 12})


def sweep_arms(model: DiffusersModel) -> tuple[Arm, ...]:
    """Candidates for a fifth of plain textual inversion's time, for development concepts."""
    cd = partial(of_method, model, "custom-diffusion")
    return (
        plain_inversion(model),
        *(quick_lora(model, rate) for rate in (5e-3, 3e-3)),
        quick_matrices(model, 4e-3),
        quick_matrices(model, 4e-3, 45, 2),
        cd("cd_lora", "word, LoRA of keys and values, 1e-2", steps=35, weight_rate=1e-2, rank=4),
        *(quick_xti(model, rate) for rate in (2e-2, 4e-2)),
        *(quick_word_lora(model, rate) for rate in (3e-3, 6e-3)),
        *(quick_word_lora(model, 1e-2, steps, batch) for steps, batch in ((30, 2), (40, 2), (48, 1))),
        *(two_stages(model, word, 20, rate) for word, rate in ((12, 5e-3), (12, 1e-2))),
        prediction(model),
    )


def equal_seconds_table(arms: Sequence[Arm], trials: Sequence[dict[str, Any]]) -> list[str]:
    """When each arm, on the mean over concepts and seeds, is first as good as the first of `arms` ever is, and what
    is best of it within a fifth of the time which that one takes. Then the means at every step."""
    courses = {arm.name: mean_course([t for t in trials if t["method"] == arm.name]) for arm in arms}
    best = max(courses[arms[0].name], key=lambda at: at[MEASURE])
    budget = best["seconds"] / SHARE
    lines = table_header("method", f"seconds to {best[MEASURE]:.3f}", f"best within {budget:.1f} s", "best of all")
    for arm in arms:
        course = courses[arm.name]
        reached = next((f"{at['seconds']:.1f}" for at in course if at[MEASURE] >= best[MEASURE]), "never")
        within = [at for at in course if at["seconds"] <= budget]
        lines.append(table_row(arm.label, reached, *(_best_of(part) for part in (within, course))))
    lines += ["", *table_header("method", "steps", "seconds", *JUDGED)]
    for arm in arms:
        for at in courses[arm.name]:
            figures = (f"{at[key]:.3f}" for key in JUDGED)
            lines.append(table_row(arm.label, f"{at['step']:.0f}", f"{at['seconds']:.1f}", *figures))
    return lines


def _best_of(course: Sequence[dict[str, float]]) -> str:
    if not course:
        return "nothing yet"
    at = max(course, key=lambda one: one[MEASURE])
    return f"{at[MEASURE]:.3f} ({at['step']:.0f} steps, {at['seconds']:.1f} s)"
