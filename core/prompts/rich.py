"""Rich prompts: words for slots, joined by patterns, tens of thousands of sentences that are never all written down.

METHODS.md 2.5 names the types and how many prompts each has; the words in `data/rich` are our own. A prompt is drawn by
arithmetic on its number: first the type, uniformly, then a prompt of that type.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from math import prod
from pathlib import Path
from typing import Protocol

import torch

DATA = Path(__file__).parent / "data" / "rich"
SLOT = re.compile(r"\[(\w+)\]")
WRONG_ARTICLE = re.compile(r"\b(a)(?= (?:[aeio]|umb)(?!ne-|ne ))", re.IGNORECASE)
"""An "a" that a filled slot turned into "an", as before "orange". Not before "one"; "u" sounds like "you" here but for
"umbrella"."""


class PromptSource(Protocol):
    """Anything that prompts with one "{}" each can be drawn from."""

    name: str

    def draw(self, count: int, generator: torch.Generator) -> list[str]:
        """`count` prompts, with replacement; every choice comes from the CPU `generator`."""

    def hardest(self, tokens: Callable[[str], int]) -> list[str]:
        """Prompts such that if these fit an encoder, all do; `tokens` counts those of a text."""

    def state(self) -> dict[str, object]:
        """Plain data for provenance."""


@dataclass(frozen=True)
class Pattern:
    """A sentence with slots, such as "a {} [prepositions] a [colours] [objects]"; `words` maps a slot to its words."""

    text: str
    words: Mapping[str, Sequence[str]]

    @cached_property
    def slots(self) -> tuple[str, ...]:
        return tuple(SLOT.findall(self.text))

    def __len__(self) -> int:
        return prod(len(self.words[slot]) for slot in self.slots)

    def __getitem__(self, index: int) -> str:
        """Prompt number `index`: its digits in mixed radix choose the words, the last slot runs fastest."""
        if not 0 <= index < len(self):
            raise IndexError(f"prompt {index} of {len(self)}")
        chosen = {}
        for place in range(len(self.slots) - 1, -1, -1):
            index, digit = divmod(index, len(self.words[self.slots[place]]))
            chosen[place] = self.words[self.slots[place]][digit]
        return with_articles(_fill(self.text, [chosen[place] for place in range(len(self.slots))]))

    def longest(self, tokens: Callable[[str], int]) -> str:
        """The prompt with most tokens: the longest word in every slot."""
        return with_articles(_fill(self.text, [max(self.words[slot], key=tokens) for slot in self.slots]))


@dataclass(frozen=True)
class Line:
    """A pattern without slots: one prompt, word for word as somebody wrote it."""

    text: str

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> str:
        if index != 0:
            raise IndexError(f"prompt {index} of 1")
        return self.text

    def longest(self, tokens: Callable[[str], int]) -> str:
        return self.text


@dataclass(frozen=True)
class PromptType:
    """One of the types of METHODS.md 2.5: all prompts of its `patterns`, one after the other. `prefixed` types get a
    random photo phrase before each prompt."""

    name: str
    patterns: tuple[Pattern | Line, ...]
    prefixed: bool = True

    def __len__(self) -> int:
        return sum(len(pattern) for pattern in self.patterns)

    def __getitem__(self, index: int) -> str:
        """Prompt number `index`, without a prefix. Raises IndexError outside 0..len - 1."""
        left = index
        for pattern in self.patterns:
            if left < len(pattern):
                return pattern[left]
            left -= len(pattern)
        raise IndexError(f"prompt {index} of {len(self)} {self.name}")


@dataclass(frozen=True)
class RichPrompts:
    """A set of types. `len` counts the prompts without their prefixes, as METHODS.md 2.5 does."""

    name: str
    types: tuple[PromptType, ...]
    prefixes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return sum(len(kind) for kind in self.types)

    def draw(self, count: int, generator: torch.Generator) -> list[str]:
        """METHODS.md 2.5: a type uniformly, then a prompt of that type uniformly, then a prefix where it takes one."""
        return [self._one(generator) for _ in range(count)]

    def _one(self, generator: torch.Generator) -> str:
        kind = self.types[_integer(len(self.types), generator)]
        prompt = kind[_integer(len(kind), generator)]
        if not kind.prefixed or not self.prefixes:
            return prompt
        return f"{self.prefixes[_integer(len(self.prefixes), generator)]} {prompt}"

    def hardest(self, tokens: Callable[[str], int]) -> list[str]:
        tokens = cache(tokens)
        prefix = max(self.prefixes, key=tokens, default="")
        return [
            f"{prefix} {pattern.longest(tokens)}" if kind.prefixed else pattern.longest(tokens)
            for kind in self.types
            for pattern in kind.patterns
        ]

    def state(self) -> dict[str, object]:
        return {"set": self.name, "types": {kind.name: len(kind) for kind in self.types}, "digest": self._digest}

    @cached_property
    def _digest(self) -> str:
        """Of every pattern, word and prefix: sets of one name and size may still differ in words."""
        content = [(kind.name, kind.prefixed, [_content(pattern) for pattern in kind.patterns]) for kind in self.types]
        return hashlib.blake2b(repr((content, self.prefixes)).encode(), digest_size=8).hexdigest()

    def sample(self, count: int) -> tuple[str, ...]:
        """At most `count` different prompts, always the same ones, drawn as `draw` does: for what keeps a list."""
        generator = torch.Generator().manual_seed(0)
        return tuple(dict.fromkeys(self.draw(count, generator)))

    def first(self, count: int) -> tuple[str, ...]:
        """`count` different prompts, those of `sample` and more, as long as new ones turn up among as many draws."""
        generator = torch.Generator().manual_seed(0)
        found: dict[str, None] = {}
        while len(found) < count:
            before = len(found)
            found |= dict.fromkeys(self.draw(count, generator))
            if len(found) == before:
                break
        return tuple(found)[:count]

    def with_lines(self, name: str, lines: Sequence[str]) -> RichPrompts:
        """The set and one more type that holds `lines` as they are; drawn as often as every other type."""
        return replace(self, types=(*self.types, PromptType(name, tuple(map(Line, lines)), prefixed=False)))


@dataclass(frozen=True)
class ListedPrompts:
    """A plain list, such as `PromptSet.prompts` or the lines of a file, drawn from uniformly."""

    prompts: tuple[str, ...]
    name: str = "own list"

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("a list of prompts needs at least one")

    def __len__(self) -> int:
        return len(self.prompts)

    def draw(self, count: int, generator: torch.Generator) -> list[str]:
        return [self.prompts[_integer(len(self.prompts), generator)] for _ in range(count)]

    def hardest(self, tokens: Callable[[str], int]) -> list[str]:
        return list(self.prompts)

    def state(self) -> dict[str, object]:
        return {"list": self.name, "prompts": list(self.prompts)}


@cache
def pet_prompts() -> RichPrompts:
    """METHODS.md 2.5 for animals."""
    return _five_types("pets", pet_interactions(), wearings())


@cache
def object_prompts() -> RichPrompts:
    """METHODS.md 2.5 for things."""
    return _five_types("objects", object_interactions(), creatives())


@cache
def words(slot: str) -> tuple[str, ...]:
    """The words of one slot, a line each in `data/rich/<slot>.txt`."""
    return tuple((DATA / f"{slot}.txt").read_text(encoding="utf-8").split("\n")[:-1])


def backgrounds() -> PromptType:
    """Places x 4 phrasings."""
    phrasings = ("with [places] in the background", "in front of [places]", "near [places]", "beside [places]")
    return _type("backgrounds", *(f"a {{}} {phrasing}" for phrasing in phrasings))


def relations() -> PromptType:
    """Prepositions x colours x objects."""
    return _type("relations", "a {} [prepositions] a [colours] [objects]")


def styles() -> PromptType:
    """Styles x 3 verbs."""
    return _type("styles", *(f"a {{}} {verb} in the style of [styles]" for verb in ("depicted", "portrayed", "shown")))


def pet_interactions() -> PromptType:
    """What people do with an animal: verbs x people."""
    return _type("interactions", "[people] [pet_verbs] a {}", prefixed=False)


def object_interactions() -> PromptType:
    """What people do with a thing, said from either side: (active + passive verbs) x people."""
    return _type("interactions", "[people] [active_verbs] a {}", "a {} [passive_verbs] by [people]", prefixed=False)


def wearings() -> PromptType:
    """Colours x (garments + outfits x 2 phrasings)."""
    return _type(
        "wearings",
        "a {} wearing a [colours] [garments]",
        "a {} in a [colours] [outfits] costume",
        "a {} dressed up as a [colours] [outfits]",
    )


def creatives() -> PromptType:
    """What a thing may be made of or look like: media + colours x 2 + shapes x 2."""
    return _type(
        "creatives",
        "a {} made of [media]",
        "a [colours] {}",
        "a {} painted [colours]",
        "a [shapes]-shaped {}",
        "a {} in the shape of a [shapes]",
        prefixed=False,
    )


def with_articles(text: str) -> str:
    """ "a" made "an" before a vowel."""
    return WRONG_ARTICLE.sub(r"\1n", text)


def with_class(template: str, class_word: str) -> str:
    """METHODS.md 2.5: "a {} on a beach" with the class word after the concept, "a {} dog on a beach"."""
    return template.replace("{}", f"{{}} {class_word}")


def _five_types(name: str, *own: PromptType) -> RichPrompts:
    return RichPrompts(name, (backgrounds(), relations(), styles(), *own), words("prefixes"))


def _type(name: str, *patterns: str, prefixed: bool = True) -> PromptType:
    slots = {slot: words(slot) for text in patterns for slot in SLOT.findall(text)}
    return PromptType(name, tuple(Pattern(text, slots) for text in patterns), prefixed)


def _content(pattern: Pattern | Line) -> object:
    if isinstance(pattern, Line):
        return pattern.text
    return pattern.text, [tuple(pattern.words[slot]) for slot in pattern.slots]


def _fill(text: str, chosen: Sequence[str]) -> str:
    given = iter(chosen)
    return SLOT.sub(lambda _: next(given), text)


def _integer(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))
