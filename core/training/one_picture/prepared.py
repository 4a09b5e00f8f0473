"""What a pretraining asks of its pictures again and again, computed once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...models.image_encoder import ImageEncoder, ImageFeatures
from ...models.protocol import TextToImageModel
from .pictures import PictureSource
from .square import square_picture

CACHE_BYTES = 4 * 2**30
"""What a process keeps of its pictures: with a large CLIP one takes a megabyte."""


class PreparedPictures:
    """Latents and CLIP features of pictures, computed once and kept while there is room."""

    def __init__(
        self, model: TextToImageModel, images: ImageEncoder, pictures: PictureSource, resolution: int, room: int
    ) -> None:
        self.model, self.images, self.pictures = model, images, pictures
        self.resolution, self.room = resolution, room
        self.kept: dict[int, tuple[torch.Tensor, ImageFeatures]] = {}
        self.bytes = 0

    @torch.no_grad()
    def __call__(self, rows: Sequence[int]) -> tuple[torch.Tensor, ImageFeatures]:
        """Latents (b, C, h, w) and features of the pictures `rows`, on the model's device."""
        missing = [row for row in dict.fromkeys(rows) if row not in self.kept]
        fresh = self._compute(missing) if missing else {}
        for row, value in fresh.items():
            latents, features = value
            size = sum(one.nbytes for one in (latents, features.vectors, features.grid))
            if len(self.kept) < self.room and self.bytes + size <= CACHE_BYTES:
                self.kept[row] = value
                self.bytes += size
        found = [self.kept[row] if row in self.kept else fresh[row] for row in rows]
        device = self.model.device
        features = ImageFeatures.cat([one for _, one in found])
        return torch.cat([latents for latents, _ in found]).to(device), features.to(device)

    def _compute(self, rows: Sequence[int]) -> dict[int, tuple[torch.Tensor, ImageFeatures]]:
        stack = torch.stack([square_picture(self.pictures.picture(row), self.resolution) for row in rows])
        latents = self.model.to_latents(stack.to(self.model.device) * 2 - 1).float().cpu()
        seen = self.images.features(stack.to(self.images.device))
        vectors, grid = seen.vectors.cpu(), seen.grid.cpu()
        # Cloned: a slice would keep the whole batch alive.
        return {
            row: (
                latents[i : i + 1].clone(),
                ImageFeatures(vectors[i : i + 1].clone(), grid[i : i + 1].clone()),
            )
            for i, row in enumerate(rows)
        }
