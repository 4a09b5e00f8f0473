"""The noise schedule, the forward process, the prediction targets and the diffusion loss (C1).

`alpha_bar_t` is the signal power alpha-bar at the timestep of each sample, shape (B,) or (). Latents are (B, ...).
Prediction types carry the names that diffusers gives them: "epsilon", "v_prediction", "sample" (the clean latents z_0);
"flow" is the velocity of flow matching (Lipman et al., 2023; Esser et al., 2024).

Flow matching mixes x = (1 - sigma) z_0 + sigma noise. That is z_t / (sqrt(alpha-bar) + sqrt(1 - alpha-bar)) for the
alpha-bar with sqrt(alpha-bar) : sqrt(1 - alpha-bar) = 1 - sigma : sigma, so all functions here speak of z_t for it too.
Everything is computed in float32 at least and returned in the dtype of the latents; losses stay in the wide dtype.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from array_api_compat import array_namespace

from .arrays import Array, mean, per_sample, require_same_shape, take, widen

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow"]


def scaled_linear_betas(steps: int = 1000, start: float = 0.00085, end: float = 0.012, *, xp: Any = np) -> Array:
    """Betas whose square roots are equally spaced (Stable Diffusion 1.x, 2.x and XL), shape (steps,)."""
    return xp.linspace(start**0.5, end**0.5, steps, **_widest(xp)) ** 2


def _widest(xp: Any) -> dict[str, Any]:
    return {"dtype": np.float64} if xp is np else {}


def alpha_bar(betas: Array) -> Array:
    """alpha-bar_t = prod_{s <= t} (1 - beta_s): the share of signal power left at timestep t, shape (T,)."""
    xp = array_namespace(betas)
    return xp.exp(xp.cumulative_sum(xp.log1p(-betas)))


def at_timesteps(alpha_bar: Array, t: Array) -> Array:
    """alpha-bar at integer timesteps `t` (B,) -> (B,)."""
    return take(alpha_bar, t, axis=0)


def snr(alpha_bar_t: Array) -> Array:
    """Signal-to-noise ratio, alpha-bar / (1 - alpha-bar)."""
    return alpha_bar_t / (1 - alpha_bar_t)


def alpha_bar_of_sigma(sigma: Array) -> Array:
    """alpha-bar of flow matching's sigma in [0, 1]: (1 - sigma)^2 / ((1 - sigma)^2 + sigma^2), shape of `sigma`."""
    signal, spread = (1 - sigma) ** 2, sigma**2
    return signal / (signal + spread)


def flow_latents(z_t: Array, alpha_bar_t: Array) -> Array:
    """x = (1 - sigma) z_0 + sigma noise, what a flow matching model is shown, of z_t: shape of `z_t`."""
    signal, spread = _coefficients(alpha_bar_t, z_t)
    return _in_dtype_of(z_t, widen(z_t) / (signal + spread))


def add_noise(z_0: Array, noise: Array, alpha_bar_t: Array) -> Array:
    """The forward process q(z_t | z_0): z_t = sqrt(alpha-bar) z_0 + sqrt(1 - alpha-bar) noise, shape of `z_0`."""
    require_same_shape(z_0=z_0, noise=noise)
    signal, spread = _coefficients(alpha_bar_t, z_0)
    return _in_dtype_of(z_0, signal * widen(z_0) + spread * widen(noise))


def velocity(z_0: Array, noise: Array, alpha_bar_t: Array) -> Array:
    """v = sqrt(alpha-bar) noise - sqrt(1 - alpha-bar) z_0 (Salimans and Ho, 2022), shape of `z_0`."""
    require_same_shape(z_0=z_0, noise=noise)
    signal, spread = _coefficients(alpha_bar_t, z_0)
    return _in_dtype_of(z_0, signal * widen(noise) - spread * widen(z_0))


def prediction_target(kind: PredictionType, z_0: Array, noise: Array, alpha_bar_t: Array) -> Array:
    """What the network is asked for: the noise, v, z_0, or for "flow" noise - z_0 (d x / d sigma). Raises ValueError
    for another `kind`."""
    _require_kind(kind)
    if kind == "flow":
        return noise - z_0
    if kind == "v_prediction":
        return velocity(z_0, noise, alpha_bar_t)
    return noise if kind == "epsilon" else z_0


def predicted_sample(kind: PredictionType, prediction: Array, z_t: Array, alpha_bar_t: Array) -> Array:
    """z_0 from a prediction of any kind at z_t:
    (z_t - sqrt(1 - alpha-bar) eps) / sqrt(alpha-bar), or sqrt(alpha-bar) z_t - sqrt(1 - alpha-bar) v, or for "flow"
    (z_t - sqrt(1 - alpha-bar) v) / (sqrt(alpha-bar) + sqrt(1 - alpha-bar)), which is x - sigma v."""
    _require_kind(kind)
    require_same_shape(prediction=prediction, z_t=z_t)
    if kind == "sample":
        return prediction
    signal, spread = _coefficients(alpha_bar_t, z_t)
    if kind == "epsilon":
        return _in_dtype_of(z_t, (widen(z_t) - spread * widen(prediction)) / signal)
    if kind == "flow":
        return _in_dtype_of(z_t, (widen(z_t) - spread * widen(prediction)) / (signal + spread))
    return _in_dtype_of(z_t, signal * widen(z_t) - spread * widen(prediction))


def predicted_noise(kind: PredictionType, prediction: Array, z_t: Array, alpha_bar_t: Array) -> Array:
    """eps from a prediction of any kind at z_t:
    (z_t - sqrt(alpha-bar) z_0) / sqrt(1 - alpha-bar), or sqrt(alpha-bar) v + sqrt(1 - alpha-bar) z_t, or for "flow"
    (z_t + sqrt(alpha-bar) v) / (sqrt(alpha-bar) + sqrt(1 - alpha-bar))."""
    _require_kind(kind)
    require_same_shape(prediction=prediction, z_t=z_t)
    if kind == "epsilon":
        return prediction
    signal, spread = _coefficients(alpha_bar_t, z_t)
    if kind == "sample":
        return _in_dtype_of(z_t, (widen(z_t) - signal * widen(prediction)) / spread)
    if kind == "flow":
        return _in_dtype_of(z_t, (widen(z_t) + signal * widen(prediction)) / (signal + spread))
    return _in_dtype_of(z_t, signal * widen(prediction) + spread * widen(z_t))


def min_snr_weight(kind: PredictionType, alpha_bar_t: Array, gamma: float = 5.0) -> Array:
    """Min-SNR-gamma (Hang et al., 2023), shape of `alpha_bar_t`: the loss on z_0 weighs min(snr, gamma); the error in
    eps is sqrt(snr), the error in v sqrt(snr + 1) and the error in "flow" 1 / sigma = 1 + sqrt(snr) times that in z_0,
    hence the divisors."""
    _require_kind(kind)
    xp = array_namespace(alpha_bar_t)
    ratio = snr(alpha_bar_t)
    clipped = xp.clip(ratio, max=gamma)
    divisors = {"epsilon": ratio, "v_prediction": ratio + 1, "sample": 1, "flow": (1 + xp.sqrt(ratio)) ** 2}
    return clipped / divisors[kind]


def diffusion_loss(
    prediction: Array, target: Array, *, weight_map: Array | None = None, sample_weight: Array | None = None
) -> Array:
    """METHODS.md C1: the squared error averaged over all elements, a scalar in float32 or wider.

    `weight_map` broadcasts to (B, ...), e.g. a mask (B, 1, H, W); each sample's error is its weighted *mean*, so a
    small mask does not make a small loss; a sample whose weights are all zero counts as 0. `sample_weight` (B,)
    multiplies each sample's error before the plain mean over the batch (min-SNR).
    Raises ValueError where shapes differ.
    """
    require_same_shape(prediction=prediction, target=target)
    error = (widen(prediction) - widen(target)) ** 2
    if weight_map is None and sample_weight is None:
        return mean(error)
    inner = tuple(range(1, error.ndim))
    errors = mean(error, axis=inner) if weight_map is None else _weighted_mean(error, weight_map, inner)
    return mean(errors if sample_weight is None else errors * per_sample(sample_weight, errors))


def _weighted_mean(x: Array, weights: Array, axes: tuple[int, ...]) -> Array:
    xp = array_namespace(x, weights)
    if weights.ndim != x.ndim or any(w not in (1, n) for w, n in zip(weights.shape, x.shape, strict=True)):
        raise ValueError(f"weight_map {tuple(weights.shape)} does not broadcast over {tuple(x.shape)}")
    weights = xp.broadcast_to(xp.astype(weights, x.dtype, copy=False), x.shape)
    total = xp.sum(weights, axis=axes)
    return xp.sum(x * weights, axis=axes) / xp.where(total == 0, xp.ones_like(total), total)


def _coefficients(alpha_bar_t: Array, like: Array) -> tuple[Array, Array]:
    """sqrt(alpha-bar) and sqrt(1 - alpha-bar), ready to multiply `like`."""
    xp = array_namespace(alpha_bar_t, like)
    power = widen(alpha_bar_t)  # roots before any narrowing: 1 - alpha-bar loses digits near t = 0
    return per_sample(xp.sqrt(power), like), per_sample(xp.sqrt(1 - power), like)


def _in_dtype_of(like: Array, x: Array) -> Array:
    return array_namespace(x).astype(x, like.dtype, copy=False)


def _require_kind(kind: str) -> None:
    if kind not in get_args(PredictionType):
        raise ValueError(f"unknown prediction type {kind!r}: expected one of {', '.join(get_args(PredictionType))}")
