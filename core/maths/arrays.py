"""What every equation asks of an array: its namespace, a precision wide enough to add in, and agreeing shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

Array = Any  # any Array API array: numpy.ndarray, torch.Tensor, jax.Array, ...


def accumulation_dtype(x: Array) -> Any:
    """The dtype to compute in: that of `x`, or float32 where `x` is narrower (float16, bfloat16) or not floating."""
    xp = array_namespace(x)
    if not xp.isdtype(x.dtype, "real floating"):
        return xp.float32
    return xp.float32 if xp.finfo(x.dtype).bits < 32 else x.dtype


def widen(x: Array) -> Array:
    """`x` in its accumulation dtype; the same object where it already is."""
    xp = array_namespace(x)
    return xp.astype(x, accumulation_dtype(x), copy=False)


def mean(x: Array, axis: int | tuple[int, ...] | None = None) -> Array:
    """Mean over `axis`, added up in the accumulation dtype without a widened copy of `x` (attention maps are large)."""
    xp = array_namespace(x)
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    count = int(np.prod([x.shape[a] for a in axes], dtype=np.int64))
    return xp.sum(x, axis=tuple(axes), dtype=accumulation_dtype(x)) / count


def per_sample(values: Array, like: Array) -> Array:
    """`values` of shape () or (B,) shaped to broadcast over `like` (B, ...), in the accumulation dtype of `like`.

    Raises ValueError where the lengths differ.
    """
    xp = array_namespace(values, like)
    values = xp.astype(values, accumulation_dtype(like), copy=False)
    if values.ndim == 0:
        return values
    if values.ndim != 1 or values.shape[0] not in (1, like.shape[0]):
        raise ValueError(f"one value a sample expected: values {tuple(values.shape)}, samples {tuple(like.shape)}")
    return xp.reshape(values, (values.shape[0],) + (1,) * (like.ndim - 1))


def require_same_shape(**arrays: Array) -> None:
    """Raises ValueError that names every array and its shape unless all shapes are equal."""
    if len({tuple(a.shape) for a in arrays.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(a.shape)}" for name, a in arrays.items())
        raise ValueError(f"shapes differ: {shapes}")


def take(x: Array, positions: Sequence[int] | Array, axis: int) -> Array:
    """`x` at `positions` (n,) along `axis`. Positions that already are an array of the namespace are not copied,
    so a trainer that keeps them on the device pays no transfer."""
    xp = array_namespace(x)
    if isinstance(positions, Sequence | np.ndarray):
        positions = xp.asarray(np.asarray(positions, dtype=np.int64), device=device(x))
    return xp.take(x, positions, axis=axis % x.ndim)
