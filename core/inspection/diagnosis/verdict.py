"""What sim1, sim2 and SKL of a word say together, beside those of its class word: whether it will keep its prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .diagnose import Diagnosis, SubjectFigures

KEEPS, MAY, RISKS = "should keep its prompt", "may swallow its prompt", "is at high risk of swallowing its prompt"

LIKE_CLASS_WORD = 1.0
"""sim2 as a share of the class word's from which a word keeps what its context means."""
LOOKS_ELSEWHERE, LOOKS_THE_SAME = 0.7, 0.4
"""SKL as a share of the class word's: from the first on a word looks elsewhere than its context, below the second where
its context does. METHODS.md 2.8 says what they were chosen by."""


class Verdict(NamedTuple):
    """`says` is one of KEEPS, MAY and RISKS; `text` is the line for people, with the figures."""

    label: str
    says: str
    text: str


def verdicts(diagnosis: Diagnosis) -> tuple[Verdict, ...]:
    """One for each word that was compared with the class word, which is the diagnosis's last subject."""
    *words, reference = diagnosis.subjects
    return tuple(_verdict(word, reference) for word in words)


def judged(word: Mapping[str, float], reference: Mapping[str, float]) -> str:
    """KEEPS, MAY or RISKS of means (sim2 and, where it was measured, skl_normalised) and those of the class word.

    sim1 has no say: over the trials of docs/claims_first_model.md it goes neither with the prompt nor against it (rank
    correlation -0.06). Without SKL no word is said to be at high risk, since sim2 alone tells too little (0.13; SKL
    0.34).
    """
    if _share(word, reference, "sim2") >= LIKE_CLASS_WORD:
        return KEEPS
    if "skl_normalised" not in word:
        return MAY
    elsewhere = _share(word, reference, "skl_normalised")
    if elsewhere >= LOOKS_ELSEWHERE:
        return KEEPS
    return MAY if elsewhere >= LOOKS_THE_SAME else RISKS


def _verdict(word: SubjectFigures, reference: SubjectFigures) -> Verdict:
    says = judged(word.means, reference.means)
    text = f"{word.label} {says}: {_reason(word.means, reference.means)}. {_figures(word.means, reference.means)}"
    return Verdict(word.label, says, text)


def _reason(word: Mapping[str, float], reference: Mapping[str, float]) -> str:
    kept = _share(word, reference, "sim2") >= LIKE_CLASS_WORD
    meaning = "its context means what it meant" if kept else "its context means something else"
    if "skl_normalised" not in word:
        return f"{meaning}; where it looks was not measured (images is 0)"
    elsewhere = _share(word, reference, "skl_normalised")
    looks = "where its context does" if elsewhere < LOOKS_THE_SAME else "partly where its context does"
    if elsewhere >= LOOKS_ELSEWHERE:
        looks = "elsewhere than its context"
    joined = "and" if kept == (elsewhere >= LOOKS_ELSEWHERE) else "but"
    return f"{meaning}, {joined} it looks {looks}"


def _figures(word: Mapping[str, float], reference: Mapping[str, float]) -> str:
    names = {"sim2": "sim2", "skl_normalised": "SKL", "sim1": "sim1"}
    pairs = [f"{name} {word[key]:.2f} ({reference[key]:.2f})" for key, name in names.items() if key in word]
    return f"Beside the class word: {', '.join(pairs)}."


def _share(word: Mapping[str, float], reference: Mapping[str, float], key: str) -> float:
    """A figure as a share of the class word's; 1 where that one is nothing to measure by."""
    return word[key] / reference[key] if reference[key] > 0 else 1.0
