"""Where a file goes whose name is taken, and how it is written."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.sd1_clip
import torch

from ...core.files import inside, safe_name
from .folders import ENDING

NUMBER, REPLACE, REFUSE = "add a number", "replace", "refuse"


def free_name(name: str, folders: list[Path], if_taken: str) -> str:
    """`name`, or with `NUMBER` the first of name_2, name_3, ... that no folder has yet.

    One name for all folders, so that bundle and embedding stay twins. Raises ValueError for an unsafe name, and
    FileExistsError with `REFUSE` where one of the folders has it: before anything is written.
    """
    candidate, number = checked_word(name), 1
    while if_taken != REPLACE:
        taken = [path for path in (inside(folder, candidate, ENDING) for folder in folders) if path.exists()]
        if not taken:
            break
        if if_taken == REFUSE:
            raise FileExistsError(f"{taken[0]} exists. Choose another name, or set if_taken to another way.")
        number += 1
        candidate = checked_word(f"{name}_{number}")
    return candidate


def checked_word(name: str) -> str:
    """`name` where each part of it between slashes is a `safe_name`. Raises ValueError that shows what is wrong."""
    return "/".join(safe_name(part) for part in name.split("/"))


def written_as(if_taken: str, half_precision: bool) -> dict[str, Any]:
    """What the nodes' choices mean to the functions that save."""
    return {
        "dtype": torch.float16 if half_precision else torch.float32,
        "if_exists": "replace" if if_taken == REPLACE else "error",
    }


@lru_cache(maxsize=1)
def clip_vocabulary() -> frozenset[str] | None:
    """The pieces that ComfyUI's CLIP tokenizer knows, by its vocabulary file; None where that is not to be found."""
    try:
        file = Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer" / "vocab.json"
        return frozenset(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
