"""Two paths through one attention layer (METHODS.md 3.6)."""

from __future__ import annotations

from .arrays import Array, require_same_shape

ALPHA = 0.5


def blend(soft: Array, hard: Array, alpha: float) -> Array:
    """METHODS.md D6, D7: alpha * soft + (1 - alpha) * hard of two outputs of one attention layer.

    Exactly `hard` at 0 and `soft` at 1. Raises ValueError where shapes differ or `alpha` lies outside [0, 1].
    """
    require_same_shape(soft=soft, hard=hard)
    check_alpha(alpha)
    if alpha in (0, 1):
        return soft if alpha else hard
    return alpha * soft + (1 - alpha) * hard


def check_alpha(alpha: float) -> None:
    """Raises ValueError unless 0 <= alpha <= 1."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is between 0 (the hard path alone) and 1 (the soft path alone), not {alpha}")
