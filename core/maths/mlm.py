"""MLM: may the context still be guessed when the concept stands in it? Masking, cross-entropy and the two losses.

Random numbers come in as arguments, so every function here is pure: the same draws mask the same tokens on any library.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from array_api_compat import array_namespace

from .arrays import Array, accumulation_dtype, require_same_shape, widen
from .defaults import RHO

LAMBDA_MLM = 1e-4
MASKED_WEIGHT = 5.0
IGNORED = -100
"""The label of a position that is not to be guessed."""


def maskable_positions(ids: Sequence[int] | np.ndarray, eot: int, protected: Sequence[int] = ()) -> np.ndarray:
    """METHODS.md M3: which positions of one row of token `ids` (L,), BOS first, may be masked; bool (L,).

    Everything between BOS and the first `eot`, without `protected`: the positions of the concept's vectors and of the
    class word beside it. Raises ValueError where the row has no `eot` or a protected position lies outside the row.
    """
    ids, protected = np.asarray(ids), np.asarray(protected, dtype=np.int64)
    ends = np.flatnonzero(ids == eot)
    if ids.ndim != 1 or ends.size == 0:
        raise ValueError(f"one row of token ids that holds EOT ({eot}) expected, got shape {ids.shape}")
    if protected.size and not 0 <= protected.min() <= protected.max() < ids.size:
        raise ValueError(f"protected positions {protected.tolist()} lie outside a row of {ids.size}")
    allowed = np.arange(ids.size) < ends[0]
    allowed[0] = False
    allowed[protected] = False
    return allowed


def draw_mask(uniform: Array, maskable: Array, rho: float = RHO) -> Array:
    """METHODS.md M3: mask every maskable token independently with probability `rho`; bool, the shape of `uniform`.

    `uniform` holds numbers in [0, 1), one a token. A larger `rho` masks all that a smaller one does.
    Raises ValueError where shapes differ or `rho` is no probability.
    """
    if not 0 <= rho <= 1:
        raise ValueError(f"the mask rate is a probability, not {rho}")
    require_same_shape(uniform=uniform, maskable=maskable)
    return (uniform < rho) & maskable


def cross_entropy(logits: Array, targets: Array) -> Array:
    """-log softmax(logits)[target] of each position: `logits` (..., C), integer `targets` (...), float32 or wider.

    A negative target (`IGNORED`) costs 0 and sends no gradient. Raises ValueError where the leading shapes differ.
    """
    if tuple(logits.shape[:-1]) != tuple(targets.shape):
        raise ValueError(f"one target a position expected: {tuple(logits.shape)} and {tuple(targets.shape)}")
    xp = array_namespace(logits, targets)
    counted = targets >= 0
    # Everything is measured from the target's logit, so large logits cost no digits, and never overflows.
    chosen = xp.where(counted, targets, xp.zeros_like(targets))
    logits = widen(logits)
    logits = logits - xp.take_along_axis(logits, chosen[..., None], axis=-1)
    largest = xp.max(logits, axis=-1, keepdims=True)
    entropy = xp.log(xp.sum(xp.exp(logits - largest), axis=-1)) + largest[..., 0]
    return xp.where(counted, entropy, xp.zeros_like(entropy))


def non_padding_loss(entropy: Array, masked: Array, positions: int, weight: float = MASKED_WEIGHT) -> Array:
    """METHODS.md M4: the sum of w_i CE_i divided by all `positions` (B L, padding included); a scalar.

    `entropy` and `masked` have one entry for each position that counts: BOS, every token, EOT. w is `weight` where
    masked and 1 elsewhere; padding weighs 0, so it may be left out of both. Raises ValueError where shapes differ.
    """
    require_same_shape(entropy=entropy, masked=masked)
    if positions < 1:
        raise ValueError(f"the loss is a mean over at least one position, not {positions}")
    xp = array_namespace(entropy, masked)
    entropy = widen(entropy)
    return xp.sum(xp.where(masked, weight * entropy, entropy)) / positions


def masked_loss(entropy: Array, masked: Array | None = None, count: Array | None = None) -> Array:
    """METHODS.md M5: the mean of CE over the masked positions alone; a scalar, 0 with gradient 0 where none is masked.

    `masked` (bool, like `entropy`) says which are; None: all. `count` divides instead of their number: several
    processes pass the number of masked positions of the whole batch. Raises ValueError where shapes differ.
    """
    xp = array_namespace(entropy)
    entropy = widen(entropy)
    if masked is None:
        masked = xp.ones_like(entropy, dtype=xp.bool)
    require_same_shape(entropy=entropy, masked=masked)
    if count is None:
        count = xp.sum(xp.astype(masked, accumulation_dtype(entropy)))
    total = xp.sum(xp.where(masked, entropy, xp.zeros_like(entropy)))
    return total / xp.where(count > 0, count, xp.ones_like(count))


def masked_accuracy(logits: Array, targets: Array) -> Array:
    """The share of `targets` (...), those not `IGNORED`, whose logit (..., C) is the largest; 0 where there is none."""
    xp = array_namespace(logits, targets)
    dtype = accumulation_dtype(logits)
    right = xp.argmax(logits, axis=-1) == targets
    count = xp.sum(xp.astype(targets >= 0, dtype))
    return xp.sum(xp.astype(right, dtype)) / xp.where(count > 0, count, xp.ones_like(count))
