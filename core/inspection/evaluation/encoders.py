"""The two networks that the papers measure with: CLIP (pictures and captions) and DINO (pictures)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ...models.frozen import on_device
from ...models.protocol import fingerprint
from .preprocessing import Preprocessing

BATCH = 16
Progress = Callable[[int], None]
"""Receives the number of pictures that were just read."""


@dataclass(frozen=True)
class ClipEncoder:
    """CLIP's two towers with their projections, as transformers modules, and its tokenizer (METHODS.md 2.7, CLIP-T)."""

    name: str
    pictures: Any
    """`CLIPVisionModelWithProjection`."""
    text: Any
    """`CLIPTextModelWithProjection`."""
    tokenizer: Any
    preprocessing: Preprocessing

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the weights or the preprocessing."""
        tensors = {
            "visual_projection": self.pictures.visual_projection.weight,
            "text_projection": self.text.text_projection.weight,
        }
        return fingerprint(tensors, preprocessing=repr(self.preprocessing))

    def picture_features(
        self, pictures: Sequence[np.ndarray], batch: int = BATCH, progress: Progress | None = None
    ) -> torch.Tensor:
        """Projected features (N, d), float32 on the CPU, of uint8 pictures (H, W, 3) of any sizes."""
        return _in_batches(
            pictures,
            self.preprocessing,
            self.pictures,
            lambda pixels: self.pictures(pixel_values=pixels).image_embeds,
            batch,
            progress,
        )

    @torch.no_grad()
    def caption_features(self, captions: Sequence[str], batch: int = BATCH) -> torch.Tensor:
        """Projected features (N, d), float32 on the CPU; what is longer than CLIP's 77 tokens is cut off."""
        different = list(dict.fromkeys(captions))
        device, length = _device(self.text), self.text.config.max_position_embeddings
        found = []
        for start in range(0, len(different), batch):
            part = different[start : start + batch]
            tokens = self.tokenizer(part, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            # No attention mask: CLIP itself attends to its padding, and the causal mask hides it from the end token.
            found.append(self.text(input_ids=tokens.input_ids.to(device)).text_embeds.float())
        rows = dict(zip(different, torch.cat(found).cpu(), strict=True))
        return torch.stack([rows[caption] for caption in captions])

    def modules(self) -> tuple[torch.nn.Module, ...]:
        """What has to be on the device."""
        return self.pictures, self.text


@dataclass(frozen=True)
class DinoEncoder:
    """A DINO vision transformer as a transformers module: the class token of the last layer (METHODS.md 2.7, DINO)."""

    name: str
    network: Any
    preprocessing: Preprocessing

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the weights or the preprocessing."""
        ends = {name: value for name, value in self.network.state_dict().items() if name.startswith("layernorm.")}
        first = next(value for name, value in self.network.state_dict().items() if "patch_embeddings" in name)
        return fingerprint({**ends, "patch": first}, preprocessing=repr(self.preprocessing))

    def picture_features(
        self, pictures: Sequence[np.ndarray], batch: int = BATCH, progress: Progress | None = None
    ) -> torch.Tensor:
        """Class-token features (N, d), float32 on the CPU, of uint8 pictures (H, W, 3) of any sizes."""
        return _in_batches(
            pictures,
            self.preprocessing,
            self.network,
            lambda pixels: self.network(pixel_values=pixels).last_hidden_state[:, 0],
            batch,
            progress,
        )

    def modules(self) -> tuple[torch.nn.Module, ...]:
        """What has to be on the device."""
        return (self.network,)


PictureEncoder = ClipEncoder | DinoEncoder


def encoders_on_device(encoders: Sequence[PictureEncoder], device: torch.device | str) -> AbstractContextManager[None]:
    """Hold the encoders on `device`; afterwards they are where they were."""
    return on_device([module for encoder in encoders for module in encoder.modules()], device)


@torch.no_grad()
def _in_batches(
    pictures: Sequence[np.ndarray],
    preprocessing: Preprocessing,
    module: torch.nn.Module,
    features: Callable[[torch.Tensor], torch.Tensor],
    batch: int,
    progress: Progress | None,
) -> torch.Tensor:
    device, found = _device(module), []
    for start in range(0, len(pictures), batch):
        pixels = np.stack([preprocessing(picture) for picture in pictures[start : start + batch]])
        found.append(features(torch.from_numpy(pixels).to(device)).float())
        if progress is not None:
            progress(len(pixels))
    return torch.cat(found).cpu()


def _device(module: torch.nn.Module) -> torch.device:
    return next(module.parameters()).device
