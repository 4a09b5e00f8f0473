"""Folders of diffusers pipelines and of their parts: which weights can be read, and how a loader is told to take them.

Only safetensors is read. Many folders hold one variant alone, such as `diffusion_pytorch_model.fp16.safetensors`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

INDEX = "model_index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
WEIGHTS = re.compile(r"\w+(?:\.(\w+))?(?:-\d+-of-\d+)?(?:\.(\w+))?\.safetensors")
"""The name of a file of weights: its variant stands before or behind the number of a shard."""
NEEDED = ("unet", "vae", "text_encoder", "text_encoder_2")
PREFERRED = ("fp32", "bf16", "fp16")
"""Variants from the one that keeps most; after them whatever there is."""


def pipeline_options(folder: Path) -> dict[str, Any]:
    """What to tell diffusers' loader of a pipeline in `folder`: which variant, and which parts to do without.

    Raises FileNotFoundError that names a part which we need and of which there are only pickles.
    """
    variants = {part: variants_in(folder / part) for part in _parts(folder)}
    unread = [part for part, found in variants.items() if not found and _pickles(folder / part)]
    for part in unread:
        if part in NEEDED:
            _refuse(folder / part)
    variant = chosen_variant([found for part, found in variants.items() if found])
    # What only pickles hold and nobody here needs, as the safety checker, is left where it is.
    return {"use_safetensors": True, "variant": variant, **dict.fromkeys(unread)}


def part_options(folder: Path) -> dict[str, Any]:
    """The same for a single model in `folder`. Raises FileNotFoundError where there are only pickles."""
    found = variants_in(folder)
    if not found and _pickles(folder):
        _refuse(folder)
    return {"use_safetensors": True, "variant": chosen_variant([found] if found else [])}


def chosen_variant(parts: Iterable[set[str]]) -> str | None:
    """The variant with which every part can be read, "" being the plain file; None where that is there for all. One
    that holds for the most parts where none holds for all: the loader takes plain files for the others."""
    lacking = [found for found in parts if "" not in found]
    if not lacking:
        return None
    every = sorted(
        set().union(*lacking), key=lambda name: (-sum(name in found for found in lacking), _rank(name), name)
    )
    return every[0]


def variants_in(folder: Path) -> set[str]:
    """The variants of the weights in a part's folder, "" for the plain file; empty where there is no safetensors."""
    if not folder.is_dir():
        return set()
    named = (WEIGHTS.fullmatch(file.name) for file in folder.iterdir())
    return {match[1] or match[2] or "" for match in named if match}


def _rank(name: str) -> int:
    return PREFERRED.index(name) if name in PREFERRED else len(PREFERRED)


def _parts(folder: Path) -> list[str]:
    try:
        entries = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return [name for name, value in entries.items() if isinstance(value, list) and value[:1] not in ([], [None])]
    except (OSError, ValueError, AttributeError):
        return []  # the loader says what is wrong with it


def _pickles(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*") if file.suffix in PICKLES)


def _refuse(folder: Path) -> None:
    raise FileNotFoundError(
        f"{'/'.join(folder.parts[-2:])} holds its weights as {_pickles(folder)[0]} alone, and pickles (.bin) are not "
        "opened, since they can run code: download the safetensors files, or where you trust it load it with diffusers "
        "or transformers and write it with save_pretrained"
    )
