"""Nodes that mean "all pictures": batches and lists of pictures of any sizes, and one run over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from comfy_api.latest import io

from ...core.wording import quoted

ALL_OF = ("IMAGE", "MASK")
"""Kinds of inputs that are taken together where a node takes lists."""
TEXTS = ("captions", "prompts")
"""The text inputs of which every picture may have its own."""


def gathered(schema: io.Schema, given: Mapping[str, list[Any]]) -> dict[str, Any]:
    """What ComfyUI hands to a node that takes lists, as its `execute` knows it: pictures and masks together, every
    other input its one value.

    Raises ValueError where such an input came with several different values: the node runs once.
    """
    kinds = {one.id: one.io_type for one in schema.inputs}
    return {
        name: together(values) if kinds.get(name) in ALL_OF or several_texts(name, kinds) else only_one(name, values)
        for name, values in given.items()
    }


def several_texts(name: str, kinds: Mapping[str, str]) -> bool:
    """Whether the input takes a text of each picture. PROMPTS sockets are called so too."""
    return name in TEXTS and kinds.get(name) == "STRING"


def lines_of(texts: str | list[str]) -> list[str]:
    """One text of many lines, or many texts of one line each, without the empty ones."""
    given = texts if isinstance(texts, list) else [texts]
    return [line.strip() for text in given for line in text.splitlines() if line.strip()]


def together(values: Any) -> Any:
    """One batch as it is; several as a list of batches, each of its own size. None where nothing is connected."""
    if not isinstance(values, list):
        return values
    there = [value for value in values if value is not None]
    return there if len(there) > 1 else next(iter(there), None)


def only_one(name: str, values: Any) -> Any:
    """The one value of an input. Raises ValueError where there are different ones."""
    if not isinstance(values, list) or not values:
        return values
    first = values[0]
    if any(value is not first and not _same(value, first) for value in values[1:]):
        raise ValueError(
            f"{name} was given {len(values)} values, such as {quoted(first)}: this node runs once for all its "
            "pictures; connect one value"
        )
    return first


def each_picture(images: torch.Tensor | list[torch.Tensor]) -> list[torch.Tensor]:
    """Every picture (H, W, C) by itself, of one batch (N, H, W, C) or of several."""
    return [picture for batch in _batches(images) for picture in batch]


def each_mask(masks: torch.Tensor | list[torch.Tensor] | None) -> list[torch.Tensor] | None:
    """Every mask (H, W) by itself, of one batch (N, H, W) or of several; None stays None."""
    if masks is None:
        return None
    return [mask for batch in _batches(masks) for mask in (batch if batch.ndim == 3 else [batch])]


def _batches(values: torch.Tensor | list[torch.Tensor]) -> list[torch.Tensor]:
    return values if isinstance(values, list) else [values]


def _same(one: Any, other: Any) -> bool:
    plain = (str, int, float, bool, type(None))
    return isinstance(one, plain) and isinstance(other, plain) and one == other
