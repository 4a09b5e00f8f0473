"""Captions of training pictures that fit into the text encoders with the word that is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from ..concept import Concept
from ..models.protocol import TextToImageModel
from ..prompts.tokens import tokenize_prompt
from .plan import Plan
from .settings import TrainSettings

Key = TypeVar("Key")


def fitting_captions(
    model: TextToImageModel,
    settings: TrainSettings,
    start: Concept | None,
    captions: Mapping[Key, Sequence[str]],
) -> tuple[dict[Key, tuple[str, ...]], list[str]]:
    """Those of each picture's `captions` that have room beside the word, and the others."""
    rows = word_length(model, settings, start)
    kept, others = {}, []
    for key, own in captions.items():
        problems = {caption: _too_long(model, caption, rows) for caption in own}
        kept[key] = tuple(caption for caption, problem in problems.items() if not problem)
        others += [caption for caption, problem in problems.items() if problem]
    return kept, others


def with_captions(model: TextToImageModel, planned: Plan, captions: Sequence[Sequence[str]]) -> tuple[Plan, list[str]]:
    """A plan in which each picture is trained on its own `captions`, in the order of the pictures, as far as they have
    room; and those that have none. The same plan where nothing is left."""
    kept, others = fitting_captions(model, planned.settings, planned.start, dict(enumerate(captions)))
    if not any(kept.values()):
        return planned, others
    return replace(planned, settings=replace(planned.settings, captions=tuple(kept.values()))), others


def word_length(model: TextToImageModel, settings: TrainSettings, start: Concept | None) -> int:
    """The positions that the word of a training takes in a prompt, at most."""
    if start is not None:
        return start.length
    if not settings.identifier:
        return settings.vectors
    encoders = model.text_encoders.values()
    return max(sum(len(one.tokenize(part)) for part in (settings.identifier, settings.class_word)) for one in encoders)


def _too_long(model: TextToImageModel, caption: str, rows: int) -> bool:
    try:
        for encoder in model.text_encoders.values():
            tokenize_prompt(encoder, caption, rows=rows)
    except ValueError:
        return True
    return False
