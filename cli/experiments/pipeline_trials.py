"""One trial of a whole pipeline: both stages, prompts repaired where that is asked for, and what the pictures show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...core.concept import Concept
from ...core.files.atomic import make_folder
from ...core.files.bundle import load_bundle, save_bundle
from ...core.inspection.world.checks import default_judge
from ...core.inspection.world.world_evaluation import as_training_images, draw, obeys, score
from ...core.models.diffusers_adapter import DiffusersModel
from ...core.training.prompt_repair import LEARNING_RATE, STEPS, repair
from ...core.world import concepts as world
from ...core.world.prompts import EvaluationPrompt, held_out_prompts, spread
from ...core.world.render import concept_images
from .encoder_ways import TUNED, draw_dual, loaded, word
from .pipeline_costs import second_plan
from .pipelines import Pipeline
from .resuming import keep, kept, read_kept
from .timing import one_thread, stopwatch
from .trials import PICTURES, Trial, Watch, arm_key, finished, judge, learn

ANOTHER = 500_000
"""Added to a picture's seed where it is drawn once more."""


def run_pipeline_trial(
    model: DiffusersModel,
    arm: Pipeline,
    name: str,
    seed: int,
    *,
    count: int = 0,
    plain: int = 0,
    stages: Path | None = None,
    timed: bool = True,
    watch: Watch | None = None,
) -> Trial:
    """Train both stages of `arm` on `PICTURES` pictures of the concept `name`, and judge one picture a held-out prompt,
    or for each of `count` of them, and `plain` of the prompt that was trained on.

    Paired by seed as `run_trial`. `seconds` are the processor's, of all that is learned: stages and repairs. Stages
    are kept in the folder `stages`, where one is given, for the arms that begin with the same. `watch` hears of
    every step of both stages. What is not `timed` may learn on all threads.
    """
    learning = one_thread if timed else nullcontext
    subject = world.CONCEPTS[name]
    references, _, class_word = concept_images(name, PICTURES, seed=seed)
    with learning():
        taken = stopwatch(model)
        concept, drawing, before = learned(model, arm, name, class_word, references, seed, stages, watch)
        seconds = before + taken()
    asked = spread(held_out_prompts(subject.background), count)
    pictures, found = judge(drawing, asked, subject, references, seed, plain)
    if arm.repairs:
        with learning():
            taken = stopwatch(model)
            pictures, mended = redrawn(model, arm, concept, pictures, asked, seed)
            seconds += taken()
        found |= {**score(pictures, asked, subject, references).figures(), **mended}
    first, second = (0, TUNED.steps) if arm.predicted else arm.steps
    figures = {
        "method": arm.name,
        "label": arm.label,
        "concept": name,
        "class_word": class_word,
        "seed": seed,
        **found,
        "seconds": seconds,
        "steps": first,
        "second_steps": second,
        "planned": dict(arm.planned),
    }
    return Trial(concept, pictures, asked, figures)


Drawing = Callable[[Sequence[str], Sequence[int]], np.ndarray]


def learned(
    model: DiffusersModel,
    arm: Pipeline,
    name: str,
    class_word: str,
    references: np.ndarray,
    seed: int,
    stages: Path | None = None,
    watch: Watch | None = None,
) -> tuple[Concept, Drawing, float]:
    """What the pipeline learns of the pictures, what draws with it, and the seconds that stages out of the folder
    `stages` took when they were trained."""
    if arm.predicted:
        images, network = loaded(None)
        way = replace(TUNED, dual=True)
        one = as_training_images(references)[0]
        concept = word(model, images, network, way, name, class_word, one, seed)
        return concept, partial(draw_dual, model, concept=concept), 0.0
    first = replace(arm.learned, second=None)
    # A file has the pictures' latents, which a repair needs, in half precision.
    stages = None if arm.repairs else stages
    train = partial(learn, model, first, name, class_word, references, seed, watch)
    concept, before = kept_stage(stages, f"{arm_key(first)}-{name}-{seed}", train, model)
    if arm.second is not None:

        def refine() -> Concept:
            stage = second_plan(model, arm, concept, name, class_word, seed)
            return finished(stage.begin(model, list(as_training_images(references))), watch)

        concept, further = kept_stage(stages, f"{arm_key(arm.learned)}-{name}-{seed}", refine, model)
        before += further
    return concept, partial(draw, model, concept=concept, lora_start=arm.lora_start), before


def kept_stage(
    folder: Path | None, key: str, train: Callable[[], Concept], model: DiffusersModel
) -> tuple[Concept, float]:
    """What `train` learns, from `folder` where it is there, with the seconds that it took then; 0 where it is trained
    now, which it is in any case without a folder. Whoever comes second for one that is still trained trains it too."""
    if folder is None:
        return train(), 0.0
    if kept(folder, key):
        return load_bundle(folder / f"{key}.safetensors"), float(read_kept(folder, key)["seconds"])
    taken = stopwatch(model)
    concept = train()
    seconds = taken()
    make_folder(folder)
    save_bundle(concept, folder, key, if_exists="replace")
    # The figures come last: with them the stage counts as kept.
    keep(folder, key, {"seconds": seconds})
    return concept, 0.0


def redrawn(
    model: DiffusersModel,
    arm: Pipeline,
    concept: Concept,
    pictures: np.ndarray,
    prompts: Sequence[EvaluationPrompt],
    seed: int,
) -> tuple[np.ndarray, dict[str, Any]]:
    """The pictures with another one where the prompt was not obeyed, once: of the word repaired for that prompt and the
    same noise, or of the word as it is and other noise, which is what a repair has to be better than."""
    failing = [index for index, right in enumerate(obeyed(pictures, prompts)) if not right]
    another = pictures.copy()
    for index in failing:
        own, noise = concept, 1000 * seed + index
        if arm.repairs == "repair":
            own = repaired_for(model, concept, prompts[index].text, seed)
        else:
            noise += ANOTHER
        another[index] = draw(model, [prompts[index].text], [noise], concept=own)[0]
    mended = sum(obeyed(another[failing], [prompts[index] for index in failing])) if failing else 0
    return another, {"failing": len(failing), "mended": int(mended)}


def obeyed(pictures: np.ndarray, prompts: Sequence[EvaluationPrompt]) -> list[bool]:
    """For every picture whether all is there that its prompt asks for beside the subject."""
    return obeys(prompts, default_judge().read(pictures))


def repaired_for(model: DiffusersModel, concept: Concept, prompt: str, seed: int) -> Concept:
    """The concept after CoRe's steps at test time on one prompt (METHODS.md 1.6)."""
    work = repair(model, [concept], prompt, steps=STEPS, learning_rate=LEARNING_RATE, seed=seed)
    finished(work.run)
    return work.concepts[0]
