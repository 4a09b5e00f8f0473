"""Prompts that test a learned word: each says what has to be true on the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .captions import BACKGROUND_PHRASES
from .scenes import SecondObject

REGULARIZATION_BACKGROUNDS = ("grass", "sand", "snow", "wood")
"""Backgrounds that prompts of a regularizer may name; every training background is among them."""
EVALUATION_BACKGROUNDS = ("water", "night", "bricks", "lava")
"""Backgrounds held out of every regularisation prompt: what a learned word makes of them was never practised."""


@dataclass(frozen=True)
class EvaluationPrompt:
    """`text` holds the placeholder. `background`, `second` and `style` are what a picture has to show; None: not asked.

    `held_out` says that no regularisation prompt may name this background.
    """

    text: str
    background: str | None = None
    second: SecondObject | None = None
    style: str | None = None

    @property
    def held_out(self) -> bool:
        return self.background in EVALUATION_BACKGROUNDS


def evaluation_prompts(placeholder: str = "{}", without: str | None = None) -> list[EvaluationPrompt]:
    """Prompts for a learned word, in a fixed order: 28 with a background alone, 8 with a second object, 4 with a style.

    `without` leaves out a background (the one of the training pictures, where it would be right by accident); the
    backgrounds held out of regularisation are asked for more often. Second objects are a star or a house, so use
    concepts of other classes with them.
    """
    prompts = []
    openings = ("a photo of a {p} {w}", "a {p} {w}", "{w}, a photo of a {p}", "the {p} is {w}")
    for background, phrases in BACKGROUND_PHRASES.items():
        if background == without:
            continue
        for i, opening in enumerate(openings):
            text = opening.format(p=placeholder, w=phrases[i % len(phrases)])
            prompts.append(EvaluationPrompt(text, background))
    seconds = ((SecondObject("star", "yellow"), "next to"), (SecondObject("house", "blue"), "beside"))
    for background in EVALUATION_BACKGROUNDS:
        if background == without:
            continue
        for second, beside in seconds:
            text = f"a photo of a {placeholder} {beside} a {second.colour} {second.shape} "
            prompts.append(EvaluationPrompt(text + BACKGROUND_PHRASES[background][0], background, second))
    for style, opening in (("sketch", "a sketch of a {p} {w}"), ("pixelated", "pixel art of a {p} {w}")):
        for background in ("water", "bricks"):
            text = opening.format(p=placeholder, w=BACKGROUND_PHRASES[background][0])
            prompts.append(EvaluationPrompt(text, background, style=style))
    return prompts


def held_out_prompts(training_background: str) -> list[EvaluationPrompt]:
    """Prompts whose background no training picture showed and no regularisation prompt named."""
    return [prompt for prompt in evaluation_prompts(without=training_background) if prompt.held_out]


def spread(prompts: Sequence[EvaluationPrompt], count: int) -> list[EvaluationPrompt]:
    """`count` of the prompts (0: all), evenly from all kinds, which stand one after the other."""
    if not 0 < count < len(prompts):
        return list(prompts)
    return [prompts[index * len(prompts) // count] for index in range(count)]
