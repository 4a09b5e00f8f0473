"""Training pictures, encoded once: a bank of latents and, where masks or rotated corners ask for it, loss weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange

from ..maths.masks import shows_something
from ..models.protocol import TextToImageModel
from .run.draws import generator_for
from .settings import Augmentation

ENCODE_BATCH = 4
"""Pictures the autoencoder takes at once: a bank is encoded in pieces so that it never sets the peak of memory."""

KEPT = 6
"""Pictures whose latents a concept keeps."""


@dataclass(frozen=True)
class LatentBank:
    """`latents` (pictures * versions, C, h, w), row `picture * versions + version`, on the model's device.

    `weights` (pictures * versions, 1, h, w) in [0, 1] are the loss weights of the same rows, None where all are 1.
    """

    latents: torch.Tensor
    weights: torch.Tensor | None
    pictures: int
    versions: int
    digest: str
    """Hash of pictures and masks; a checkpoint belongs to one, and to the settings that prepared them."""

    def to(self, device: torch.device) -> LatentBank:
        """The same bank on `device`."""
        weights = None if self.weights is None else self.weights.to(device)
        return replace(self, latents=self.latents.to(device), weights=weights)

    def kept(self) -> torch.Tensor:
        """(k, C, h, w) latents of the first `KEPT` pictures, one version of each, for a concept to keep."""
        return self.latents[:: self.versions][:KEPT].detach().to("cpu", torch.float32, copy=True)


def latent_bank(latents: torch.Tensor) -> LatentBank:
    """A bank of latents (k, C, h, w) that were kept, or drawn. Raises ValueError for another shape."""
    if latents.ndim != 4 or not len(latents):
        raise ValueError(f"latents (k, channels, height, width) are needed, got {tuple(latents.shape)}")
    digest = hashlib.blake2b(latents.cpu().float().contiguous().numpy().tobytes(), digest_size=8).hexdigest()
    return LatentBank(latents.float(), None, len(latents), 1, digest)


def encode_pictures(
    model: TextToImageModel,
    images: torch.Tensor | Sequence[torch.Tensor],
    masks: torch.Tensor | Sequence[torch.Tensor] | None,
    *,
    resolution: int,
    augmentation: Augmentation | None,
    seed: int,
) -> LatentBank:
    """Prepare, augment and encode. `images` are (H, W, 3) in [0, 1] each, of any sizes; `masks` (H, W), 1 counts.

    Without augmentation the short side is resized to `resolution` and the middle square cropped. The latents are the
    mean of the autoencoder's posterior where it has one. Raises ValueError for shapes or values that do not fit.
    """
    pictures = checked_pictures(images)
    coverage = _checked_masks(masks, pictures)
    versions = 1 if augmentation is None else augmentation.bank
    weighed = masks is not None or (augmentation is not None and augmentation.rotation > 0)
    parts, shares = [], []
    # Piece by piece: a bank of large pictures would be gigabytes before it is latents.
    for start in range(0, len(pictures) * versions, ENCODE_BATCH):
        prepared = [
            _prepare(pictures[row // versions], coverage[row // versions], resolution, augmentation, seed, row)
            for row in range(start, min(start + ENCODE_BATCH, len(pictures) * versions))
        ]
        piece, covered = (torch.stack(column) for column in zip(*prepared, strict=True))
        parts.append(model.to_latents(piece.to(model.device) * 2 - 1).to(model.device, torch.float32))
        if weighed:
            shares.append(F.interpolate(covered, size=parts[-1].shape[-2:], mode="area"))
    latents = torch.cat(parts)
    weights = torch.cat(shares) if weighed else None
    if weights is not None:
        _require_something(rearrange(weights, "(pictures versions) ... -> pictures versions ...", versions=versions))
        weights = weights.to(model.device)
    digest = _digest([*pictures, *(coverage if masks is not None else [])])
    # Cloned: what came out of a model loaded in inference mode may not be kept for a backward pass.
    return LatentBank(latents.clone(), weights, len(pictures), versions, digest)


def checked_pictures(images: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Single (3, H, W) float32 pictures on the CPU, from (N, H, W, 3), (H, W, 3) or a sequence of either.

    Raises ValueError where there are none, or one has another shape or values outside [0, 1].
    """
    pictures = [picture for value in images for picture in (value if value.ndim == 4 else [value])]
    if isinstance(images, torch.Tensor) and images.ndim == 3:
        pictures = [images]
    if not pictures:
        raise ValueError("at least one training picture is needed")
    for number, picture in enumerate(pictures, 1):
        if picture.ndim != 3 or picture.shape[-1] != 3 or 0 in picture.shape:
            raise ValueError(f"picture {number} must be (height, width, 3), got {tuple(picture.shape)}")
        low, high = float(picture.min()), float(picture.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise ValueError(f"picture {number} must have values in 0 .. 1, got {low:.3g} .. {high:.3g}")
    return [rearrange(picture.detach().to("cpu", torch.float32), "h w c -> c h w").clone() for picture in pictures]


def _checked_masks(
    masks: torch.Tensor | Sequence[torch.Tensor] | None, pictures: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    if masks is None:
        return [torch.ones(1, *picture.shape[1:]) for picture in pictures]
    singles = [mask for value in masks for mask in (value if value.ndim == 3 else [value])]
    if isinstance(masks, torch.Tensor) and masks.ndim == 2:
        singles = [masks]
    if len(singles) != len(pictures):
        raise ValueError(
            f"{len(pictures)} pictures need as many masks, got {len(singles)}: one for each, in the same order"
        )
    for number, (mask, picture) in enumerate(zip(singles, pictures, strict=True), 1):
        if mask.shape != picture.shape[1:]:
            (tall, wide), (height, width) = mask.shape, picture.shape[1:]
            raise ValueError(
                f"mask {number} is {wide} x {tall} pixels and its picture {width} x {height}: resize one. Where a file "
                "has no transparency a loader may give an empty mask of another size: go without"
            )
        if not shows_something(mask):
            raise ValueError(f"mask {number} is empty: it leaves nothing of its picture to learn from; is it inverted?")
    return [mask.detach().to("cpu", torch.float32).clamp(0, 1)[None].clone() for mask in singles]


def _require_something(weights: torch.Tensor) -> None:
    """Raises ValueError where no version of a picture, of (pictures, versions, 1, h, w), holds anything that counts."""
    for number, versions in enumerate(weights, 1):
        if not bool((versions > 0).any()):
            raise ValueError(
                f"what mask {number} shows lies outside the square that is cut from its picture, which would teach "
                "nothing: crop the picture so that it lies in the middle"
            )


def _prepare(
    picture: torch.Tensor,
    mask: torch.Tensor,
    size: int,
    augmentation: Augmentation | None,
    seed: int,
    version: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One picture (3, size, size) and its mask (1, size, size)."""
    picture, mask = _short_side(picture, size), _short_side(mask, size)
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


def _short_side(picture: torch.Tensor, size: int) -> torch.Tensor:
    h, w = picture.shape[1:]
    if min(h, w) == size:
        return picture
    scale = size / min(h, w)
    target = (max(size, round(h * scale)), max(size, round(w * scale)))
    return F.interpolate(picture[None], size=target, mode="bilinear", antialias=True, align_corners=False)[0]


def _middle(picture: torch.Tensor, size: int) -> torch.Tensor:
    top, left = ((side - size) // 2 for side in picture.shape[1:])
    return picture[:, top : top + size, left : left + size]


def _digest(values: Sequence[torch.Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for value in values:
        digest.update(str(tuple(value.shape)).encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
