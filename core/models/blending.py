"""A word between two words (METHODS.md 5.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from ..concept import Concept
from ..maths.sphere import slerp


def blended(one: Concept, other: Concept, share: float) -> Concept:
    """The word at `share` of the way from `one` (0) to `other` (1), under the name of the first.

    Raises ValueError for a share outside 0 .. 1, for concepts that change a model's weights, that are not of one kind
    and length, or whose vectors point away from each other.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a blend is within 0 .. 1, not {share}")
    for concept in (one, other):
        if concept.lora:
            raise ValueError(f"the concept {concept.name!r} changes the model's weights, and only words can be blended")
    if (one.layer_vectors is None) != (other.layer_vectors is None):
        raise ValueError(f"of {one.name!r} and {other.name!r} one has a vector for every layer and the other has not")
    layers = one.layer_vectors and _between(one, other, one.layer_vectors, other.layer_vectors, share)
    return replace(
        one,
        vectors=_between(one, other, one.vectors, other.vectors, share),
        layer_vectors=layers,
        provenance={**one.provenance, "blended": {"with": other.name, "share": share}},
    )


def _between(
    one: Concept, other: Concept, vectors: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor], share: float
) -> dict[str, torch.Tensor]:
    shapes = [{name: tuple(value.shape) for name, value in part.items()} for part in (vectors, others)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{one.name!r} and {other.name!r} cannot be blended: their vectors are {shapes[0]} and {shapes[1]}; train "
            "both for one model and of one length"
        )
    return {name: slerp(value, others[name], share) for name, value in vectors.items()}
