"""Training pictures, each version encoded when it is first drawn: latents and, where masks or rotated corners ask for
it, loss weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..files.shrinking import require_enough, resized, unit_range
from ..maths.masks import shows_something
from ..models.heap import give_back_freed_memory
from ..models.protocol import TextToImageModel
from .latent_bank import LatentBank
from .run.draws import generator_for, send
from .settings import Augmentation


class PictureBank(LatentBank):
    """A bank of pictures that are encoded when somebody `need`s them, never all before the first step.

    A row is what it is whenever it is encoded, and beside whatever else: `to_latents` looks at each picture alone.
    """

    def __init__(
        self,
        model: TextToImageModel,
        pictures: Sequence[torch.Tensor],
        masks: Sequence[torch.Tensor] | None,
        transparency: Sequence[torch.Tensor | None],
        resolution: int,
        augmentation: Augmentation | None,
        seed: int,
    ) -> None:
        versions = 1 if augmentation is None else augmentation.bank
        digest = _digest([*pictures, *(masks or []), *(one for one in transparency if one is not None)])
        side = resolution // model.latent_factor
        rows = len(pictures) * versions
        latents = torch.zeros((rows, model.latent_channels, side, side), device=model.device)
        weighed = masks is not None or (augmentation is not None and augmentation.rotation > 0)
        weights = torch.ones((rows, 1, side, side), device=model.device) if weighed else None
        super().__init__(latents, weights, len(pictures), versions, digest)
        self.model, self.resolution, self.augmentation, self.seed = model, resolution, augmentation, seed
        self._missing = set(range(rows))
        self._originals = list(zip(pictures, masks or [None] * len(pictures), transparency, strict=True))
        self._resized: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        if masks is not None:
            self._require_something()

    @property
    def complete(self) -> bool:
        return not self._missing

    @property
    def latents(self) -> torch.Tensor:
        self.need(range(self.pictures * self.versions))
        return self._latents

    @property
    def weights(self) -> torch.Tensor | None:
        if self._weights is not None:
            self.need(range(self.pictures * self.versions))
        return self._weights

    @torch.no_grad()
    def need(self, rows: Sequence[int]) -> None:
        missing = sorted(self._missing.intersection(rows))
        if not missing:
            return
        give_back_freed_memory()  # what a step needed and what an encoding needs are not held at once
        # Piece by piece: a bank of large pictures would be gigabytes before it is latents.
        for start in range(0, len(missing), ENCODE_BATCH):
            piece = missing[start : start + ENCODE_BATCH]
            pixels, covered = (torch.stack(column) for column in zip(*map(self._prepared, piece), strict=True))
            found = self.model.to_latents(send(pixels * 2 - 1, self.model.device))
            at = send(torch.tensor(piece), self.model.device)
            self._latents[at] = found.to(self.model.device, torch.float32)
            if self._weights is not None:
                self._weights[at] = send(self._share(covered), self.model.device)
            self._missing.difference_update(piece)
            self._let_go(piece)
        give_back_freed_memory()

    def _prepared(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A version (3, S, S) and its mask (1, S, S)."""
        small, covered = self._small(row // self.versions)
        return _prepare(small, covered, self.resolution, self.augmentation, self.seed, row)

    def _small(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A picture (3, H, W) whose short side is the resolution, and its mask (1, H, W)."""
        if number not in self._resized:
            picture, mask, clear = self._originals[number]
            small = resized(picture, self.resolution, clear)
            covered = torch.ones(1, *small.shape[1:])
            if mask is not None:
                covered = resized(mask[..., None].clamp(0, 1), self.resolution)
            self._resized[number] = small, covered
            self._originals[number] = (None, None, None)
        return self._resized[number]

    def _share(self, covered: torch.Tensor) -> torch.Tensor:
        """(B, 1, S, S) -> (B, 1, h, w), the covered share of each latent cell."""
        return F.interpolate(covered, size=self._latents.shape[-2:], mode="area")

    def _let_go(self, rows: Sequence[int]) -> None:
        """Pictures all of whose versions are latents now."""
        for number in {row // self.versions for row in rows}:
            own = range(number * self.versions, (number + 1) * self.versions)
            if self._missing.isdisjoint(own):
                self._resized.pop(number, None)

    def _require_something(self) -> None:
        """Raises ValueError where no version of a picture holds anything that counts."""
        for number in range(self.pictures):
            rows = range(number * self.versions, (number + 1) * self.versions)
            if not any(bool((self._share(self._prepared(row)[1][None]) > 0).any()) for row in rows):
                raise ValueError(
                    f"what mask {number + 1} shows lies outside the square that is cut from its picture, which would "
                    "teach nothing: crop the picture so that it lies in the middle"
                )


ENCODE_BATCH = 4
"""Pictures that are prepared at once, so that they never set the peak of memory."""


def encode_pictures(
    model: TextToImageModel,
    images: torch.Tensor | Sequence[torch.Tensor],
    masks: torch.Tensor | Sequence[torch.Tensor] | None,
    *,
    resolution: int,
    augmentation: Augmentation | None,
    seed: int,
    transparency: torch.Tensor | Sequence[torch.Tensor] | None = None,
) -> PictureBank:
    """Check the pictures; the bank prepares, augments and encodes them. `images` are (H, W, 3) in [0, 1] each, of any
    sizes; `masks` (H, W), 1 counts.

    Without augmentation the short side is resized to `resolution` and the middle square cropped. Where `transparency`
    (H, W) is 1 a picture is white. The latents are the mean of the autoencoder's posterior where it has one. What came
    in is looked at one picture at a time and never copied whole. Raises ValueError for shapes or values that do not
    fit.
    """
    pictures = checked_pictures(images)
    coverage = None if masks is None else _checked_masks(masks, pictures)
    clear = _checked_transparency(transparency, pictures)
    return PictureBank(model, pictures, coverage, clear, resolution, augmentation, seed)


def checked_pictures(images: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Single pictures (H, W, 3), as they lie in (N, H, W, 3), (H, W, 3) or a sequence of either.

    Raises ValueError where there are none, or one has another shape, too few pixels or values outside [0, 1].
    """
    pictures = [picture for value in images for picture in (value if value.ndim == 4 else [value])]
    if isinstance(images, torch.Tensor) and images.ndim == 3:
        pictures = [images]
    if not pictures:
        raise ValueError("at least one training picture is needed")
    for number, picture in enumerate(pictures, 1):
        if picture.ndim != 3 or picture.shape[-1] != 3 or 0 in picture.shape:
            raise ValueError(f"picture {number} must be (height, width, 3), got {tuple(picture.shape)}")
        require_enough(*picture.shape[:2], f"picture {number}")
        low, high = (float(bound) for bound in picture.aminmax())
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise ValueError(f"picture {number} must have values in 0 .. 1, got {low:.3g} .. {high:.3g}")
    return pictures


def _checked_masks(
    masks: torch.Tensor | Sequence[torch.Tensor], pictures: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    singles = _single_masks(masks, pictures)
    for number, (mask, picture) in enumerate(zip(singles, pictures, strict=True), 1):
        _require_fitting(number, mask, picture)
        if not shows_something(mask):
            raise ValueError(f"mask {number} is empty: it leaves nothing of its picture to learn from; is it inverted?")
    return singles


def _checked_transparency(
    masks: torch.Tensor | Sequence[torch.Tensor] | None, pictures: Sequence[torch.Tensor]
) -> Sequence[torch.Tensor | None]:
    """A mask for each picture; None where nothing is transparent, of whatever size a loader says that."""
    if masks is None:
        return [None] * len(pictures)
    singles = [mask if shows_something(mask) else None for mask in _single_masks(masks, pictures)]
    for number, (mask, picture) in enumerate(zip(singles, pictures, strict=True), 1):
        if mask is not None:
            _require_fitting(number, mask, picture)
    return singles


def _single_masks(masks: torch.Tensor | Sequence[torch.Tensor], pictures: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    singles = [mask for value in masks for mask in (value if value.ndim == 3 else [value])]
    if isinstance(masks, torch.Tensor) and masks.ndim == 2:
        singles = [masks]
    if len(singles) != len(pictures):
        raise ValueError(
            f"{len(pictures)} pictures need as many masks, got {len(singles)}: one for each, in the same order"
        )
    return singles


def _require_fitting(number: int, mask: torch.Tensor, picture: torch.Tensor) -> None:
    if mask.shape != picture.shape[:2]:
        (tall, wide), (height, width) = mask.shape, picture.shape[:2]
        raise ValueError(
            f"mask {number} is {wide} x {tall} pixels and its picture {width} x {height}: resize one. Where a file "
            "has no transparency a loader may give an empty mask of another size: go without"
        )


def _prepare(
    picture: torch.Tensor,
    mask: torch.Tensor,
    size: int,
    augmentation: Augmentation | None,
    seed: int,
    version: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture (3, H, W) whose short side is `size` as (3, size, size), and its mask (1, H, W) as (1, size, size)."""
    if augmentation is None:
        return _middle(picture, size), _middle(mask, size)
    chance = torch.rand(5, generator=generator_for(seed, "augmentation", version)).tolist()
    angle = math.radians(augmentation.rotation) * (2 * chance[1] - 1) if chance[0] < augmentation.rotate else 0.0
    crop = (chance[3], chance[4]) if augmentation.random_crop else (0.5, 0.5)
    grid = _augmenting_grid(tuple(picture.shape[1:]), size, angle, chance[2] < augmentation.flip, crop)
    turned = F.grid_sample(picture[None], grid, padding_mode="reflection", align_corners=False)[0]
    covered = F.grid_sample(mask[None], grid, padding_mode="zeros", align_corners=False)[0]
    return turned, covered


def _augmenting_grid(
    shape: tuple[int, int], size: int, angle: float, flip: bool, crop: tuple[float, float]
) -> torch.Tensor:
    """Where each pixel of the (size, size) result comes from, as `grid_sample` wants it: (1, size, size, 2).

    The picture of `shape` (h, w) is rotated by `angle` onto a canvas that holds all of it, the canvas's short side
    scaled to `size`, and a square cut out at `crop`, the share of the free way in y and x.
    """
    h, w = shape
    cos, sin = math.cos(angle), math.sin(angle)
    canvas_h, canvas_w = w * abs(sin) + h * abs(cos), w * abs(cos) + h * abs(sin)
    scale = size / min(canvas_h, canvas_w)
    # Whole pixels: an unrotated crop then copies pixels instead of blurring between them.
    top = round(crop[0] * (canvas_h * scale - size))
    left = round(crop[1] * (canvas_w * scale - size))
    pixels = torch.arange(size, dtype=torch.float64) + 0.5
    y = (pixels + top) / scale - canvas_h / 2
    x = ((pixels.flip(0) if flip else pixels) + left) / scale - canvas_w / 2
    y, x = torch.meshgrid(y, x, indexing="ij")
    source_x, source_y = cos * x + sin * y, -sin * x + cos * y
    return torch.stack([2 * source_x / w, 2 * source_y / h], dim=-1)[None].float()


def _middle(picture: torch.Tensor, size: int) -> torch.Tensor:
    top, left = ((side - size) // 2 for side in picture.shape[1:])
    return picture[:, top : top + size, left : left + size]


def _digest(values: Sequence[torch.Tensor]) -> str:
    """Of pictures (H, W, 3) and masks (H, W), colour by colour."""
    digest = hashlib.blake2b(digest_size=8)
    for value in values:
        planes = value.detach()[..., None] if value.ndim == 2 else value.detach()
        digest.update(str((planes.shape[-1], *planes.shape[:2])).encode())
        for colour in range(planes.shape[-1]):
            digest.update(unit_range(planes[..., colour]).contiguous().numpy())
    return digest.hexdigest()
