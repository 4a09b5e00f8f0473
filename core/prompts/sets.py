"""Sets of context prompts: what the PROMPTS socket carries, and the sets that come with the pack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .parse import parse_prompts, read_prompt_file
from .rich import ListedPrompts, PromptSource, RichPrompts

DATA = Path(__file__).parent / "data"

REGULARIZATION_SETS = ("animate", "inanimate", "concept_world")
EVALUATION_SETS = ("evaluation_animate", "evaluation_inanimate")
SAMPLED = 400
"""Prompts of a rich set that stand for it where a list is needed, as CoRe does."""


@dataclass(frozen=True)
class PromptSet:
    """Checked prompt templates, each with one `{}`. `source` says where they came from, for provenance.

    A set with `rich` prompts has tens of thousands that are never written down; `prompts` then holds a sample of them.
    """

    name: str
    prompts: tuple[str, ...]
    source: str
    rich: RichPrompts | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def drawn(self) -> PromptSource:
        """What to draw from: everything, also of a rich set."""
        return ListedPrompts(self.prompts, self.source) if self.rich is None else self.rich


def built_in_sets() -> list[str]:
    """Names of the sets to regularise with, for `built_in_set`. The evaluation sets are not among them."""
    return list(REGULARIZATION_SETS)


@cache
def built_in_set(name: str) -> PromptSet:
    """A set that comes with the pack: "animate", "inanimate", "concept_world" or one of `EVALUATION_SETS`.

    Raises:
        ValueError: there is no such set.
    """
    return PromptSet(name, parse_prompts(_text(name), name), f"built-in set {name}")


def rich_set(rich: RichPrompts) -> PromptSet:
    """A set that is drawn from, with a sample of it where a list is needed."""
    return PromptSet(f"rich {rich.name}", rich.sample(SAMPLED), f"rich set {rich.name}", rich)


def joined(sets: Sequence[PromptSet]) -> PromptSet:
    """Several sets as one without repetitions. Beside a rich set, the lines of the others become one type more.

    Raises ValueError for no set at all, or for two rich ones.
    """
    rich = [one.rich for one in sets if one.rich is not None]
    if not sets or len(rich) > 1:
        raise ValueError("at least one set of prompts is needed, and at most one of them rich")
    own = tuple(dict.fromkeys(prompt for one in sets if one.rich is None for prompt in one.prompts))
    name, source = (" + ".join(getattr(one, part) for one in sets) for part in ("name", "source"))
    if not rich:
        return PromptSet(name, own, source)
    whole = rich[0].with_lines("own", own) if own else rich[0]
    return PromptSet(name, tuple(dict.fromkeys((*own, *rich[0].sample(SAMPLED)))), source, whole)


def prompt_set_from_text(text: str, name: str = "own text", **checks: Any) -> PromptSet:
    """A set typed by a person, one prompt a line; `checks` and errors as in `parse_prompts`."""
    return PromptSet(name, parse_prompts(text, name, **checks), "own text")


def prompt_set_from_file(path: Path | str, **checks: Any) -> PromptSet:
    """A set in a text file; `checks` and errors as in `read_prompt_file`."""
    path = Path(path)
    return PromptSet(path.stem, read_prompt_file(path, **checks), path.name)


def _text(name: str) -> str:
    if name not in REGULARIZATION_SETS + EVALUATION_SETS:
        raise ValueError(
            f"no built-in prompt set {name!r}; there are {', '.join(REGULARIZATION_SETS + EVALUATION_SETS)}"
        )
    return (DATA / f"{name}.txt").read_text(encoding="utf-8")
