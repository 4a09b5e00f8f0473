"""From what each text encoder says of a prompt to the conditioning of a model, by the family's own code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from ....core.models.protocol import Conditioning, ImageSize
from .encoders import FamilyTextEncoder, Parts, Raw

APART = 65536
"""Numbers that mark the places of one text encoder, from those of the next; float32 holds them exactly."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt as its text encoders said it (`raw`, by name), joined as ComfyUI joins it into `condition`, the
    dictionary that a sampler is given."""

    raw: Mapping[str, Raw]
    condition: Mapping[str, Any]
    encoders: Mapping[str, FamilyTextEncoder]
    model: Any
    aligned: str = "left"

    @cached_property
    def places(self) -> dict[str, torch.Tensor]:
        """For every encoder whose tokens come to the denoiser as such: where, of its positions in core's order, -1 for
        those that do not. (L,) int64 on the CPU."""
        parts = {name: encoder.part for name, encoder in self.encoders.items()}
        found = {}
        for name, at in marked_places(self.model, parts, self.raw)[0].items():
            encoder = self.encoders[name]
            known = [at.get(place, -1) for place in encoder.places(self.raw[name])]
            bos, eos = encoder.reads()
            known[0], known[-1] = known[0] if bos else -1, known[-1] if eos else -1
            found[name] = torch.full((encoder.max_length,), -1)
            found[name][: len(known)] = torch.tensor(known)
        return found

    @property
    def length(self) -> int:
        """Text tokens that the denoiser is given."""
        return int(self.condition["cond"].shape[-2])


def marked_places(
    model: Any, parts: Mapping[str, Parts], raw: Mapping[str, Raw]
) -> tuple[dict[str, dict[int, int]], int]:
    """For every text encoder whose tokens come to the denoiser: the place there of each of its positions; and how many
    places there are. Asked of the family's own code, by letting each token say its number."""
    marked = {
        name: _marked(one, 1 + index * APART + torch.arange(one.out[0].shape[-2]))
        for index, (name, one) in enumerate(raw.items())
    }
    cond = joined(model, parts, marked)["cond"]
    # Of encoders that are joined along the features the last mark is seen; they share their places.
    marks = cond.flatten(0, -2).amax(dim=-1).round().long().tolist()
    found: dict[str, dict[int, int]] = {}
    for index, name in enumerate(raw):
        first = 1 + index * APART
        at = {mark - first: place for place, mark in enumerate(marks) if first <= mark < first + APART}
        if at:
            found[name] = at
    return found, len(marks)


def _marked(raw: Raw, marks: torch.Tensor) -> Raw:
    out, *rest = raw.out
    numbers = marks.to(torch.float32)[:, None].expand(out.shape)
    return Raw(raw.tokens, (numbers.clone(), *rest), raw.first, raw.count)


def joined(model: Any, parts: Mapping[str, Parts], raw: Mapping[str, Raw]) -> dict[str, Any]:
    """What ComfyUI makes of a prompt of which its text encoders said `raw`: the dictionary of a conditioning."""
    tokens = {parts[name].key: [one.tokens] for name, one in raw.items()}
    with ExitStack() as stack:
        for name, one in raw.items():
            stack.enter_context(_saying(getattr(model, parts[name].attribute), one.out))
        cond, pooled, *rest = model.encode_token_weights(_with_absent(model, tokens))
    return {"cond": cond, "pooled_output": pooled, **(dict(rest[0]) if rest else {})}


def _with_absent(model: Any, tokens: Mapping[str, Any]) -> dict[str, Any]:
    """SD3 may come without one of its text encoders, and asks for its tokens all the same."""
    absent = {"clip_l": "l", "clip_g": "g", "t5xxl": "t5xxl"}
    missing = {key: [] for name, key in absent.items() if key not in tokens and name in vars(model) | _parts(model)}
    return {**missing, **tokens}


def _parts(model: Any) -> dict[str, Any]:
    return dict(model._modules)


@contextmanager
def _saying(module: Any, out: tuple[Any, ...]) -> Iterator[None]:
    """A text encoder that has been asked already, while its family's code joins what all of them said."""
    # The family's code may take parts out of what it is given.
    given = tuple(dict(part) if isinstance(part, dict) else part for part in out)
    vars(module)["encode_token_weights"] = lambda _: given
    try:
        yield
    finally:
        vars(module).pop("encode_token_weights")


@dataclass(frozen=True)
class FamilyConditioning(Conditioning):
    """Prompts, each with the size of its picture. Those of one batch may differ in length; `context` says nothing."""

    prompts: tuple[Prompt, ...] = ()
    sizes: tuple[ImageSize, ...] = field(default_factory=tuple)

    @classmethod
    def of(cls, prompts: Sequence[Prompt], sizes: Sequence[ImageSize]) -> FamilyConditioning:
        return cls(torch.zeros(len(prompts), 0, 0), prompts=tuple(prompts), sizes=tuple(sizes))

    def expand(self, batch: int) -> FamilyConditioning:
        if len(self.prompts) == batch:
            return self
        return FamilyConditioning.of(self.prompts * batch, self.sizes * batch)

    def row(self, index: int) -> FamilyConditioning:
        return FamilyConditioning.of([self.prompts[index]], [self.sizes[index]])

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> FamilyConditioning:
        return FamilyConditioning.of(
            [prompt for part in parts for prompt in part.prompts], [size for part in parts for size in part.sizes]
        )


def alike(prompts: Sequence[Prompt]) -> list[list[int]]:
    """The places of prompts that can run in one batch: all of their tensors have equal shapes."""
    groups: dict[Any, list[int]] = {}
    for place, prompt in enumerate(prompts):
        shapes = tuple(
            (key, tuple(value.shape) if isinstance(value, torch.Tensor) else repr(value))
            for key, value in sorted(prompt.condition.items())
        )
        groups.setdefault(shapes, []).append(place)
    return list(groups.values())
