"""ConceptWorld as a source of sentences: rich prompts in the words of its captions, and captions without pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..prompts.rich import Pattern, PromptType, RichPrompts
from .captions import BACKGROUND_PHRASES, BESIDE, OPENINGS, PLACE_PHRASES, caption
from .concepts import RESERVED
from .scenes import BACKGROUNDS, COLOURS, SHAPES, WORN, sample_scene
from .streams import streams


def world_prompts(backgrounds: Sequence[str] = BACKGROUNDS) -> RichPrompts:
    """The six types in the words of ConceptWorld's captions, which are all that the bundled model knows.

    `backgrounds` are those that may be named, so that the others stay unseen by a regularizer. Raises ValueError for an
    unknown one.
    """
    unknown = sorted(set(backgrounds) - set(BACKGROUNDS))
    if unknown or not backgrounds:
        raise ValueError(f"ConceptWorld has the backgrounds {', '.join(BACKGROUNDS)}, not {', '.join(unknown) or '-'}")
    slots = {
        "where": [phrase for name in backgrounds for phrase in BACKGROUND_PHRASES[name]],
        "colours": list(COLOURS),
        "shapes": list(SHAPES),
        "place": [phrase for phrases in PLACE_PHRASES.values() for phrase in phrases],
        "worn": [worn for worn in WORN if worn],
        "marks": ["stripes", "spots"],
    }
    drawn = [opening for style in ("sketch", "pixelated") for opening in OPENINGS[style]]
    openings = tuple(dict.fromkeys(text[: -len(" {}")] for text in OPENINGS["photo"] if text.endswith(" {}")))
    relations = [phrase.replace("{}", "a [colours] [shapes]") for phrase in BESIDE]

    def kind(name: str, *patterns: str, prefixed: bool = True) -> PromptType:
        return PromptType(name, tuple(Pattern(text, slots) for text in patterns), prefixed)

    return RichPrompts(
        "concept_world",
        (
            kind("backgrounds", "a {} [where]"),
            kind("relations", *(f"a {{}} {relation} [where]" for relation in relations)),
            kind("styles", *(f"{opening.format('a {}')} [where]" for opening in drawn), prefixed=False),
            kind("placements", "a {} [place] [where]", "a {} [place] next to a [colours] [shapes]"),
            kind("wearings", "a {} wearing a [worn] [where]", "a {} with a [worn] [where]"),
            kind("markings", "a {} with [colours] [marks] [where]"),
        ),
        openings,
    )


@dataclass(frozen=True)
class WorldCaptions:
    """Captions of scenes of ConceptWorld's training world, without rendering them."""

    name: str = "concept_world"
    one_by_one: ClassVar[bool] = True

    def draw(self, count: int, generator: torch.Generator) -> list[str]:
        rngs = streams(torch.randint(2**62, (count,), generator=generator).tolist())
        return [caption(sample_scene(rng, RESERVED), rng) for rng in rngs]

    def state(self) -> dict[str, object]:
        return {"source": self.name}
