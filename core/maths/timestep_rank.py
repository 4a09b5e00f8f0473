"""T-LoRA: how much of a low-rank change acts at a timestep (METHODS.md 6 no. 4; Soboleva et al., arXiv 2507.05964)."""

from __future__ import annotations

from array_api_compat import array_namespace, device

from .arrays import Array


def active_rank(timesteps: Array, steps: int, rank: int, least: int) -> Array:
    """r(t) = floor((r - r_min) (T - t) / T) + r_min for integer `timesteps` (B,) within [0, T): all of the rank without
    noise, `least` of it where there is most. Raises ValueError unless 1 <= least <= rank."""
    if not 1 <= least <= rank:
        raise ValueError(f"the least rank is within 1 .. {rank}, not {least}")
    return (rank - least) * (steps - timesteps) // steps + least


def rank_mask(timesteps: Array, steps: int, rank: int, least: int) -> Array:
    """(B, rank): true for the first r(t) directions of each sample's low-rank change."""
    xp = array_namespace(timesteps)
    directions = xp.arange(rank, device=device(timesteps))
    return directions[None, :] < active_rank(timesteps, steps, rank, least)[:, None]
