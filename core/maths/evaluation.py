"""What the papers measure on pictures: text and reference similarity of features, and foregrounds (METHODS.md 2.7)."""

from __future__ import annotations

from array_api_compat import array_namespace

from .arrays import Array, mean, require_same_shape, widen
from .similarity import cosine, unit


def text_similarity(pictures: Array, captions: Array) -> Array:
    """METHODS.md 2.7, CLIP-T: max(cos, 0) of each picture's features (N, d) with its caption's (N, d), weight 1; (N,).

    Raises ValueError where shapes differ.
    """
    require_same_shape(pictures=pictures, captions=captions)
    xp = array_namespace(pictures, captions)
    return xp.clip(cosine(pictures, captions), min=0.0)


def reference_similarity(pictures: Array, references: Array) -> Array:
    """METHODS.md 2.7, CLIP-I, DINO and DINO-FG: for each picture's features (N, d) the mean of its cosines with all
    references' (M, d); (N,). Their mean is the mean of all N x M pairs.

    The cosine is linear in a unit vector, so one product with the mean direction replaces all pairs.
    Raises ValueError where widths differ.
    """
    if pictures.ndim != 2 or references.ndim != 2 or pictures.shape[1] != references.shape[1]:
        raise ValueError(f"(N, d) and (M, d) expected: {tuple(pictures.shape)} and {tuple(references.shape)}")
    return unit(pictures) @ mean(unit(references), axis=0)


def foreground(picture: Array, mask: Array, fill: float) -> Array:
    """`picture` (H, W, C) where `mask` (H, W) is 1 and the constant `fill` where it is 0, blended in between.

    Raises ValueError where the sizes differ.
    """
    if tuple(picture.shape[:2]) != tuple(mask.shape):
        raise ValueError(f"a mask as large as its picture expected: {tuple(mask.shape)} and {tuple(picture.shape[:2])}")
    mask = widen(mask)[..., None]
    return widen(picture) * mask + fill * (1 - mask)
