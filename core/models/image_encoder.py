"""CLIP's image encoder as the tuning-encoder reads it (METHODS.md 3.2). One class for both programs: transformers' and
ComfyUI's vision towers are built alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange

from .pipeline_folder import part_options
from .protocol import ImageFeatures, fingerprint

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
EVERY = 2
"""METHODS.md 3.2: the CLS token of every second layer."""


class ImageEncoder:
    """A CLIP vision tower (`embeddings`, `encoder.layers`, `post_layernorm`), frozen.

    `shrink` is how pictures come to its size, `dtype` what it takes them in (that of its weights if None), `device`
    where it computes (None: where its weights are). It is only used inside of `ready()`: in ComfyUI that loads the
    weights. Raises ValueError for a tower of another kind.
    """

    def __init__(
        self,
        tower: Any,
        *,
        size: int,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        shrink: Literal["bicubic", "area"] = "bicubic",
        dtype: torch.dtype | None = None,
        ready: Callable[[], AbstractContextManager[Any]] = nullcontext,
        device: torch.device | None = None,
    ) -> None:
        parts = ("embeddings", "encoder", "post_layernorm")
        if (
            not all(hasattr(tower, part) for part in parts)
            or getattr(tower.embeddings, "class_embedding", None) is None
        ):
            raise ValueError(f"{type(tower).__name__} is no CLIP vision encoder; SigLIP and DINO cannot be used here")
        self.tower, self.size, self.shrink, self.dtype, self.ready = tower, size, shrink, dtype, ready
        self._device = device
        self._mean, self._std = (rearrange(torch.tensor(list(value)), "c -> 1 c 1 1") for value in (mean, std))
        self.width = int(tower.embeddings.class_embedding.shape[-1])
        self.layers = len(tower.encoder.layers)

    @classmethod
    def tiny(cls, *, device: torch.device | str = "cpu") -> ImageEncoder:
        """The bundled model's own."""
        from .tiny import config
        from .tiny.load import load_part

        half = (0.5, 0.5, 0.5)
        tower = load_part("image_encoder", device).vision_model
        return cls(tower, size=config.IMAGE_ENCODER["image_size"], mean=half, std=half, shrink="area")

    @classmethod
    def from_folder(cls, folder: Path | str, *, device: torch.device | str = "cpu") -> ImageEncoder:
        """A transformers `CLIPVisionModelWithProjection` in a folder, such as a pipeline's `image_encoder`.

        Raises FileNotFoundError where there is no folder, ValueError where it holds only pickles.
        """
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"no folder of a CLIP vision model at {str(folder)!r}")
        from transformers import CLIPVisionModelWithProjection

        module = CLIPVisionModelWithProjection.from_pretrained(
            str(folder), local_files_only=True, **part_options(Path(folder))
        )
        module.requires_grad_(False).eval().to(device)
        return cls(module.vision_model, size=int(module.config.image_size))

    @property
    def device(self) -> torch.device:
        return self._device or self._patches.device

    @property
    def _patches(self) -> torch.Tensor:
        return self.tower.embeddings.patch_embedding.weight

    @property
    def vectors(self) -> int:
        """V, how many vectors `features` gives."""
        return self.layers // EVERY + 1

    @cached_property
    def fingerprint(self) -> str:
        last = self.tower.post_layernorm.weight
        return fingerprint({"patches": self._patches, "norm": last}, layers=self.layers, size=self.size)

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> ImageFeatures:
        """Square pictures (B, 3, H, H) in [0, 1], of any size, to float32 features without gradient."""
        with self.ready():
            return self._features(images)

    def _features(self, images: torch.Tensor) -> ImageFeatures:
        smooth = {"antialias": True} if self.shrink == "bicubic" else {}
        small = F.interpolate(images.float(), size=(self.size, self.size), mode=self.shrink, **smooth).clamp(0, 1)
        pixels = ((small - self._mean.to(small)) / self._std.to(small)).to(
            self.device, self.dtype or self._patches.dtype
        )
        first: list[torch.Tensor] = []
        last: list[torch.Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda _, __, output: first.append(_tensor(output)[:, 0]))
            for layer in self.tower.encoder.layers[EVERY - 1 :: EVERY]
        ]
        hooks.append(self.tower.encoder.layers[-1].register_forward_hook(lambda _, __, out: last.append(_tensor(out))))
        try:
            self.tower(pixels)
        finally:
            for hook in hooks:
                hook.remove()
        pooled = self.tower.post_layernorm(last[0][:, 0])
        patches = last[0][:, 1:]
        grid = rearrange(patches, "b (h w) c -> b c h w", h=round(patches.shape[1] ** 0.5))
        # Cloned: what came out of a model loaded in inference mode may not be kept for a backward pass.
        return ImageFeatures(torch.stack([*first, pooled], dim=1).float().clone(), grid.float().clone())


def _tensor(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output
