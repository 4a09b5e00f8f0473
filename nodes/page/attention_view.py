"""What the page's attention viewer is given: a description, and pictures among ComfyUI's temporary files."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io, ui

from ...core.inspection.attention.atlas import atlas, description
from ...core.inspection.attention.maps import AttentionMaps
from ...core.prompts.words import PromptWord

UI_KEY = "contextual_inversion_attention"

_written: deque[Path] = deque(maxlen=256)
_losses = 0


def viewer_data(
    cls: type[io.ComfyNode],
    maps: AttentionMaps,
    words: list[PromptWord],
    prompt: str,
    layers: list[int],
    pictures: torch.Tensor | None,
) -> dict[str, Any]:
    """The interactive viewer's data; its pictures go to ComfyUI's temp folder. It has all layers and begins with those
    of the size of `layers`."""
    sheet = atlas(maps, words)
    # In the middle of each byte's range, since ComfyUI rounds down.
    grey = (sheet.pixels.float() + 0.5)[None] / 255
    (saved,) = _saved(grey, "contextual_inversion_atlas", None)
    under = [] if pictures is None else _saved(pictures, "contextual_inversion_picture", cls)
    return {**description(maps, words, sheet, prompt, layers), "atlas": saved, "pictures": under}


def lost_results() -> int:
    """How often temporary files of results were found to be gone. Another number makes ComfyUI forget those results."""
    global _losses
    if not all(path.exists() for path in _written):
        _written.clear()
        _losses += 1
    return _losses


def _saved(pictures: torch.Tensor, prefix: str, cls: type[io.ComfyNode] | None) -> list[Any]:
    """Pictures (B, H, W) or (B, H, W, 3) in ComfyUI's temp folder."""
    files = ui.ImageSaveHelper.save_images(pictures, prefix, io.FolderType.temp, cls)
    folder = Path(folder_paths.get_temp_directory())
    _written.extend(folder / file["subfolder"] / file["filename"] for file in files)
    return files
