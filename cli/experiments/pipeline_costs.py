"""What a step of each first and second stage costs on this machine, for pipelines that take equally long."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...core.concept import Concept
from ...core.inspection.world.world_evaluation import as_training_images
from ...core.models.diffusers_adapter import DiffusersModel
from ...core.training.plan import Choices, Plan, plan
from ...core.training.presets import demo_preset
from ...core.training.run.events import Started, Step
from ...core.training.trainer import TrainingRun
from ...core.world.render import concept_images
from .pipelines import RECIPES, Cost, Costs, Pipeline, pipeline, recommended
from .resuming import COSTS, keep, kept, read_kept
from .timing import one_thread, stopwatch
from .trials import PICTURES, cached_trial, choices

TURNS, STEPS, WARM = 5, 4, 2
"""How often each stage is begun, how many of its steps are measured then, and how many are let go first."""
SCALE = "ti"
"""The stage that measurements of different times have in common."""
MEASURED_ON = "goblet"
"""A development concept; what a step costs is the same for all."""


def second_plan(
    model: DiffusersModel, arm: Pipeline, word: Concept | None, name: str, class_word: str, seed: int
) -> Plan:
    """The second stage of `arm` around `word` (None: the class word)."""
    settings = {"name": name, "seed": seed, **(arm.second or {})}
    return plan(model, Choices(demo_preset("refine"), class_word, settings, start=word))


def stages(model: DiffusersModel) -> dict[str, Callable[[], Plan]]:
    """Every stage that `RECIPES` are made of, CoRe also without its attention loss, by the name of its cost."""
    _, _, class_word = concept_images(MEASURED_ON, 1, seed=1)
    made: dict[str, Callable[[], Plan]] = {}
    for recipe in RECIPES.values():
        for less in ({}, {"core_attention": 0.0}) if recipe.core else ({},):
            arm = pipeline(model, recipe, less)
            first = recipe.first_cost({**recommended(model, recipe), **less})
            made.setdefault(first, _first(model, arm, class_word))
            if recipe.second:
                made.setdefault(recipe.second, _second(model, arm, class_word))
    return made


def _first(model: DiffusersModel, arm: Pipeline, class_word: str) -> Callable[[], Plan]:
    return lambda: plan(model, choices(arm, MEASURED_ON, class_word, 1))


def _second(model: DiffusersModel, arm: Pipeline, class_word: str) -> Callable[[], Plan]:
    return lambda: second_plan(model, arm, None, MEASURED_ON, class_word, 1)


def measure(
    model: DiffusersModel,
    turns: int = TURNS,
    steps: int = STEPS,
    warm: int = WARM,
    only: Collection[str] | None = None,
) -> dict[str, Any]:
    """Begin every stage, or `only` some, in turns, so that a busy machine slows all of them, and take the least of
    each: whatever else runs can only add. As plain data."""
    pictures, _, _ = concept_images(MEASURED_ON, PICTURES, seed=1)
    images = list(as_training_images(pictures))
    made = {name: make for name, make in stages(model).items() if only is None or name in only}
    found: dict[str, list[Cost]] = {name: [] for name in made}
    with one_thread():
        for _ in range(turns):
            for name, make in made.items():
                taken = stopwatch(model)
                with make().begin(model, images) as run:
                    found[name].append(_cost(run, taken, warm, steps))
    return {name: asdict(_least(those)) for name, those in found.items()}


def _cost(run: TrainingRun, taken: Callable[[], float], warm: int, steps: int) -> Cost:
    begin, after_warm = 0.0, 0.0
    for event in run:
        if isinstance(event, Started):
            begin = taken()
        elif isinstance(event, Step) and event.step == warm:
            after_warm = taken()
        elif isinstance(event, Step) and event.step == warm + steps:
            return Cost(begin, (taken() - after_warm) / steps)
    raise RuntimeError(f"the training ended within {warm + steps} steps")


def _least(costs: Sequence[Cost]) -> Cost:
    return Cost(*(min(getattr(cost, part) for cost in costs) for part in ("begin", "step")))


def measured_costs(model: DiffusersModel, folder: Path) -> Costs:
    """Every stage's costs from `folder`, or measured now and kept there: one measurement for all that is compared."""
    return completed(model, folder, as_costs(cached_trial(folder, COSTS, lambda: measure(model))))


def completed(model: DiffusersModel, folder: Path, known: Costs) -> Costs:
    """`known`, and what it lacks of the stages that there are by now: from `folder`, or measured now beside `SCALE`, of
    which it is known what it costs in the seconds of the machine that measured the others."""
    if not (lacking := stages(model).keys() - known.keys()):
        return known
    earlier = as_costs(read_kept(folder, COSTS)) if kept(folder, COSTS) else {}
    if earlier.get(SCALE) == known[SCALE] and lacking <= earlier.keys():
        return {**earlier, **known}
    print(f"measures what steps of {', '.join(sorted(lacking))} cost, beside {SCALE}")
    found = as_costs(measure(model, only={*lacking, SCALE}))
    share = known[SCALE].step / found[SCALE].step
    both = {**known, **{name: Cost(found[name].begin * share, found[name].step * share) for name in sorted(lacking)}}
    keep(folder, COSTS, as_data(both))
    return both


def as_costs(data: dict[str, Any]) -> Costs:
    """Costs out of plain data."""
    return {name: Cost(**cost) for name, cost in data.items()}


def as_data(costs: Costs) -> dict[str, Any]:
    """Costs as plain data."""
    return {name: asdict(cost) for name, cost in costs.items()}
