"""Which of two things in the training pictures did the new word go to? (the MLM paper's figure 6)"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...maths.statistics import wilson
from ...world.companions import is_companion, is_concept
from ...world.scenes import SecondObject
from .checks import Judge, Verdict, default_judge

Target = Literal["concept", "companion", "both", "neither"]


@dataclass(frozen=True)
class WordTargets:
    """How many pictures of the new word show the named concept, its companion, both of them, or neither."""

    concept: int
    companion: int
    both: int
    neither: int

    @property
    def pictures(self) -> int:
        return self.concept + self.companion + self.both + self.neither

    def figures(self) -> dict[str, float | int | list[float]]:
        """The four shares, and the interval of the one that is wanted: the concept and nothing beside it."""
        own = wilson(self.concept, self.pictures)
        return {
            "concept": own.value,
            "concept_interval": [own.low, own.high],
            "companion": self.companion / self.pictures,
            "both": self.both / self.pictures,
            "neither": self.neither / self.pictures,
            "pictures": self.pictures,
        }


def word_target(verdict: Verdict, concept: str, companion: SecondObject) -> Target:
    """What one picture shows. The concept's class counts as the concept: the word may be learned badly, but it went to
    the right thing. Beside another concept the bundled judge overlooks a companion that is a concept too."""
    shown = (verdict.subject, verdict.second)
    named = any(is_concept(kind, concept) for kind in shown)
    other = any(is_companion(kind, companion) for kind in shown)
    if named and other:
        return "both"
    return "concept" if named else "companion" if other else "neither"


def word_targets(
    pictures: np.ndarray, concept: str, companion: SecondObject, judge: Judge | None = None
) -> WordTargets:
    """Judge pictures uint8 (N, 128, 128, 3) of prompts that name the word and not the companion."""
    verdicts: Sequence[Verdict] = (judge or default_judge()).read(pictures)
    counts = Counter(word_target(verdict, concept, companion) for verdict in verdicts)
    return WordTargets(counts["concept"], counts["companion"], counts["both"], counts["neither"])
