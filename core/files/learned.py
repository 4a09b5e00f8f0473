"""Did training teach anything, and does the file hold it? Saving the initial word must not look like success."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .errors import LearnedNothingError

# A vector that only weight decay touched stays parallel to itself up to float32 rounding (about 1e-7); one that a
# gradient moved does not.
PARALLEL = 1e-6


def check_learned(
    before: Mapping[str, torch.Tensor],
    after: Mapping[str, torch.Tensor],
    read_back: Mapping[str, torch.Tensor] | None = None,
    *,
    stored: torch.dtype = torch.float32,
) -> None:
    """Check that every trained vector (n, d) of every text encoder moved, and that the file read back holds it.

    `read_back` is compared bit for bit with `after` rounded to the type in which it was `stored`.

    Raises:
        LearnedNothingError: says which vector of which encoder did not move, moved in length only (weight decay without
            a gradient), is not finite, or was not what the file holds.
    """
    if set(before) != set(after):
        raise LearnedNothingError(f"trained {sorted(before)} but got {sorted(after)} back")
    for encoder, value in after.items():
        _check_moved(encoder, before[encoder], value)
    if read_back is None:
        return
    for encoder, value in after.items():
        expected = value.detach().cpu().to(stored).float()
        found = read_back.get(encoder)
        if found is None or found.shape != expected.shape or not torch.equal(found.cpu().float(), expected):
            raise LearnedNothingError(f"the file read back does not hold the learned vectors of {encoder}")


def _check_moved(encoder: str, before: torch.Tensor, after: torch.Tensor) -> None:
    old, new = before.detach().cpu().double(), after.detach().cpu().double()
    if old.shape != new.shape:
        raise LearnedNothingError(f"{encoder}: {tuple(old.shape)} vectors became {tuple(new.shape)}")
    if not bool(torch.isfinite(new).all()):
        raise LearnedNothingError(f"{encoder}: the learned vectors are not finite")
    for row, (start, end) in enumerate(zip(old, new, strict=True)):
        if torch.equal(start, end):
            raise LearnedNothingError(f"{encoder}: vector {row} is the initial one; no step changed it")
        aligned = start * (start @ end) / (start @ start).clamp_min(1e-300)
        if bool((end - aligned).norm() <= PARALLEL * end.norm()):
            raise LearnedNothingError(
                f"{encoder}: vector {row} changed in length only; no gradient reached it (weight decay alone does this)"
            )
