"""Read a safetensors file that nobody vouches for. Pickles are recognised and refused, never opened."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .errors import ConceptFileError

MAX_HEADER = 16_777_216
"""Bytes. The largest known headers, of checkpoints with a caption list in their metadata, have a few million; the
format itself allows 100 million, which six million empty entries fill and a Python reader chews for half a minute."""
MAX_ENTRIES = 100_000
"""Tables in a header. Whole checkpoints of large models have a few thousand tensors."""
MAX_DIMENSIONS = 8
METADATA = "__metadata__"
PICKLE_STARTS = (b"PK\x03\x04", b"PK\x05\x06", *(bytes((0x80, protocol)) for protocol in range(2, 6)))

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a checked header: `begin` and `end` count bytes from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a file says it holds, checked against its true size."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


def read_header(path: Path | str) -> Header:
    """Names, dtypes, shapes and metadata of a safetensors file, without its data.

    Raises:
        ConceptFileError: the file is missing, a pickle, truncated, or its header is damaged or lies about the file.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _header(path, file)
    except OSError as error:
        raise ConceptFileError(f"{path.name} cannot be read: {error.strerror or error}") from error


def read_tensors(path: Path | str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors (CPU, as stored) and the metadata of a safetensors file. Floating-point values must be finite.

    Raises:
        ConceptFileError: as `read_header`, or a value is not finite.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            header = _header(path, file)
            tensors = {name: _tensor(path, file, entry) for name, entry in header.tensors.items()}
    except OSError as error:
        raise ConceptFileError(f"{path.name} cannot be read: {error.strerror or error}") from error
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value.float()).all()):
            raise ConceptFileError(f"{path.name}: {name} holds values that are not finite")
    return tensors, dict(header.metadata)


def _header(path: Path, file: BinaryIO) -> Header:
    size = file.seek(0, 2)
    file.seek(0)
    start = file.read(9)
    _refuse_pickle(path, start)
    if len(start) < 8:
        raise ConceptFileError(f"{path.name} has only {size} bytes; it is empty or truncated")
    (length,) = struct.unpack("<Q", start[:8])
    if length > MAX_HEADER or length > size - 8:
        raise ConceptFileError(
            f"{path.name} announces a header of {length} bytes in a file of {size} (at most {MAX_HEADER} are read); "
            "it is truncated, damaged, or not a safetensors file"
        )
    file.seek(8)
    try:
        content = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_Tables())
    except (ValueError, RecursionError) as error:
        raise ConceptFileError(f"{path.name} has a damaged header: {str(error)[:200]}") from error
    if not isinstance(content, dict):
        raise ConceptFileError(f"{path.name} has a damaged header: it is no table of tensors")
    metadata = content.pop(METADATA, None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ConceptFileError(f"{path.name} has damaged metadata: it must map names to text")
    entries = {name: _entry(path, name, value, 8 + length) for name, value in content.items()}
    _check_coverage(path, entries, 8 + length, size)
    return Header(entries, metadata)


def _refuse_pickle(path: Path, start: bytes) -> None:
    # A safetensors header may have any length, also one whose bytes look like a pickle's, but it opens with a brace.
    if start[4:] == b"\0\0\0\0{":
        return
    # torch.save writes a zip or, before 1.6, a bare pickle: the marker 0x80 and the protocol's number.
    if start.startswith(PICKLE_STARTS):
        raise ConceptFileError(
            f"{path.name} is a pickle (.pt, .bin or .ckpt), whatever its name says. Pickles can run code when they are "
            "opened, so they are never read here; ask for a .safetensors file"
        )


class _Tables:
    """Makes the tables of a JSON text: no name twice in one, and no more of them than a file of tensors can need."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        self.made += 1
        if max(self.made, len(pairs)) > MAX_ENTRIES:
            raise ValueError(f"it has more than {MAX_ENTRIES} entries")
        table: dict[str, Any] = {}
        for name, value in pairs:
            if name in table:
                raise ValueError(f"{name!r} occurs twice")
            table[name] = value
        return table


def _entry(path: Path, name: str, value: Any, data_start: int) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ConceptFileError(f"{path.name}: the header describes {name!r} wrongly")
    dtype = DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        raise ConceptFileError(f"{path.name}: {name!r} has the unknown type {value['dtype']!r}")
    shape, offsets = value["shape"], value["data_offsets"]
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS or 0 in shape:
        raise ConceptFileError(f"{path.name}: {name!r} has the impossible shape {str(shape)[:80]}")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ConceptFileError(f"{path.name}: {name!r} has impossible offsets {str(offsets)[:80]}")
    needed = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != needed:
        raise ConceptFileError(
            f"{path.name}: {name!r} needs {needed} bytes but the header gives it {offsets[1] - offsets[0]}"
        )
    return TensorEntry(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_coverage(path: Path, entries: Mapping[str, TensorEntry], data_start: int, size: int) -> None:
    """The tensors fill the rest of the file without gaps or overlaps, so no byte is hidden and none is missing."""
    position = data_start
    for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
        if entry.begin != position:
            raise ConceptFileError(f"{path.name}: {name!r} overlaps another tensor or leaves a gap before it")
        position = entry.end
    if position > size:
        raise ConceptFileError(f"{path.name} is truncated: {position - size} bytes are missing")
    if position < size:
        raise ConceptFileError(f"{path.name} has {size - position} bytes more than its header accounts for")


def _tensor(path: Path, file: BinaryIO, entry: TensorEntry) -> torch.Tensor:
    file.seek(entry.begin)
    data = file.read(entry.end - entry.begin)
    if len(data) != entry.end - entry.begin:
        raise ConceptFileError(f"{path.name} became shorter while it was read")
    return torch.frombuffer(bytearray(data), dtype=entry.dtype).reshape(entry.shape)
