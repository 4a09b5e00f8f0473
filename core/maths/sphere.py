"""Words that are directions: the update of Directional Textual Inversion (METHODS.md 5.1), and the way between two.

A word's row is e = m v with a length m that stays and a direction v on the unit sphere. Rows are (..., d).
"""

from __future__ import annotations

from array_api_compat import array_namespace

from .arrays import Array, require_same_shape, widen
from .norms import row_norms, tangent
from .similarity import unit

KAPPA = 1e-4
"""DTI's pull to the class direction, the concentration of a von Mises-Fisher prior."""


def posterior_gradient(gradient: Array, e: Array, toward: Array, kappa: float) -> Array:
    """METHODS.md 5.1: m dL/de - kappa mu, the gradient in v of L - kappa <mu, v>; `gradient` is dL/de, and mu the
    direction of `toward`. Raises ValueError where shapes differ."""
    require_same_shape(gradient=gradient, e=e, toward=toward)
    return row_norms(e) * widen(gradient) - kappa * unit(toward)


def steepest(gradient: Array, e: Array) -> Array:
    """METHODS.md 5.1: the gradient's part along the sphere at `e`, as long as 1; 0 where it has none."""
    return unit(tangent(gradient, e))


def stepped(e: Array, direction: Array, rate: Array | float) -> Array:
    """METHODS.md 5.1: m (v - rate g), before it is brought back to the sphere: for a direction of length 1 along the
    sphere an angle of arctan(rate)."""
    xp = array_namespace(e, direction)
    return xp.astype(widen(e) - rate * row_norms(e) * direction, e.dtype, copy=False)


def dti_step(e: Array, gradient: Array, toward: Array, *, rate: Array | float, kappa: float = KAPPA) -> Array:
    """One step of Riemannian SGD down `gradient` (dL/de) and to the direction of `toward`, before the retraction."""
    return stepped(e, steepest(posterior_gradient(gradient, e, toward, kappa), e), rate)


def slerp(a: Array, b: Array, share: float) -> Array:
    """The way from `a` (share 0) to `b` (share 1) along the great circle, row by row; lengths go evenly from one to the
    other. Raises ValueError where shapes differ, or where a row of one points away from the other's: there is no
    shortest way then."""
    require_same_shape(a=a, b=b)
    xp = array_namespace(a, b)
    one, other = unit(a), unit(b)
    # From chords, which keep their digits where the directions nearly agree or nearly oppose each other.
    apart = 2 * xp.atan2(row_norms(one - other), row_norms(one + other))
    if bool(xp.any(xp.pi - apart < 1e-3)):
        raise ValueError("two words that point away from each other have no shortest way between them")
    near = apart < 1e-6
    whole = xp.sin(xp.where(near, xp.ones_like(apart), apart))
    first = xp.where(near, xp.full_like(apart, 1 - share), xp.sin((1 - share) * apart) / whole)
    second = xp.where(near, xp.full_like(apart, share), xp.sin(share * apart) / whole)
    length = (1 - share) * row_norms(a) + share * row_norms(b)
    return xp.astype(length * unit(first * one + second * other), a.dtype, copy=False)
