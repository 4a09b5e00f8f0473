"""The work of `search`: candidates of every recipe, their trials on development concepts, and what is chosen."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...core.models.diffusers_adapter import DiffusersModel
from ...core.world import concepts as world
from .claims import DEVELOPMENT, Cell, commit, run_cells
from .halving import Candidate, Choice, Range, Round, Space, design, halved, rounds
from .pipeline_costs import as_data, measured_costs
from .pipeline_trials import run_pipeline_trial
from .pipelines import SEARCHED, Costs, Pipeline, budget, pipeline, recommended
from .resuming import COSTS, done_of, end_of, published, take_up, unfinished, weights_digest
from .tables import table_header, table_row
from .trials import Trial, arm_key, demo_model

SPACE: Space = {
    "learning_rate": Range(5e-3, 4e-2),
    "core_embedding": Range(5e-3, 0.5),
    "core_attention": Choice((0.0, 0.05, 0.15, 0.5, 1.5)),
    "mlm": Range(1e-3, 0.1),
    "weight_rate": Range(3e-4, 6e-3),
    "rank": Choice((2, 4, 8, 16)),
    "second_steps": Range(20, 100, whole=True),
    "regularize_every": Choice((1, 2, 4)),
}
"""What may be chosen; a recipe has those of them that it has a recommended value of."""
DTI_RATES = Range(1e-2, 0.1)
"""Radians."""
MEASURE, TIE = "composed", "concept_score"
"""What decides, and what does among equals: the probability of the subject."""


def search(
    *,
    recipes: tuple[str, ...],
    folder: Path,
    concepts: tuple[str, ...],
    candidates: int,
    factor: int,
    first: int,
    seeds: int,
    seed: int,
    prompts: int,
    workers: int,
    around: Path | None = None,
    hours: float = 0.0,
    target: Path | None = None,
) -> dict[str, Any]:
    """As the command says; the record of it. `target` is where it will be written, and what it goes on from.

    Raises `Stopped` with what there is of it where it was interrupted.
    """
    until = end_of(hours)
    recipes = recipes or tuple(SEARCHED)
    concepts = concepts or DEVELOPMENT
    require_known(recipes, concepts, seeds, workers)
    if prompts < 0:
        raise ValueError(f"--prompts is 0 or more, not {prompts}")
    cells = [(name, number) for number in range(1, seeds + 1) for name in concepts]
    plan = rounds(candidates, len(cells), first or len(concepts), factor)
    model = demo_model()
    facts = {"model": model.fingerprint, "weights": weights_digest()}
    folder = folder / model.fingerprint
    centres = chosen_in(around, recipes, facts) if around else {}
    before = published([file for file in (around, target) if file], **facts)
    take_up(folder, before, [COSTS], replace=True)
    costs = measured_costs(model, folder)
    contests = {name: contenders(model, name, candidates, seed, costs, centres.get(name)) for name in recipes}
    kept: dict[str, dict[str, Any]] = {}
    trial = partial(run_pipeline_trial, count=prompts, plain=0)
    run = partial(worked, before=before, folder=folder, workers=workers, until=until)
    judged = partial(scores, trial, contests=contests, cells=cells, run=run, kept=kept)
    drawn = {"seed": seed, "candidates": candidates, "factor": factor, "prompts": prompts}
    facts |= {"development_concepts": list(concepts), "seeds": seeds, "design": drawn, "commit": commit()}
    facts |= {"budget": budget(costs), "costs": as_data(costs)}
    facts |= {"around": around.name} if around else {}
    try:
        told = halved({name: len(arms) for name, arms in contests.items()}, plan, judged)
    except Unfinished as end:
        counted = len(kept), len(recipes) * trials_of(plan)
        return unfinished({**facts, "trials": list(kept.values())}, counted, end.stop, target)
    report = facts | record(contests, told, list(kept.values()))
    print("\n".join(table(report)))
    return report


def record(
    contests: Mapping[str, Sequence[Pipeline]],
    told: Mapping[str, Sequence[Mapping[str, Any]]],
    trials: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What was tried, and what was chosen."""
    searches = {
        name: {"candidates": [dict(arm.planned["values"]) for arm in arms], "rounds": told[name]}
        for name, arms in contests.items()
    }
    return {
        "searches": searches,
        "trials": list(trials),
        **chosen(contests, told, trials),
    }


def require_known(recipes: Sequence[str], concepts: Sequence[str], seeds: int, workers: int) -> None:
    """Raises ValueError for recipes that there are not, and for concepts that are judged: what is chosen on them could
    not be judged on them."""
    unknown = [name for name in recipes if name not in SEARCHED]
    if unknown or seeds < 1 or workers < 1:
        raise ValueError(
            f"recipes are {', '.join(SEARCHED)}; at least one seed and one worker. "
            f"Unknown: {', '.join(unknown) or 'none'}"
        )
    judged = [name for name in concepts if name not in DEVELOPMENT or name not in world.CONCEPTS]
    if judged:
        raise ValueError(
            f"weights are chosen on development concepts, which are {', '.join(DEVELOPMENT)}, and judged on others: "
            f"{', '.join(judged)} cannot be used here"
        )


def space(model: DiffusersModel, name: str) -> Space:
    """What may be chosen of a recipe."""
    recipe = SEARCHED[name]
    own = {key: axis for key, axis in SPACE.items() if key in recommended(model, recipe)}
    return {**own, "learning_rate": DTI_RATES} if recipe.directional else own


def chosen_in(file: Path, recipes: Sequence[str], facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What an earlier search chose for each of `recipes`. Raises ValueError where it did not, or on another model."""
    record = json.loads(file.read_text(encoding="utf-8"))
    if {key: record.get(key) for key in facts} != facts:
        raise ValueError(f"{file} is of another model or judge: search on this one without --around first")
    found = record.get("chosen", {})
    if missing := [name for name in recipes if name not in found]:
        raise ValueError(f"{file} has chosen nothing for {', '.join(missing)}: --recipes may be {', '.join(found)}")
    return {name: found[name] for name in recipes}


def contenders(
    model: DiffusersModel, name: str, count: int, seed: int, costs: Costs, centre: Candidate | None = None
) -> list[Pipeline]:
    """`count` settings of a recipe: what is recommended first, and others of everything that may be chosen; or
    `centre` first, and others around it."""
    recipe, axes = SEARCHED[name], space(model, name)
    if centre is not None:
        # What was not among the earlier search's axes is free.
        axes = {key: axis.around(centre[key]) if key in centre else axis for key, axis in axes.items()}
    # A point of the design may be the first candidate itself; the one after the last takes its place.
    settings = (centre or {}, *design(axes, 2 * count, seed))
    arms = [pipeline(model, recipe, values, costs) for values in settings]
    return list({arm_key(arm): arm for arm in arms}.values())[:count]


def scores(
    trial: partial[Trial],
    left: Mapping[str, Sequence[int]],
    count: int,
    *,
    contests: Mapping[str, Sequence[Pipeline]],
    cells: Sequence[tuple[str, int]],
    run: Callable[[dict[str, Cell], str], tuple[dict[str, dict[str, Any]], KeyboardInterrupt | None]],
    kept: dict[str, dict[str, Any]],
) -> dict[tuple[str, int], tuple[float, float]]:
    """For everyone who is `left` the means over the first `count` cells, out of trials that are noted in `kept`.

    Raises `Unfinished` where `run` has not made all of them.
    """
    asked = trial.keywords["count"]
    wanted = {
        f"{name}-{arm_key(contests[name][index])}-{asked}-{concept}-{number}": (name, index, concept, number)
        for concept, number in cells[:count]
        for name, those in left.items()
        for index in those
    }
    todo = {
        key: (trial, contests[name][index], concept, number) for key, (name, index, concept, number) in wanted.items()
    }
    done, stop = run(todo, f"{count} cells")
    found: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for key, (name, index, _, _) in wanted.items():
        if key in done:
            kept[key] = {**done[key], "recipe": name, "candidate": index, "cell": key}
            found.setdefault((name, index), []).append(done[key])
    if stop is not None or len(done) < len(wanted):
        raise Unfinished(stop)
    return {
        who: tuple(sum(one[key] for one in trials) / len(trials) for key in (MEASURE, TIE))
        for who, trials in found.items()
    }


def worked(
    cells: dict[str, Cell],
    title: str,
    *,
    before: Mapping[str, Mapping[str, Any]],
    folder: Path,
    workers: int,
    until: float,
) -> tuple[dict[str, dict[str, Any]], KeyboardInterrupt | None]:
    """The figures of `cells`, published `before`, out of FOLDER or made now; and what interrupted it."""
    take_up(folder, before, cells)
    running = tqdm(run_cells(cells, folder, workers, until), total=len(cells), desc=title, unit="trial")
    return done_of(running, cells, folder)


def trials_of(plan: Sequence[Round]) -> int:
    """The trials of one recipe: a round adds cells to those of the round before."""
    seen = [0, *(one.cells for one in plan)]
    return sum(one.candidates * (one.cells - earlier) for one, earlier in zip(plan, seen, strict=False))


class Unfinished(Exception):
    """A round that has not all its trials; `stop` is what interrupted it, None where there was no more time."""

    def __init__(self, stop: KeyboardInterrupt | None) -> None:
        super().__init__()
        self.stop = stop


def chosen(
    contests: Mapping[str, Sequence[Pipeline]],
    told: Mapping[str, Sequence[Mapping[str, Any]]],
    trials: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Each recipe's winner, what it reached, and the best of them: the last round has the same cells for all."""
    winners = {name: found[-1]["kept"][0] for name, found in told.items()}
    reached = {}
    for name, index in winners.items():
        own = [one for one in trials if (one["recipe"], one["candidate"]) == (name, index)]
        keys = (MEASURE, TIE, "fidelity", "recognised", "seconds")
        reached[name] = {key: sum(one[key] for one in own) / len(own) for key in keys}
    return {
        "chosen": {name: dict(contests[name][index].planned["values"]) for name, index in winners.items()},
        "steps": {name: list(contests[name][index].steps) for name, index in winners.items()},
        "reached": reached,
        "best": max(reached, key=lambda name: (reached[name][MEASURE], reached[name][TIE])),
    }


def table(report: Mapping[str, Any]) -> list[str]:
    """What was chosen for every recipe, the best first."""
    lines = table_header("recipe", "recognised and obeyed", "prompt fidelity", "subject recognised", "steps", "chosen")
    for name, means in sorted(report["reached"].items(), key=lambda item: -item[1][MEASURE]):
        figures = (f"{means[key]:.3f}" for key in (MEASURE, "fidelity", "recognised"))
        values = ", ".join(f"{key} {value:g}" for key, value in report["chosen"][name].items())
        lines.append(table_row(name, *figures, " + ".join(str(one) for one in report["steps"][name] if one), values))
    return [*lines, "", f"best: {report['best']}"]
