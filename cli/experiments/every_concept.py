"""`contextual-inversion demo --every`: all ten concepts by plain textual inversion and by the best recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.inspection.contact_sheet import Row, contact_sheet
from ...core.world.concepts import CONCEPTS, TEN
from ...core.world.prompts import EVALUATION_BACKGROUNDS, EvaluationPrompt
from ...core.world.render import concept_images
from ..places import write_picture
from .defaults import BEST, PLAIN
from .pipeline_trials import run_pipeline_trial
from .pipelines import demonstrated
from .trials import PICTURES, Trial, demo_model

if TYPE_CHECKING:
    from PIL import Image

PLACES = 3
"""Pictures of each concept by each recipe, one in each of so many places."""
BOTH = "composed"
"""What decides which concept is typical: the share of pictures that show the subject and obey."""


@dataclass(frozen=True)
class Learned:
    """One concept: a training picture, and what either recipe came to."""

    name: str
    picture: np.ndarray
    trials: tuple[Trial, Trial]

    @property
    def figures(self) -> list[dict[str, Any]]:
        """Of both."""
        return [trial.figures for trial in self.trials]

    @property
    def both(self) -> float:
        """The share of the best recipe's pictures that show the subject and obey."""
        return float(self.figures[1][BOTH])


def every_concept(out: Path, seed: int) -> dict[str, Any]:
    """Learn every concept both ways; after each one the sheet `every_concept.png` in OUT has all that there are.

    Returns the figures of all, the best first, and which concept is the typical one: of those in the middle the worse.
    """
    from tqdm import tqdm

    model = demo_model()
    arms = [demonstrated(model, name) for name in (PLAIN, BEST)]
    found: list[Learned] = []
    for name in tqdm(TEN, desc="concepts", unit="concept"):
        references, _, _ = concept_images(name, PICTURES, seed=seed)
        plain, best = (run_pipeline_trial(model, arm, name, seed, timed=False) for arm in arms)
        found.append(Learned(name, references[0], (plain, best)))
        found.sort(key=lambda one: one.both, reverse=True)
        write_picture(sheet(found, [arm.label for arm in arms], seed), out / "every_concept.png")
    print(f"pictures: {out / 'every_concept.png'}")
    return {
        "seed": seed,
        "recipes": [PLAIN, BEST],
        "typical": found[len(found) // 2].name,
        "concepts": {one.name: dict(zip((PLAIN, BEST), one.figures, strict=True)) for one in found},
    }


def sheet(found: Sequence[Learned], labels: Sequence[str], seed: int) -> Image.Image:
    """A row for each of `found`: a training picture, then each recipe's pictures in as many places."""
    rows = []
    for one in found:
        pictures = [one.picture]
        for trial in one.trials:
            pictures += [trial.pictures[index] for index in shown(trial.prompts)]
        shares = [f"{label}: {figures[BOTH]:.0%}" for label, figures in zip(labels, one.figures, strict=True)]
        note = [f"trained on {CONCEPTS[one.name].background}", "subject and prompt right:", *shares]
        rows.append(Row(one.name, pictures, "\n".join(note)))
    columns = ["a training picture", *(label for label in labels for _ in range(PLACES))]
    return contact_sheet(rows, columns, title=f"Every concept, seed {seed}: in places that were never trained on")


def shown(prompts: Sequence[EvaluationPrompt]) -> list[int]:
    """Which prompts are shown: the first of one thing in each of `PLACES` held-out places."""
    first: dict[str | None, int] = {}
    for index, prompt in enumerate(prompts):
        if not (prompt.second or prompt.style):
            first.setdefault(prompt.background, index)
    return [first[place] for place in EVALUATION_BACKGROUNDS if place in first][:PLACES]
