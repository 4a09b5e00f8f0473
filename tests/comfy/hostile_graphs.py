"""Mutations of the shipped graphs: one input of one node is made strange, and the rest comes from where it should.

Each node of ours in a shipped graph is run by itself. Its settings are those of the graph, made small; what comes along
its links comes from `Source`, a node that hands out values that were made once.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch

PREFIX = "ContextualInversion"
SOURCE = "ContextualInversionTestSource"
TARGET = "1"
SMALL = {
    f"{PREFIX}TrainConcept": {"steps": 1, "batch": 1, "preview_every": 0, "resolution": 64},
    f"{PREFIX}RefineConcept": {"steps": 1, "batch": 1, "preview_every": 0, "resolution": 64},
    f"{PREFIX}OptimizeForPrompt": {"steps": 1, "batch": 1, "width": 64, "height": 64},
    f"{PREFIX}TunePredictedConcept": {"steps": 1, "batch": 1},
    f"{PREFIX}DiagnoseConcept": {"most_prompts": 1, "images": 0, "steps": 1, "width": 64, "height": 64},
    f"{PREFIX}PretrainContextualizer": {"steps": 1, "batch": 2, "held_out": 10},
    f"{PREFIX}AttendImage": {"timesteps": "500"},
    f"{PREFIX}ShowAttention": {"words": ""},
    f"{PREFIX}EvaluateConcept": {"clip": "bundled", "dino": "none", "prompts": "a cat"},
    f"{PREFIX}PretrainTuningEncoder": {"steps": 1, "batch": 2, "world_pictures": 2, "size": "tiny"},
}
DEAR = (
    *("steps", "batch", "held_out", "images", "most_prompts", "prior_pictures", "world_pictures", "count"),
    *("resolution", "width", "height", "rank", "vectors", "least_rank", "step_bins", "words", "neighbours"),
)
"""A large value of these is a long wish and no fault: only their lower end is tried, and what is beyond limits."""
TEXTS = (
    *(
        "",
        " ",
        "{}",
        "{} {}",
        "\u200b",
        "\ud800",
        "a\x00b",
        "x" * 5000,
        "\U0001f9f8",
        "\u202eabc",
        "../up",
        "a\\b",
        "{",
    ),
    *("<word>", "embedding:nothing", "\n\n", "caf\u00e9 \u4f60\u597d", "nan", "0", "(((", "a|b", "<|endoftext|>"),
)


@dataclass(frozen=True)
class Mutation:
    """One node with one strange input: `sources` are the values that its links bring, by input."""

    label: str
    class_type: str
    inputs: dict[str, Any]
    sources: dict[str, tuple[str, Any]] = field(default_factory=dict)
    """Input -> (socket type, value)."""


def source_node(store: dict[str, Any]) -> type:
    """A node that gives whatever lies in `store` under a key, as one value or, for a list, as ComfyUI's lists."""

    class Source:
        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {"key": ("STRING", {})}}

        RETURN_TYPES = (AnySocket("*"),)
        OUTPUT_IS_LIST = (True,)
        FUNCTION = "give"
        CATEGORY = "test"

        @classmethod
        def IS_CHANGED(cls, **_: Any) -> float:
            return float("nan")

        def give(self, key: str) -> tuple[list[Any]]:
            value = store[key]
            return (value if isinstance(value, Many) else [value],)

    return Source


class Many(list):
    """A list of ComfyUI's: a node that takes none runs once for each entry."""


class AnySocket(str):
    """A socket type equal to every other."""

    def __ne__(self, other: object) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = str.__hash__


def mutations(nodes: list[tuple[str, dict[str, Any]]], info: Any, values: dict[str, Any], seed: int) -> list[Mutation]:
    """All mutations of `nodes` ((class type, inputs) each), in an order that `seed` shuffles, a node of
    each class in turn. `info` is what ComfyUI
    tells the page of each class, `values` a proper value for each socket type, and strange ones under "strange"."""
    chance = random.Random(seed)
    piles: dict[str, list[Mutation]] = {}
    for class_type, inputs in nodes:
        piles.setdefault(class_type, []).extend(_of_node(class_type, inputs, info, values))
    for pile in piles.values():
        chance.shuffle(pile)
    return [one for row in zip_longest(*piles.values()) for one in row if one is not None]


def _of_node(class_type: str, inputs: dict[str, Any], info: Any, values: dict[str, Any]) -> Iterator[Mutation]:
    declared = {**info[class_type]["input"].get("required", {}), **info[class_type]["input"].get("optional", {})}
    small = {name: value for name, value in SMALL.get(class_type, {}).items() if name in declared}
    plain = {name: value for name, value in {**inputs, **small}.items() if not isinstance(value, list)}
    links = {name: kind_of(declared[name]) for name, value in inputs.items() if isinstance(value, list)}
    known = {**values, **values["by_name"]}
    sources = {name: (kind, known.get(name, values[kind])) for name, kind in links.items() if kind in values}
    plain |= {name: value for name, value in values["by_name"].items() if name in plain}
    for name, declaration in declared.items():
        kind, options = kind_of(declaration), declaration[1] if len(declaration) > 1 else {}
        if name in plain:
            del_plain = {key: value for key, value in plain.items() if key != name}
            yield Mutation(f"{name} is missing", class_type, del_plain, sources)
        for value in strange_literals(name, kind, options):
            yield Mutation(f"{name} = {value!r:.60}", class_type, {**plain, name: value}, without(sources, name))
        for label, value in strange_values(name, kind, options, values):
            rest = {key: own for key, own in plain.items() if key != name}
            yield Mutation(f"{name} <- {label}", class_type, rest, {**sources, name: (kind, value)})
        if name in sources:
            yield Mutation(f"{name} is not connected", class_type, plain, without(sources, name))


def without(sources: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in sources.items() if key != name}


def kind_of(declaration: Any) -> str:
    """The socket type of an input as ComfyUI tells it; a choice is "COMBO"."""
    return "COMBO" if isinstance(declaration[0], list | tuple) else str(declaration[0])


def _is_zero(value: Any) -> bool:
    """As "steps" 0 is the recipe's number, and would train for minutes."""
    return isinstance(value, int | float) and math.isfinite(value) and int(value) == 0


def strange_literals(name: str, kind: str, options: dict[str, Any]) -> list[Any]:
    """What a graph file may hold in the place of this input."""
    low, high = options.get("min"), options.get("max")
    if kind in ("INT", "FLOAT"):
        edges = [one for one in (low,) if one is not None] + ([] if high is None or name in DEAR else [high])
        beyond = [one for one in (low and low - 1, high and high + 1) if one is not None]
        odd = [-1, 0, "abc", None, True, {}, 1e308] + (
            [math.nan, math.inf, -math.inf, 1e-30] if kind == "FLOAT" else []
        )
        odd += [65] if name in ("width", "height", "resolution") else []
        return [one for one in (*edges, *beyond, *odd) if not (name == "steps" and _is_zero(one))]
    if kind == "STRING":
        return [*TEXTS, None, 5, {}]
    if kind == "COMBO":
        return ["no such thing", "", None, 3]
    if kind == "BOOLEAN":
        return [None, "yes", 2]
    return ["text", 5, None, {}, [TARGET, 0], ["nowhere", 0]]


def strange_values(name: str, kind: str, options: dict[str, Any], values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a link may bring, where ComfyUI checks nothing but the type of the socket."""
    if kind in ("INT", "FLOAT"):
        yield from ((repr(one), one) for one in (math.nan, math.inf, "abc", None, -7, 2.5, 10**9))
    elif kind == "STRING":
        yield from ((f"{one!r:.40}", one) for one in ("\ud800", "{}", None, 5, "y" * 30_000))
    elif kind == "COMBO":
        yield from ((repr(one), one) for one in ("no such thing", None))
    elif kind in values:
        yield "nothing", None
        yield from values["strange"].get(kind, {}).items()
        for other in ("MODEL", "CLIP", "CONCEPT", "IMAGE", "STRING", "PROMPTS"):
            if other != kind:
                yield f"a {other}", values[other]


def strange_pictures() -> dict[str, Any]:
    """Pictures and batches that no camera makes."""
    torch.manual_seed(0)
    fine = torch.rand(1, 96, 128, 3)
    holed = fine.clone()
    holed[0, 3, 4, 1] = math.nan
    return {
        "one channel": torch.rand(2, 96, 96, 1),
        "two channels": torch.rand(1, 96, 96, 2),
        "four channels": torch.rand(1, 96, 96, 4),
        "five channels": torch.rand(1, 96, 96, 5),
        "height 1": torch.rand(1, 1, 96, 3),
        "one pixel": torch.rand(1, 1, 1, 3),
        "odd sides": torch.rand(1, 65, 131, 3),
        "all NaN": torch.full((1, 64, 64, 3), math.nan),
        "one NaN": holed,
        "infinite": torch.full((1, 64, 64, 3), math.inf),
        "0 to 255": fine * 255,
        "negative": fine - 1,
        "bytes": (fine * 255).to(torch.uint8),
        "half precision": fine.half(),
        "no picture": torch.rand(0, 64, 64, 3),
        "no pixels": torch.rand(1, 0, 64, 3),
        "three axes": fine[0],
        "black": torch.zeros(1, 64, 64, 3),
        "a list": Many([torch.rand(1, 64, 64, 3), torch.rand(2, 96, 80, 3)]),
    }


def strange_masks() -> dict[str, Any]:
    """Masks that leave nothing, do not fit, or are none."""
    return {
        "0.004 everywhere": torch.full((4, 128, 128), 0.0039),
        "empty": torch.zeros(4, 128, 128),
        "all NaN": torch.full((4, 128, 128), math.nan),
        "another size": torch.ones(4, 64, 64),
        "one only": torch.ones(1, 128, 128),
        "no mask": torch.ones(0, 128, 128),
        "four axes": torch.ones(4, 1, 128, 128),
        "one pixel": torch.zeros(4, 128, 128).index_fill(1, torch.tensor(0), 1.0),
        "0 to 255": torch.full((4, 128, 128), 255.0),
        "a list": Many([torch.ones(1, 128, 128)] * 4),
    }
