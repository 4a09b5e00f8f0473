"""Captions of training pictures that fit into the text encoders with the word that is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from ..concept import Concept
from ..models.protocol import TextToImageModel
from ..prompts.tokens import tokenize_prompt
from .settings import TrainSettings
from .word import starting_word

Key = TypeVar("Key")


def fitting_captions(
    model: TextToImageModel,
    settings: TrainSettings,
    start: Concept | None,
    captions: Mapping[Key, Sequence[str]],
) -> tuple[dict[Key, tuple[str, ...]], list[str]]:
    """Those of each picture's `captions` that have room, and the others. Raises ValueError as `starting_word`."""
    rows = starting_word(model, settings, start).rows
    kept, others = {}, []
    for key, own in captions.items():
        problems = {caption: _too_long(model, caption, rows) for caption in own}
        kept[key] = tuple(caption for caption, problem in problems.items() if not problem)
        others += [caption for caption, problem in problems.items() if problem]
    return kept, others


def _too_long(model: TextToImageModel, caption: str, rows: int) -> bool:
    try:
        for encoder in model.text_encoders.values():
            tokenize_prompt(encoder, caption, rows=rows)
    except ValueError:
        return True
    return False
