"""Tensors and metadata to a checked safetensors file inside a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from .atomic import TOGETHER, IfExists, atomic_write_verified
from .errors import ConceptFileError
from .names import inside
from .reading import read_tensors

ENDING = ".safetensors"
FILE_DTYPES = (torch.float32, torch.float16)


def write_concept_file(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], root: Path | str, name: str, if_exists: IfExists
) -> Path:
    """Write `root/name.safetensors` atomically; our own reader reads and compares it before it has its name.

    Inside `all_or_none` it gets that together with the others there. Raises as `inside`, `atomic_write_verified`, and
    ConceptFileError if the file does not say what it was given.
    """
    from safetensors.torch import save

    path = inside(root, name, ENDING)

    def check(file: Path) -> None:
        read, _ = read_tensors(file)
        if set(read) != set(tensors) or not all(torch.equal(read[key], tensors[key]) for key in tensors):
            raise ConceptFileError(f"{path.name} read back differs from what was saved")

    together = TOGETHER.get()
    write = atomic_write_verified if together is None else together.write
    return write(path, save(dict(tensors), dict(metadata)), if_exists=if_exists, check=check)


def narrowed(value: torch.Tensor, dtype: torch.dtype, key: str) -> torch.Tensor:
    """A contiguous CPU copy of `value` in `dtype`. Raises ConceptFileError where a value is not finite in it."""
    if dtype not in FILE_DTYPES:
        raise ValueError(f"files hold float32 or float16, not {dtype}")
    copy = value.detach().to("cpu", dtype, copy=True).contiguous()
    if not bool(torch.isfinite(copy).all()):
        raise ConceptFileError(f"{key} holds a value that is not finite in {str(dtype)[6:]}; save it as float32")
    return copy
