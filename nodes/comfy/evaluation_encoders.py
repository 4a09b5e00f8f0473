"""The encoders that pictures are measured with: found in ComfyUI's folders, and kept from one run to the next."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import comfy.sd1_clip
import folder_paths

from ...core.inspection.evaluation import (
    BUNDLED,
    CLIP,
    DINO,
    ClipEncoder,
    DinoEncoder,
    Evaluator,
    bundled_clip,
    load_clip,
    load_dino,
)
from ...core.inspection.evaluation.loading import find_encoder

AUTO, NONE = "auto", "none"
FOLDER = "clip_vision"
"""ComfyUI's model folder in which folders of CLIP and DINO are looked for."""


def folders() -> list[Path]:
    """Where folders of CLIP and DINO are looked for."""
    return [Path(folder) for folder in folder_paths.get_folder_paths(FOLDER)]


def bytes_of(evaluator: Evaluator) -> int:
    """What the encoders' weights take."""
    weights = (p for encoder in evaluator.encoders for module in encoder.modules() for p in module.parameters())
    return sum(weight.numel() * weight.element_size() for weight in weights)


def chosen_clip(choice: str) -> ClipEncoder | None:
    """What the node's `clip` names. Raises EncoderNotFoundError, saying which file goes where."""
    if choice == NONE:
        return None
    if choice == BUNDLED:
        return _bundled()
    return _kept_clip(*_version(CLIP if choice == AUTO else choice))


def chosen_dino(choice: str) -> DinoEncoder | None:
    """What the node's `dino` names. Raises EncoderNotFoundError, saying which file goes where."""
    return None if choice == NONE else _kept_dino(*_version(DINO if choice == AUTO else choice))


def _version(name: str) -> tuple[str, int]:
    """The name and when its files were last written, so that a replaced model is read again."""
    folder = find_encoder(name, folders())
    return name, max(file.stat().st_mtime_ns for file in folder.iterdir() if file.is_file())


@lru_cache(maxsize=1)
def _bundled() -> ClipEncoder:
    return bundled_clip(str(Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer"))


@lru_cache(maxsize=1)
def _kept_clip(name: str, version: int) -> ClipEncoder:
    return load_clip(name, folders())


@lru_cache(maxsize=1)
def _kept_dino(name: str, version: int) -> DinoEncoder:
    return load_dino(name, folders())
