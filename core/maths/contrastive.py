"""Keep a learned embedding near real words and apart from other subjects (METHODS.md 3.4, D2 to D5)."""

from __future__ import annotations

from array_api_compat import array_namespace

from .arrays import Array, widen
from .similarity import unit

TAU = 0.07
NEIGHBOURS = 10
LAMBDA_CONTRASTIVE = 0.01
LAMBDA_NORM = 0.01

_NEVER = -1e30  # finite, so that a row without any negative has a gradient of 0 and not of nan


def nearest_tokens(v: Array, directions: Array, k: int = NEIGHBOURS) -> Array:
    """METHODS.md D2: the `k` rows of `directions` (V, d), unit vectors, with the highest cosine to each of `v` (n, d),
    best first: indices (n, k). The choice has no gradient. Raises ValueError where widths differ or k > V."""
    if v.ndim != 2 or directions.ndim != 2 or v.shape[1] != directions.shape[1]:
        raise ValueError(f"v (n, d) and directions (V, d) expected: {tuple(v.shape)}, {tuple(directions.shape)}")
    if not 1 <= k <= directions.shape[0]:
        raise ValueError(f"k = {k} of {directions.shape[0]} words")
    xp = array_namespace(v, directions)
    return xp.argsort(unit(v) @ xp.matrix_transpose(directions), axis=-1, descending=True)[:, :k]


def contrastive_loss(
    v: Array, positives: Array, negatives: Array, *, tau: float = TAU, excluded: Array | None = None
) -> Array:
    """METHODS.md D3: -log[ P / (P + N) ] of each of `v` (n, d), mean over them; P and N are the sums of e^(cos / tau)
    over its `positives` (n, K, d) and over the `negatives` (M, d).

    `excluded` (n, M), bool, leaves negatives out: those that are the anchor itself or of its own subject. Without a
    negative the loss is 0. Differentiable in all three. Raises ValueError where shapes do not fit.
    """
    n, m = v.shape[0], negatives.shape[0]
    fits = positives.shape[0] == n and positives.shape[-1] == negatives.shape[-1] == v.shape[-1]
    if not fits or (excluded is not None and tuple(excluded.shape) != (n, m)):
        raise ValueError(f"shapes differ: v {tuple(v.shape)}, positives {tuple(positives.shape)}, negatives ({m}, ...)")
    xp = array_namespace(v, positives, negatives)
    anchors = unit(v)
    near = xp.sum(anchors[:, None, :] * unit(positives), axis=-1) / tau
    if m == 0:
        return xp.sum(near * 0)
    far = anchors @ xp.matrix_transpose(unit(negatives)) / tau
    if excluded is not None:
        far = xp.where(excluded, xp.full_like(far, _NEVER), far)
    # -log P/(P+N) = log(1 + N/P)
    ratio = _log_sum_exp(far) - _log_sum_exp(near)
    return xp.mean(xp.logaddexp(xp.zeros_like(ratio), ratio))


def norm_penalty(v: Array) -> Array:
    """METHODS.md D4: ||v*||^2, the mean over the rows of `v` (n, d)."""
    xp = array_namespace(v)
    v = widen(v)
    return xp.mean(xp.sum(v * v, axis=-1))


def _log_sum_exp(x: Array) -> Array:
    xp = array_namespace(x)
    largest = xp.max(x, axis=-1, keepdims=True)
    return xp.log(xp.sum(xp.exp(x - largest), axis=-1)) + largest[..., 0]
