"""What becomes of the length of a learned vector: CoRe's rescale window (C5) and what METHODS.md 6.1 puts in its place.

Rows `v` are (n, d), one per vector of a concept; norms are (n, 1), or anything that broadcasts to it. A trainer needs
`enter` once before the first step, `direct` on the gradient and `constrain` after every optimiser step; the rest is
what these are made of. All are pure: they return new rows in the dtype of `v`, computed in float32 at least.

- "none": the optimiser's word is final.
- "core_window": inside the window the norm stays what it was on entering it (the paper).
- "fixed_mean": the norm is the mean norm of the vocabulary from the first step on.
- "spherical": the same, and the gradient is projected to the tangent space, so that the optimiser's state knows only
  directions in which the vector can move.
- "dti": the same length, and in place of the optimizer's step the one of `sphere.dti_step` (METHODS.md 5.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from array_api_compat import array_namespace

from .arrays import Array, mean, require_same_shape, take, widen
from .similarity import unit

NormMode = Literal["none", "core_window", "fixed_mean", "spherical", "dti"]
HELD: tuple[NormMode, ...] = ("fixed_mean", "spherical", "dti")
"""The modes in which rows are as long as the vocabulary's mean from the first step on."""


def row_norms(v: Array) -> Array:
    """Euclidean norms of the rows, (n, d) -> (n, 1), in float32 or wider."""
    xp = array_namespace(v)
    return xp.sqrt(xp.sum(widen(v) ** 2, axis=-1, keepdims=True))


def vocabulary_norm(table: Array, exclude: Sequence[int] | np.ndarray = ()) -> Array:
    """The mean norm of the rows of a token table (V, d), a scalar; rows in `exclude` (special tokens) do not count.
    Raises ValueError where no row is left."""
    kept = np.setdiff1d(np.arange(table.shape[0]), np.asarray(exclude, dtype=np.int64) % table.shape[0])
    if kept.size == 0:
        raise ValueError(f"no row left of table {tuple(table.shape)}")
    return mean(take(row_norms(table), kept, axis=0))


def rescale(v: Array, norm: Array | float) -> Array:
    """METHODS.md C5: v / |v| * norm, row by row. A zero row has no direction and stays zero."""
    xp = array_namespace(v)
    return xp.astype(unit(v) * norm, v.dtype, copy=False)


def tangent(gradient: Array, v: Array) -> Array:
    """The part of `gradient` (n, d) at right angles to `v` (n, d), row by row: the Riemannian gradient on the sphere.
    Raises ValueError where shapes differ."""
    require_same_shape(gradient=gradient, v=v)
    xp = array_namespace(gradient, v)
    along, wide = unit(v), widen(gradient)
    return xp.astype(wide - xp.sum(wide * along, axis=-1, keepdims=True) * along, gradient.dtype, copy=False)


def rescale_window(steps: int, start: float = 0.4, end: float = 0.6) -> tuple[int, int]:
    """The window of `constrain` for a training of `steps` steps: 300 -> (120, 180) as in METHODS.md 1.10 no. 5.
    Raises ValueError unless 0 <= start <= end <= 1."""
    if not 0 <= start <= end <= 1:
        raise ValueError(f"a window inside the training expected: start {start}, end {end} of 1")
    first = max(1, round(start * steps))  # the norm is recorded after a step, so not before the first
    return first, max(first, round(end * steps))


def in_window(step: int, window: tuple[int, int]) -> bool:
    """Whether the rows are rescaled after `step` (the first step is 1): at window[0] the norm is only recorded."""
    return window[0] < step <= window[1]


def enter(mode: NormMode, v: Array, vocabulary_norm: Array | float | None = None) -> tuple[Array, Array | float | None]:
    """The rows to start from and the norm to hold, before the first step; the norm belongs into a checkpoint.
    Raises ValueError for an unknown mode, or where the mode needs `vocabulary_norm` and there is none."""
    _require_mode(mode)
    if mode in ("none", "core_window"):
        return v, None
    if vocabulary_norm is None:
        raise ValueError(f"norm mode {mode!r} needs the vocabulary's mean norm")
    return rescale(v, vocabulary_norm), vocabulary_norm


def direct(mode: NormMode, gradient: Array, v: Array) -> Array:
    """The gradient the optimiser is to see: its tangent part in mode "spherical", else as it is. In mode "dti" no
    optimiser moves the rows."""
    _require_mode(mode)
    return tangent(gradient, v) if mode == "spherical" else gradient


def constrain(
    mode: NormMode, v: Array, norm: Array | float | None, *, step: int, window: tuple[int, int] = (120, 180)
) -> tuple[Array, Array | float | None]:
    """The rows after optimiser step `step` (the first is 1), and the norm to pass to the next call.

    Raises ValueError where a norm has to be held and none was recorded, as after a resume that lost it.
    """
    _require_mode(mode)
    if mode == "none":
        return v, norm
    if mode == "core_window":
        if step == window[0]:
            return v, row_norms(v)
        if not in_window(step, window):
            return v, norm
    if norm is None:
        raise ValueError(f"norm mode {mode!r} has no norm to hold at step {step} (window {window})")
    return rescale(v, norm), norm


def _require_mode(mode: str) -> None:
    if mode not in get_args(NormMode):
        raise ValueError(f"unknown norm mode {mode!r}: expected one of {', '.join(get_args(NormMode))}")
