"""`contextual-inversion transplant`: which positions of a prompt carry a learned word, and which swallow the prompt."""

from __future__ import annotations

from typing import Any

PROMPTS = 16


def main(concepts: tuple[str, ...] = ("goblet", "crested-bird", "castle"), seed: int = 1) -> dict[str, Any]:
    """Learn each concept with plain textual inversion on the bundled model, then draw held-out prompts with the class
    word whose encodings are replaced by the concept's at some positions only.

    Args:
        concepts: Held-out concepts of ConceptWorld.
        seed: Of training and pictures.
    """
    from ...core.inspection.diagnosis.transplant import CHOICES
    from ...core.world import concepts as world
    from ...core.world.prompts import held_out_prompts
    from ...core.world.render import concept_images
    from .trials import demo_model, learn, plain_inversion

    unknown = [name for name in concepts if name not in world.CONCEPTS]
    if unknown or not concepts or seed < 0:
        raise ValueError(
            f"at least one concept of {', '.join(world.CONCEPTS)}, and a seed of 0 or more. Unknown: "
            f"{', '.join(unknown) or 'none'}"
        )
    model = demo_model()
    rows: list[dict[str, Any]] = []
    for name in concepts:
        subject = world.CONCEPTS[name]
        pictures, _, class_word = concept_images(name, 4, seed=seed)
        word = learn(model, plain_inversion(model), name, class_word, pictures, seed)
        asked = [one for one in held_out_prompts(subject.background) if one.second is None and one.style is None]
        for kinds in CHOICES:
            drawn = drawn_with(model, [one.text for one in asked[:PROMPTS]], word, kinds, seed)
            found = judged(drawn, asked[:PROMPTS], name, pictures)
            rows.append({"concept": name, "positions": list(kinds), **found})
            print(line(rows[-1]), flush=True)
    return {"seed": seed, "rows": rows}


def drawn_with(model: Any, templates: list[str], word: Any, kinds: tuple[str, ...], seed: int) -> Any:
    """A picture a template (N, 128, 128, 3), as `world_evaluation.draw` makes them, from transplanted encodings."""
    import torch

    from ...core.inspection.diagnosis.transplant import transplanted
    from ...core.inspection.world.world_evaluation import SIZE, sampled

    with model.session(), torch.no_grad():
        mixed = transplanted(model, templates, word.vectors, word.class_word, kinds)
        seeds = range(1000 * seed, 1000 * seed + len(templates))
        return sampled(model, model.conditioning(mixed, SIZE), seeds)


def judged(drawn: Any, asked: list[Any], name: str, references: Any) -> dict[str, float]:
    """The figures that tell subject and prompt apart."""
    from ...core.inspection.world.world_evaluation import score
    from ...core.world import concepts as world

    figures = score(drawn, asked, world.CONCEPTS[name], references).figures()
    return {key: figures[key] for key in ("fidelity", "leak", "recognised", "similarity")}


def line(row: dict[str, Any]) -> str:
    """A row of the table, as Markdown."""
    where = " + ".join(row["positions"]) or "none (the class word)"
    numbers = " | ".join(f"{row[key]:.2f}" for key in ("fidelity", "leak", "recognised", "similarity"))
    return f"| {row['concept']} | {where} | {numbers} |"
