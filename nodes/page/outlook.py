"""What a node will do, in numbers: the page says it in a sentence before the run and while it runs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from ...core.training.plan import Outline
from ...core.training.settings import TrainSettings

ANY_WORD = "thing"
"""Stands for the class word where no number hangs on it."""
EACH = {"layers": "layer", "blocks": "block"}


@dataclass(frozen=True)
class Outlook:
    """The numbers of a training or a pretraining that people choose, as it will run with them.

    `rate` is that of the word, or of all that is learned; `weight_rate` and `rank` are those of weights where they are
    learned (`rank` 0: whole weights). The word has `vectors` for `each` "layer" or "block", or once for all (""). First
    `class_pictures` of the class are drawn, and `pictures` are drawn of the word. `like` is whatever else decides how
    long a step takes. None where something is not so.
    """

    steps: int
    batch: int
    rate: float | None = None
    weight_rate: float | None = None
    recipe: str = ""
    vectors: int | None = None
    each: str = ""
    rank: int | None = None
    class_pictures: int = 0
    pictures: int = 0
    like: tuple[Any, ...] = ()

    def facts(self, connected: Collection[str] = ()) -> dict[str, Any]:
        """As JSON for the page. What hangs on a `connected` value, which nobody knows yet, is None."""
        known = asdict(self)
        del known["like"]
        unknown = [name for name in known if name in connected and known[name] is not None]
        return {**known, **dict.fromkeys(unknown), "connected": unknown}


def of_training(outline: Outline, settings: TrainSettings) -> Outlook:
    """What a training with these `settings` does, which may know more than the outline's."""
    method, weight_rate = settings.trains, settings.weight_rate or settings.learning_rate
    # Left out where it is 1, so that what earlier trainings took is still known.
    seldom = (settings.regularize_every,) if settings.regularize_every > 1 else ()
    both = method.learns_word and method.trains_weights
    return Outlook(
        steps=settings.steps,
        batch=settings.samples,
        rate=settings.learning_rate if method.learns_word else weight_rate,
        weight_rate=weight_rate if both else None,
        recipe=outline.recipe.name,
        vectors=settings.vectors if method.learns_word and not settings.identifier else None,
        each=EACH.get(method.word, ""),
        rank=settings.low_rank if method.trains_weights else None,
        class_pictures=outline.class_pictures,
        pictures=pictures_of(settings),
        like=(settings.method, settings.batch, settings.resolution, settings.gradient_checkpointing, *seldom),
    )


def pictures_of(settings: TrainSettings) -> int:
    """How many pictures of the word a whole run draws: before its first step, every so many, and at its end."""
    if settings.preview_every == 0:
        return 0
    return 1 + -(-settings.steps // settings.preview_every)
