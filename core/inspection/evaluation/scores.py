"""CLIP-T, CLIP-I, DINO and their foreground variants of a list of pictures (METHODS.md 2.7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...maths.evaluation import reference_similarity, text_similarity
from .encoders import BATCH, ClipEncoder, DinoEncoder, PictureEncoder, Progress
from .pictures import REFERENCE_SIDE, as_reference, masked

MEASURES = {
    "clip_t": "CLIP-T",
    "clip_i": "CLIP-I",
    "clip_i_fg": "CLIP-I-FG",
    "dino": "DINO",
    "dino_fg": "DINO-FG",
}
"""Key in JSON -> name in the papers. "FG": on foregrounds, what CoRe calls CLIP-I and DINO (METHODS.md 1.9)."""
TEXT_PREFIX = "A photo depicts "
"""Stands before every caption (METHODS.md 2.7, CLIP-T)."""


@dataclass(frozen=True)
class References:
    """Features (M, d) of one subject's reference pictures, by the measure that compares with them."""

    features: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Evaluator:
    """Measures pictures with the encoders that there are. `fill` is the grey, 0 .. 1, around a foreground.

    A measure whose encoder or masks are missing is left out, never guessed.
    """

    clip: ClipEncoder | None
    dino: DinoEncoder | None
    fill: float = 0.0
    batch: int = BATCH

    def __post_init__(self) -> None:
        if self.clip is None and self.dino is None:
            raise ValueError("an evaluation needs CLIP or DINO, or both")

    @property
    def encoders(self) -> tuple[PictureEncoder, ...]:
        """Those that there are."""
        return tuple(encoder for encoder in (self.clip, self.dino) if encoder is not None)

    def facts(self) -> dict[str, object]:
        """What decides the figures beside the pictures: part of every report, and of the key of a kept result."""
        return {
            "clip": self.clip and self.clip.name,
            "dino": self.dino and self.dino.name,
            "fingerprints": [encoder.fingerprint for encoder in self.encoders],
            "text_prefix": TEXT_PREFIX,
            "reference_side": REFERENCE_SIDE,
            "background_fill": self.fill,
        }

    def references(
        self,
        pictures: Sequence[np.ndarray],
        masks: Sequence[np.ndarray] | None = None,
        progress: Progress | None = None,
    ) -> References:
        """Read a subject's reference pictures, uint8 (H, W, 3), once for all its prompts; `masks` (H, W) in [0, 1].

        Raises ValueError where there is no picture, or not one mask of its size for each.
        """
        if not pictures:
            raise ValueError("at least one reference picture is needed")
        shown = {"": [as_reference(picture) for picture in pictures]}
        if masks is not None:
            shown["_fg"] = [as_reference(picture) for picture in self._foregrounds(pictures, masks)]
        return References(
            {
                f"{key}{suffix}": encoder.picture_features(versions, self.batch, progress)
                for suffix, versions in shown.items()
                for key, encoder in self._picture_measures()
            }
        )

    def score(
        self,
        pictures: Sequence[np.ndarray],
        captions: Sequence[str],
        references: References | None,
        masks: Sequence[np.ndarray | None] | None = None,
        progress: Progress | None = None,
    ) -> dict[str, np.ndarray]:
        """Per measure one float64 a picture (N,). `captions` name the class where the new word stood.

        A foreground measure is NaN for a picture whose mask is None. Raises ValueError where counts or sizes differ.
        """
        if len(captions) != len(pictures):
            raise ValueError(f"one caption a picture expected: {len(captions)} captions, {len(pictures)} pictures")
        scores: dict[str, np.ndarray] = {}
        for key, encoder in self._picture_measures():
            features = encoder.picture_features(pictures, self.batch, progress)
            if isinstance(encoder, ClipEncoder):
                texts = encoder.caption_features([TEXT_PREFIX + caption for caption in captions], self.batch)
                scores["clip_t"] = _numbers(text_similarity(features.double(), texts.double()))
            if references is not None:
                scores[key] = _similarity(features, references.features[key])
        if masks is not None and references is not None:
            scores |= self._score_foregrounds(pictures, masks, references, progress)
        return {key: scores[key] for key in MEASURES if key in scores}

    def _score_foregrounds(
        self,
        pictures: Sequence[np.ndarray],
        masks: Sequence[np.ndarray | None],
        references: References,
        progress: Progress | None,
    ) -> dict[str, np.ndarray]:
        if len(masks) != len(pictures):
            raise ValueError(f"one mask a picture expected: {len(masks)} masks, {len(pictures)} pictures")
        there = [index for index, mask in enumerate(masks) if mask is not None]
        shown = self._foregrounds([pictures[i] for i in there], [masks[i] for i in there])  # type: ignore[misc]
        scores = {}
        for key, encoder in self._picture_measures():
            if f"{key}_fg" not in references.features:
                raise ValueError("foregrounds are compared with foregrounds: the references need masks too")
            scores[f"{key}_fg"] = np.full(len(pictures), np.nan)
            if there:
                features = encoder.picture_features(shown, self.batch, progress)
                scores[f"{key}_fg"][there] = _similarity(features, references.features[f"{key}_fg"])
        return scores

    def _picture_measures(self) -> list[tuple[str, PictureEncoder]]:
        found = {"clip_i": self.clip, "dino": self.dino}
        return [(key, encoder) for key, encoder in found.items() if encoder is not None]

    def _foregrounds(self, pictures: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> list[np.ndarray]:
        if len(masks) != len(pictures):
            raise ValueError(f"one mask a picture expected: {len(masks)} masks, {len(pictures)} pictures")
        return [masked(picture, mask, self.fill) for picture, mask in zip(pictures, masks, strict=True)]


def _similarity(pictures: torch.Tensor, references: torch.Tensor) -> np.ndarray:
    return _numbers(reference_similarity(pictures.double(), references.double()))


def _numbers(values: torch.Tensor) -> np.ndarray:
    return values.numpy().astype(np.float64)
