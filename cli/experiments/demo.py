"""`contextual-inversion demo`: one word learned with plain textual inversion, with CoRe and with MLM, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DEFAULT_CONCEPT, DEFAULT_SEED = "goblet", 1
"""A development concept, and a seed where the difference is plain to see: an example. docs/claims.md has evidence."""


def main(
    out: Path = Path("out/demo"),
    concept: str = DEFAULT_CONCEPT,
    seed: int = DEFAULT_SEED,
    steps: int | None = None,
    every: bool = False,
) -> dict[str, Any]:
    """Learn one word three times, from the same pictures, seed and steps: with plain textual inversion, CoRe and MLM.

    Writes to OUT: `contact_sheet.png` (training pictures and five prompts never trained on), `ti.safetensors`,
    `core.safetensors` and `mlm.safetensors` (the embeddings), and returns the figures of `report.json`.

    Args:
        out: The folder for the results.
        concept: A held-out concept of ConceptWorld.
        seed: Of pictures, training and sampling alike.
        steps: Training steps, if not the recipe's own.
        every: All ten concepts instead, by plain textual inversion and by the best recipe: `every_concept.png` in OUT.
            About a quarter of an hour.
    """
    from tqdm import tqdm

    from ...core.files.embedding import save_embedding
    from ...core.inspection.contact_sheet import Row, contact_sheet
    from ...core.inspection.world.world_evaluation import draw
    from ...core.world import concepts as world
    from ...core.world.render import concept_images
    from ..places import require_folder, write_picture
    from .trials import PICTURES, core_inversion, demo_model, mlm_inversion, plain_inversion, run_trial

    if concept not in world.CONCEPTS:
        raise ValueError(f"no held-out concept {concept!r}; there are {', '.join(world.CONCEPTS)}")
    if seed < 0:
        raise ValueError(f"--seed is 0 or more, not {seed}")
    require_folder(out)
    if every:
        if steps is not None or concept != DEFAULT_CONCEPT:
            raise ValueError("--every takes all concepts, each by its recipe: leave out --concept and --steps")
        from .every_concept import every_concept

        return every_concept(out, seed)
    started = time.perf_counter()
    model = demo_model()
    changes = {} if steps is None else {"steps": steps}
    subject = world.CONCEPTS[concept]
    references, _, class_word = concept_images(concept, PICTURES, seed=seed)
    templates = showcase(subject.background)
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
    for arm in (build(model, **changes) for build in (plain_inversion, core_inversion, mlm_inversion)):
        with tqdm(total=steps, desc=f"{arm.label:9}", unit="step") as bar:
            trial = run_trial(model, arm, concept, seed, watch=_follow(bar))
        path = save_embedding(trial.concept.renamed(arm.name), out, if_exists="replace")
        report[arm.name] = {**headline(trial.figures), "embedding": path.name, "all": trial.figures}
        pictures = draw(model, templates, seeds, concept=trial.concept)
        rows.append(Row(arm.label, list(pictures), summary(trial.figures)))
    report["seconds"] = time.perf_counter() - started
    columns = [template.format(f"{class_word}*") for template in templates]
    sheet = contact_sheet(rows, columns, title=f"Contextual Inversion: the {class_word} “{concept}”, a new word")
    write_picture(sheet, out / "contact_sheet.png")
    for line in table(report):
        print(line)
    print(f"pictures: {out / 'contact_sheet.png'}")
    return report


def showcase(without: str) -> list[str]:
    """Five prompts that neither the training nor a regularisation prompt has seen: backgrounds held out of both."""
    from ...core.world.captions import BACKGROUND_PHRASES
    from ...core.world.prompts import EVALUATION_BACKGROUNDS

    places = [BACKGROUND_PHRASES[background][0] for background in EVALUATION_BACKGROUNDS if background != without]
    prompts = [f"a photo of a {{}} {place}" for place in places]
    return [*prompts, f"a sketch of a {{}} {places[0]}"][:5]


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


def table(report: dict[str, Any], methods: Sequence[str] = ("ti", "core", "mlm")) -> list[str]:
    """The headline figures as lines of text."""
    names = list(report[methods[0]])
    shown = [name for name in names if isinstance(report[methods[0]][name], float)]
    lines = [" " * 22 + "".join(f"{method:>10}" for method in methods)]
    return lines + [f"{name:<22}" + "".join(f"{report[m][name]:>10.3f}" for m in methods) for name in shown]


def _follow(bar: Any) -> Callable[[Any], None]:
    def watch(event: Any) -> None:
        bar.total = event.total_steps
        bar.update(event.step - bar.n)
        if event.step == event.total_steps:
            bar.set_description(f"{bar.desc.removesuffix(': ')}, judging its pictures")
        if event.losses is not None and "diffusion" in event.losses:
            bar.set_postfix(loss=f"{float(event.losses['diffusion'].mean()):.3f}")

    return watch
