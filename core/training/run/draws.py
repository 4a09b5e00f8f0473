"""Every random number of a run is a pure function of the seed, the step and who asks.

So adding a regularizer changes nobody else's numbers, their order in a list means nothing, a resume repeats them with
no state to restore, and a GPU draws what a CPU draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...models.protocol import NoiseSchedule


def generator_for(seed: int, stream: str, step: int) -> torch.Generator:
    """A CPU generator of its own for one `stream` ("noise", a regularizer's name, ...) at one `step`."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{step}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))  # mt19937 takes 32 bits of a seed


def sample_order(seed: int, step: int, batch: int, pictures: int) -> list[int]:
    """Which pictures a step sees: the next `batch` of an endless row of shuffled passes over all `pictures`."""
    order: list[int] = []
    place = step * batch
    while len(order) < batch:
        epoch, start = divmod(place + len(order), pictures)
        shuffled = torch.randperm(pictures, generator=generator_for(seed, "order", epoch)).tolist()
        order += shuffled[start : start + batch - len(order)]
    return order


def drawn_rows(seed: int, step: int, batch: int, pictures: int, versions: int) -> list[int]:
    """Which rows of a bank with so many `versions` of each picture a step sees."""
    order = torch.tensor(sample_order(seed, step, batch, pictures))
    version = torch.randint(versions, (batch,), generator=generator_for(seed, "version", step))
    return (order * versions + version).tolist()


@dataclass(frozen=True)
class Draws:
    """The random choices of one step: rows of the latent bank, timesteps (B,), noise (B, C, h, w), prompt numbers."""

    rows: torch.Tensor
    timesteps: torch.Tensor
    noise: torch.Tensor
    templates: tuple[int, ...]


def draw_step(
    seed: int,
    step: int,
    *,
    batch: int,
    pictures: int,
    versions: int,
    shape: tuple[int, int, int],
    timesteps: int,
    templates: int,
    device: torch.device,
    first_timestep: int = 0,
    own: Sequence[range] = (),
) -> Draws:
    """Draw what `step` needs: one of the `versions` of each picture, `timesteps` different t from `first_timestep` on,
    noise ~ N(0, I), one of so many `templates`, or of the prompts that are each picture's `own`."""
    rows = torch.tensor(drawn_rows(seed, step, batch, pictures, versions))
    t = first_timestep + torch.randint(timesteps, (batch,), generator=generator_for(seed, "timesteps", step))
    noise = torch.randn((batch, *shape), generator=generator_for(seed, "noise", step))
    which = torch.randint(templates, (batch,), generator=generator_for(seed, "templates", step))
    return Draws(
        rows=send(rows, device),
        timesteps=send(t, device),
        noise=send(noise, device),
        templates=tuple(which.tolist()) if not own else _of_their_own(seed, step, (rows // versions).tolist(), own),
    )


def _of_their_own(seed: int, step: int, pictures: Sequence[int], own: Sequence[range]) -> tuple[int, ...]:
    """For each of the `pictures` one of the prompts that are its own."""
    chance = torch.rand(len(pictures), generator=generator_for(seed, "captions", step), dtype=torch.float64).tolist()
    return tuple(own[picture][int(share * len(own[picture]))] for picture, share in zip(pictures, chance, strict=True))


def alpha_bar_on(schedule: NoiseSchedule, device: torch.device) -> torch.Tensor:
    """alpha-bar (T,) on `device`, as exact as it can be there: Apple's have no float64."""
    return schedule.alpha_bar.to(device, torch.float32 if device.type == "mps" else torch.float64)


def send(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`values` on `device` without waiting for what it is computing: CUDA copies from pinned memory behind our back."""
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
