"""What a run looks at: the latents of its pictures, and how much each place of them counts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

KEPT = 6
"""Pictures whose latents a concept keeps."""


class LatentBank:
    """`latents` (pictures * versions, C, h, w), row `picture * versions + version`, on the model's device.

    `weights` (pictures * versions, 1, h, w) in [0, 1] are the loss weights of the same rows, None where all are 1.
    `digest` is a hash of pictures and masks; a checkpoint belongs to one, and to the settings that prepared them.
    """

    def __init__(
        self, latents: torch.Tensor, weights: torch.Tensor | None, pictures: int, versions: int, digest: str
    ) -> None:
        self._latents, self._weights = latents, weights
        self.pictures, self.versions, self.digest = pictures, versions, digest

    @property
    def latents(self) -> torch.Tensor:
        return self._latents

    @property
    def weights(self) -> torch.Tensor | None:
        return self._weights

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a row."""
        return tuple(self._latents.shape[1:])

    @property
    def complete(self) -> bool:
        """Whether every row is there."""
        return True

    def need(self, rows: Sequence[int]) -> None:
        """See that `rows` are there: `at` gives them from now on."""

    def at(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Latents and weights of rows that were needed; `rows` (B,) on the device."""
        return self._latents[rows], None if self._weights is None else self._weights[rows]

    def to(self, device: torch.device) -> LatentBank:
        """The same bank on `device`."""
        weights = None if self.weights is None else self.weights.to(device)
        return LatentBank(self.latents.to(device), weights, self.pictures, self.versions, self.digest)

    def kept_rows(self) -> Sequence[int]:
        """One version each of the first `KEPT` pictures."""
        return range(0, self.pictures * self.versions, self.versions)[:KEPT]

    def kept(self) -> torch.Tensor:
        """(k, C, h, w) latents of the first `KEPT` pictures, one version of each, for a concept to keep."""
        rows = self.kept_rows()
        self.need(rows)
        return self._latents[list(rows)].detach().to("cpu", torch.float32, copy=True)


def latent_bank(latents: torch.Tensor) -> LatentBank:
    """A bank of latents (k, C, h, w) that were kept, or drawn. Raises ValueError for another shape."""
    if latents.ndim != 4 or not len(latents):
        raise ValueError(f"latents (k, channels, height, width) are needed, got {tuple(latents.shape)}")
    digest = hashlib.blake2b(latents.cpu().float().contiguous().numpy().tobytes(), digest_size=8).hexdigest()
    return LatentBank(latents.float(), None, len(latents), 1, digest)
