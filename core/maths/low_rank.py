"""Low-rank deltas: W' = W + s A B, on the fly and merged (METHODS.md D1), row vectors y = x W'."""

from __future__ import annotations

from array_api_compat import array_namespace

from .arrays import Array


def low_rank(x: Array, a: Array, b: Array, scale: float = 1.0) -> Array:
    """METHODS.md D1 on the fly: s (x A) B, what a delta adds to x W, without ever forming A B.

    `x` (..., Din), `a` (Din, r), `b` (r, Dout): (..., Dout). With one delta a sample, `a` (B, Din, r) and `b`
    (B, r, Dout) act on `x` (B, ..., Din). Raises ValueError where shapes do not fit.
    """
    _require_factors(a, b)
    fits = x.shape[-1] == a.shape[-2] and (a.ndim == 2 or (x.ndim >= 2 and x.shape[0] == a.shape[0]))
    if not fits:
        raise ValueError(f"shapes differ: x {tuple(x.shape)}, a {tuple(a.shape)}")
    if a.ndim == 2:
        return _scaled(x @ a, scale) @ b
    xp = array_namespace(x, a, b)
    flat = xp.reshape(x, (x.shape[0], -1, x.shape[-1]))
    return xp.reshape(_scaled(flat @ a, scale) @ b, (*x.shape[:-1], b.shape[-1]))


def _scaled(inner: Array, scale: float) -> Array:
    return inner if isinstance(scale, float) and scale == 1 else scale * inner


def low_rank_weight(a: Array, b: Array, scale: float = 1.0) -> Array:
    """METHODS.md D1: s A B, (Din, Dout), or (B, Din, Dout) for one delta a sample. Transposed it is the change of a
    layer's weight in PyTorch's layout (Dout, Din). Raises ValueError where shapes do not fit."""
    _require_factors(a, b)
    return scale * a @ b


def low_rank_approximation(weight: Array, rank: int) -> tuple[Array, Array]:
    """A (Din, r) and B (r, Dout) with A B nearest to `weight` (Din, Dout) among all of that rank (Eckart and Young).

    The columns of A are orthonormal, about as long as those that LoRA starts with; B carries the sizes, and zeros
    beyond the rank of `weight`. Raises ValueError for a rank that no such matrix can have.
    """
    if weight.ndim != 2 or not 1 <= rank <= min(weight.shape):
        raise ValueError(f"a rank within 1 .. {min(weight.shape)} expected for {tuple(weight.shape)}, not {rank}")
    left, sizes, right = array_namespace(weight).linalg.svd(weight, full_matrices=False)
    return left[:, :rank], sizes[:rank, None] * right[:rank, :]


def _require_factors(a: Array, b: Array) -> None:
    if a.ndim not in (2, 3) or a.ndim != b.ndim or a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        raise ValueError(f"(Din, r) and (r, Dout) expected: a {tuple(a.shape)}, b {tuple(b.shape)}")
