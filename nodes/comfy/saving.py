"""Where a file goes whose name is taken, what can be known of that before the graph runs, and how it is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.sd1_clip
import folder_paths
import torch

from ...core.files import safe_name, safe_path
from ...core.files.atomic import require_writable
from ...core.files.names import changed_meaning, numbered, taken_by
from .folders import EMBEDDINGS, ENDING

NUMBER, REPLACE, REFUSE = "add a number", "replace", "refuse"


def free_name(name: str, folders: list[Path], if_taken: str) -> str:
    """`name`, or with `NUMBER` the first of name_2, name_3, ... that no folder has yet.

    One name for all folders, so that bundle and embedding stay twins. Raises ValueError for an unsafe name, and
    FileExistsError with `REFUSE` where one of the folders has it: before anything is written.
    """
    name = checked_word(name)
    taken = taken_by(name, folders, ENDING)
    if taken is None or if_taken == REPLACE:
        return name
    if if_taken == REFUSE:
        raise FileExistsError(f"{taken} exists. Choose another name, or set if_taken to another way.")
    return numbered(name, folders, ENDING)


def checked_word(name: str) -> str:
    """`name` where each part of it between slashes is a `safe_name`. Raises ValueError that shows what is wrong."""
    return safe_path(name)


def why_no_word(name: str | None) -> bool | str:
    """What is wrong with a word's `name` before the graph runs; True for nothing, or where a link gives it later."""
    try:
        if name is not None:
            safe_name(name.strip())
    except ValueError as error:
        return str(error)
    return True


def why_no_file(
    name: str | None, if_taken: str | None, folders: Sequence[Path], *, own_name: bool = False
) -> bool | str:
    """Why no file of this `name` could be written to `folders`, as far as that is known before the graph runs.

    What a link gives later is None. With `own_name` an empty name is that of what is saved. For ComfyUI's
    `validate_inputs`: it checks no choice of an input that is named there, so that is done here.
    """
    if if_taken not in (None, NUMBER, REPLACE, REFUSE):
        return f"if_taken is {NUMBER!r}, {REPLACE!r} or {REFUSE!r}, not {str(if_taken)[:40]!r}"
    try:
        if name is not None and (name.strip() or not own_name):
            free_name(name.strip(), list(folders), if_taken or REPLACE)
        for folder in folders:
            require_writable(next(path for path in (folder, *folder.parents) if path.exists()))
    except (ValueError, OSError) as error:
        return str(error)
    return True


def said_of_meaning(name: str, written: Sequence[Path]) -> list[str]:
    """Lines for people where `embedding:name` meant another file before."""
    folders = [Path(folder) for folder in folder_paths.get_folder_paths(EMBEDDINGS)]
    roots = [folder.resolve() for folder in folders]
    ours = [path for path in written if any(path.is_relative_to(root) for root in roots)]
    return changed_meaning(ours[0], roots, name) if ours else []


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
