"""What every training minimises: a loss and the terms beside it, each with its weight."""

from __future__ import annotations

from collections.abc import Iterable

from .arrays import Array


def weighted_sum(terms: Iterable[tuple[float, Array]], start: Array | float = 0.0) -> Array:
    """METHODS.md C4, C6, D5 and 2.6: the sum of lambda_i L_i over `terms` (lambda_i, L_i), in their order, a scalar;
    L_diff is such a term. Without any it is `start`."""
    total = start
    for weight, loss in terms:
        total = total + weight * loss
    return total
