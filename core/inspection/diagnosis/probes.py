"""Prompts to diagnose a word with, each with one of its context words (METHODS.md 2.7)."""

from __future__ import annotations

from ...concept import PLACEHOLDER
from ...prompts.parse import strip_comment
from .context_similarity import ContextProbe

PLACES = (
    "beach", "forest", "mountain", "desert", "river", "lake", "street", "market", "bridge", "castle", "garden",
    "kitchen", "library", "museum", "station", "harbour", "snow", "jungle", "temple", "stadium",
)  # fmt: skip
"""Places of the paper's prompt form."""


def place_probes() -> list[ContextProbe]:
    """METHODS.md 2.7's prompt, "a picture of a {} with the beach in the background", for twenty places."""
    return [
        ContextProbe(f"a picture of a {{}} with the {place} in the background", place, f"a picture of the {place}")
        for place in PLACES
    ]


def parse_probes(text: str) -> list[ContextProbe]:
    """One probe a line: `a {} in the snow | snow | a picture of the snow`.

    Without the third part the reference is "a picture of" the context word, without the second the context word is the
    prompt's last. Empty lines and comments (`# ...`) are skipped.

    Raises ValueError naming the line without exactly one placeholder, or with a part too many or an empty one, and
    where there is no prompt at all.
    """
    probes = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = strip_comment(raw)
        if not line:
            continue
        parts = [part.strip() for part in line.split("|")]
        if parts[0].count(PLACEHOLDER) != 1 or len(parts) > 3 or not all(parts):
            raise ValueError(
                f"line {number}: {line!r} is not a prompt with one {PLACEHOLDER}, then if you like | a word of "
                "it | a prompt that says the word without the concept"
            )
        word = parts[1] if len(parts) > 1 else parts[0].split()[-1].strip(".,;!?")
        reference = parts[2] if len(parts) > 2 else f"a picture of {word}"
        probes.append(ContextProbe(parts[0], word, reference))
    if not probes:
        raise ValueError(f"there is no prompt; write one a line, such as: a {PLACEHOLDER} in the snow | snow")
    return probes
