"""Sets of context prompts: what the PROMPTS socket carries, and the sets that come with the pack."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .parse import parse_prompts, prompts_by_category, read_prompt_file

DATA = Path(__file__).parent / "data"

REGULARIZATION_SETS = ("animate", "inanimate", "concept_world")
EVALUATION_SETS = ("evaluation_animate", "evaluation_inanimate")


@dataclass(frozen=True)
class PromptSet:
    """Checked prompt templates, each with one `{}`. `source` says where they came from, for provenance."""

    name: str
    prompts: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.prompts)


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


def built_in_categories(name: str) -> dict[str, tuple[str, ...]]:
    """The prompts of a built-in set by category ("background", "style", ...). Raises ValueError as `built_in_set`."""
    return prompts_by_category(_text(name))


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
