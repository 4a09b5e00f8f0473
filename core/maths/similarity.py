"""Cosines between vectors, the nearest vocabulary rows, and the composition measures of METHODS.md 2.7."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from array_api_compat import array_namespace, device

from .arrays import Array, require_same_shape, take, widen


def unit(x: Array, axis: int = -1) -> Array:
    """`x` / |x| along `axis`, in float32 or wider. A zero vector stays zero, with a finite gradient."""
    xp = array_namespace(x)
    x = widen(x)
    squared = xp.sum(x * x, axis=axis, keepdims=True)
    return x / xp.sqrt(xp.where(_is_zero(squared), xp.ones_like(squared), squared))


def cosine(a: Array, b: Array, axis: int = -1) -> Array:
    """cos(a, b) along `axis`; 0 where either vector is zero. Shapes broadcast."""
    xp = array_namespace(a, b)
    return xp.sum(unit(a, axis) * unit(b, axis), axis=axis)


def cosine_distance(a: Array, b: Array, axis: int = -1) -> Array:
    """1 - cos(a, b) along `axis`, in [0, 2] up to rounding, as |unit(a) - unit(b)|^2 / 2.

    That form keeps its digits where the vectors nearly agree, and is 0 with a gradient of 0 where they are equal, which
    1 - cos is only up to rounding. A zero vector is at distance 1 from any other, as with cos = 0, and 0 from itself.
    Raises ValueError where shapes differ.
    """
    require_same_shape(a=a, b=b)
    xp = array_namespace(a, b)
    apart = xp.sum((unit(a, axis) - unit(b, axis)) ** 2, axis=axis) / 2
    zero_a, zero_b = (_is_zero(xp.sum(widen(x) ** 2, axis=axis)) for x in (a, b))
    return xp.where(xp.not_equal(zero_a, zero_b), xp.ones_like(apart), apart)


def nearest_rows(v: Array, table: Array, k: int = 1, exclude: Sequence[int] | np.ndarray = ()) -> tuple[Array, Array]:
    """The `k` rows of `table` (V, d) with the highest cosine to each of `v` (n, d): indices (n, k), cosines (n, k),
    best first; the hard token of METHODS.md D2 with k = 1. Rows in `exclude` are never named.

    Raises ValueError where widths differ or fewer than `k` rows remain.
    """
    xp = array_namespace(v, table)
    if v.ndim != 2 or table.ndim != 2 or v.shape[1] != table.shape[1]:
        raise ValueError(f"v (n, d) and table (V, d) expected: v {tuple(v.shape)}, table {tuple(table.shape)}")
    allowed = np.ones(table.shape[0], dtype=bool)
    allowed[np.asarray(exclude, dtype=np.int64)] = False
    if not 1 <= k <= allowed.sum():
        raise ValueError(f"k = {k} of {int(allowed.sum())} allowed rows (table {tuple(table.shape)})")
    cosines = unit(v) @ xp.matrix_transpose(unit(table))
    cosines = xp.where(xp.asarray(allowed, device=device(cosines)), cosines, xp.full_like(cosines, -xp.inf))
    order = xp.argsort(cosines, axis=-1, descending=True)[:, :k]
    return order, xp.take_along_axis(cosines, order, axis=-1)


def sim1(outputs: Array, concept_at: int, context_at: int) -> Array:
    """METHODS.md 2.7: cos between the encoder outputs (..., L, d) of the concept and of a context word in one prompt.
    High means that the concept speaks for the context."""
    return _cosine_of_tokens(outputs, concept_at, outputs, context_at)


def sim2(outputs: Array, context_at: int, reference: Array, reference_at: int) -> Array:
    """METHODS.md 2.7: cos between a context word's output with the concept in the prompt (`outputs`) and without it
    (`reference`), each (..., L, d). High means that the word still means what it meant."""
    return _cosine_of_tokens(outputs, context_at, reference, reference_at)


def symmetric_kl(a: Array, b: Array) -> Array:
    """METHODS.md 2.7 SKL of two attention maps (..., N) as they are, *not* made to sum to one over the pixels:
    KL(a||b)/2 + KL(b||a)/2, summed over the pixels (`batchmean` there divides by the number of context tokens)."""
    # KL(a||b) + KL(b||a) = sum (a - b)(log a - log b): one pass, never negative
    require_same_shape(a=a, b=b)
    xp = array_namespace(a, b)
    a, b = widen(a), widen(b)
    floor = float(
        xp.finfo(a.dtype).smallest_normal
    )  # a probability that underflowed to 0 must not make the sum infinite
    log_a, log_b = (xp.log(xp.clip(x, min=floor)) for x in (a, b))
    return xp.sum((a - b) * (log_a - log_b), axis=-1) / 2


def pixel_symmetric_kl(a: Array, b: Array) -> Array:
    """METHODS.md 2.8 no. 6: the symmetric KL of two maps (..., N) made to sum to one over the pixels: a proper KL, in
    nats."""
    xp = array_namespace(a, b)
    a, b = widen(a), widen(b)
    return symmetric_kl(a / xp.sum(a, axis=-1, keepdims=True), b / xp.sum(b, axis=-1, keepdims=True))


def _cosine_of_tokens(outputs: Array, at: int, others: Array, others_at: int) -> Array:
    if outputs.shape[-1] != others.shape[-1]:
        raise ValueError(f"widths differ: {tuple(outputs.shape)} and {tuple(others.shape)}")
    return cosine(take(outputs, [at], axis=-2), take(others, [others_at], axis=-2))[..., 0]


def _is_zero(squared_norm: Array) -> Array:
    return squared_norm < float(array_namespace(squared_norm).finfo(squared_norm.dtype).smallest_normal)
