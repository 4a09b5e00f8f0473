"""`contextual-inversion demo`: one word learned with plain textual inversion and by the best recipe, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .defaults import BEST, PLAIN

if TYPE_CHECKING:
    import numpy as np

    from ...core.concept import Concept
    from ...core.world.prompts import EvaluationPrompt

DEFAULT_CONCEPT, DEFAULT_SEED = "castle", 1
"""Of the judged concepts the one that this pipeline learns best over five seeds (docs/claims/leaders.json), of equals
the first by name; and the first seed. All ten are on the sheet of `every_concept`."""


def main(
    out: Path = Path("out/demo"),
    concept: str = DEFAULT_CONCEPT,
    seed: int = DEFAULT_SEED,
    steps: int | None = None,
    every: bool = False,
    recipes: tuple[str, ...] = (PLAIN, BEST),
) -> dict[str, Any]:
    """Learn one word from the same pictures and seed by each of RECIPES: plain textual inversion and the best one.

    Writes to OUT: `contact_sheet.png` (training pictures and five prompts never trained on) and for each recipe
    `RECIPE.safetensors`, an embedding, or a bundle where weights were learned too. Returns the figures of the report.

    Args:
        out: The folder for the results.
        concept: A held-out concept of ConceptWorld.
        seed: Of pictures, training and sampling alike.
        steps: Training steps of the first stage, if not the recipe's own.
        every: All ten concepts instead, by plain textual inversion and by the best recipe: `every_concept.png` in OUT.
            About a quarter of an hour.
        recipes: How to learn it, in this order: pipelines of `claims`, such as core, mlm, core_lora.
    """
    from tqdm import tqdm

    from ...core.inspection.contact_sheet import Row, contact_sheet
    from ...core.inspection.world.world_evaluation import draw
    from ...core.world import concepts as world
    from ...core.world.render import concept_images
    from ..places import require_folder, write_picture
    from .pipeline_trials import run_pipeline_trial
    from .pipelines import RECIPES, demonstrated
    from .trials import PICTURES, demo_model, similarities

    if concept not in world.CONCEPTS:
        raise ValueError(f"no held-out concept {concept!r}; there are {', '.join(world.CONCEPTS)}")
    if unknown := [name for name in recipes if name not in RECIPES]:
        raise ValueError(f"no recipe {', '.join(map(repr, unknown))}; there are {', '.join(RECIPES)}")
    if not recipes:
        raise ValueError(f"--recipes names none; there are {', '.join(RECIPES)}")
    if seed < 0:
        raise ValueError(f"--seed is 0 or more, not {seed}")
    require_folder(out)
    if every:
        if steps is not None or concept != DEFAULT_CONCEPT or recipes != (PLAIN, BEST):
            raise ValueError(
                "--every takes all concepts, each by the same two: leave out --concept, --steps, --recipes"
            )
        from .every_concept import every_concept

        return every_concept(out, seed)
    started = time.perf_counter()
    model = demo_model()
    subject = world.CONCEPTS[concept]
    references, _, class_word = concept_images(concept, PICTURES, seed=seed)
    templates = [prompt.text for prompt in showcase(subject.background)]
    seeds = [1000 * seed + 700 + index for index in range(len(templates))]
    rows = [
        Row("training pictures", list(references), f"all {subject.background}: {subject.description}"),
        Row(
            f"the word “{class_word}”",
            list(draw(model, templates, seeds, words=class_word)),
            "what the model knows before",
        ),
    ]
    report: dict[str, Any] = {"concept": concept, "class_word": class_word, "seed": seed, "prompts": templates}
    report["recipes"] = list(recipes)
    for name in recipes:
        arm = demonstrated(model, name, steps)
        with tqdm(total=sum(arm.steps), desc=f"{arm.label:9}", unit="step") as bar:
            trial = run_pipeline_trial(model, arm, concept, seed, timed=False, watch=_follow(bar))
        figures = {**trial.figures, **similarities(model, trial.concept)}
        pictures = draw(model, templates, seeds, concept=trial.concept)
        found = {"embedding": _save(trial.concept.renamed(name), out), "shown": on_the_sheet(pictures, concept)}
        report[name] = {**headline(figures), **found, "all": figures}
        rows.append(Row(arm.label, list(pictures), summary(figures)))
    report["seconds"] = time.perf_counter() - started
    columns = [template.format(f"{class_word}*") for template in templates]
    sheet = contact_sheet(rows, columns, title=f"Contextual Inversion: the {class_word} “{concept}”, a new word")
    write_picture(sheet, out / "contact_sheet.png")
    for line in table(report):
        print(line)
    print(f"pictures: {out / 'contact_sheet.png'}")
    return report


def _save(concept: Concept, out: Path) -> str:
    from ...core.files.bundle import save_bundle
    from ...core.files.embedding import save_embedding

    alone = concept.lora is None and concept.layer_vectors is None
    return (save_embedding if alone else save_bundle)(concept, out, if_exists="replace").name


def on_the_sheet(pictures: np.ndarray, concept: str) -> dict[str, int]:
    """Of the pictures of `showcase`'s prompts: on how many the judge names the concept, and on how many the place (and
    the style) is the one that was asked for."""
    from ...core.inspection.world.checks import default_judge
    from ...core.inspection.world.world_evaluation import obeys
    from ...core.world.concepts import CONCEPTS

    verdicts = default_judge().read(pictures)
    return {
        "pictures": len(verdicts),
        "recognised": sum(verdict.subject == CONCEPTS[concept].subject for verdict in verdicts),
        "places": sum(obeys(showcase(CONCEPTS[concept].background), verdicts)),
    }


def showcase(without: str) -> list[EvaluationPrompt]:
    """Five prompts whose backgrounds are held out of training and regularization alike: a photo in each of the four but
    the concept's own, then a sketch."""
    from ...core.world.captions import BACKGROUND_PHRASES
    from ...core.world.prompts import EVALUATION_BACKGROUNDS, EvaluationPrompt

    return [
        EvaluationPrompt(f"a {style} of a {{}} {BACKGROUND_PHRASES[place][0]}", place, style=style)
        for style in ("photo", "sketch")
        for place in EVALUATION_BACKGROUNDS
        if place != without
    ][:5]


def headline(figures: dict[str, Any]) -> dict[str, float]:
    """The figures that the report leads with."""
    return {
        "prompt_fidelity": figures["fidelity"],
        "subject_similarity": figures["similarity"],
        "subject_recognised": figures["recognised"],
        "background_leak": figures["leak"],
        "sim1": figures["sim1"],
        "sim2": figures["sim2"],
        "seconds": figures["seconds"],
    }


def summary(figures: dict[str, Any]) -> str:
    """Two lines under a row of pictures."""
    return f"prompt obeyed {figures['fidelity']:.0%}\nsubject recognised {figures['recognised']:.0%}"


def table(report: dict[str, Any]) -> list[str]:
    """The headline figures as lines of text."""
    methods: Sequence[str] = report["recipes"]
    names = list(report[methods[0]])
    shown = [name for name in names if isinstance(report[methods[0]][name], float)]
    lines = [" " * 22 + "".join(f"{method:>16}" for method in methods)]
    return lines + [f"{name:<22}" + "".join(f"{report[m][name]:>16.3f}" for m in methods) for name in shown]


def _follow(bar: Any) -> Callable[[Any], None]:
    before, last = 0, 0

    def watch(event: Any) -> None:
        nonlocal before, last
        # A second stage counts from the beginning.
        before, last = (before + last if event.step < last else before), event.step
        bar.update(before + event.step - bar.n)
        if bar.n == bar.total:
            bar.set_description(f"{bar.desc.removesuffix(': ')}, judging its pictures")
        if event.losses is not None and "diffusion" in event.losses:
            bar.set_postfix(loss=f"{float(event.losses['diffusion'].mean()):.3f}")

    return watch
