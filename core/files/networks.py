"""Files of trained networks: written and read back, read as untrainable float32, and described for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from .atomic import IfExists
from .errors import ConceptFileError
from .metadata import network_facts, read_network_facts, write_network_facts
from .reading import read_header, read_tensors
from .writing import narrowed, write_concept_file

BELONGS_TO = {"contextualizer": "encoder", "tuning_encoder": "identity"}
"""Kind of file -> which of its facts names the model that it was trained for."""
COMMANDS = {"contextualizer": "pretrain-contextualizer", "tuning_encoder": "pretrain-encoder"}
"""Kind of file -> the command that makes one."""
Network = TypeVar("Network", bound=torch.nn.Module)


def save_network(
    kind: str,
    tensors: Mapping[str, torch.Tensor],
    facts: Mapping[str, Any],
    root: Path | str,
    name: str,
    *,
    dtype: torch.dtype,
    if_exists: IfExists,
) -> Path:
    """Write `root/name.safetensors` and return its path; read back and compared. Floating-point tensors are written in
    `dtype`, ids as int32. `facts` are JSON data.

    Raises ValueError for an unsafe name, ConceptFileError where float16 cannot hold a value, and as
    `atomic_write_verified`.
    """
    written = {
        key: narrowed(value, dtype, key) if value.is_floating_point() else value.cpu().to(torch.int32).contiguous()
        for key, value in tensors.items()
    }
    return write_concept_file(written, write_network_facts(kind, facts), root, name, if_exists)


def load_network(
    kind: str, path: Path, build: Callable[[Mapping[str, Any], dict[str, torch.Tensor]], Network]
) -> Network:
    """What `build(facts, tensors)` makes of a file, untrainable; it takes out of `tensors` what is no weight.

    Raises ConceptFileError where the file is damaged or something else.
    """
    tensors, metadata = read_tensors(path)
    facts = read_network_facts(path, metadata, kind, COMMANDS[kind])
    try:
        network = build(facts, tensors)
        network.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ConceptFileError(f"{path.name} is a damaged {_readable(kind)}: {str(error)[:300]}") from error
    return network.requires_grad_(False).eval()


def describe_network(path: Path | str) -> dict[str, Any] | None:
    """Plain data about a contextualizer or tuning-encoder, from its header alone; None for any other file.

    Raises:
        ConceptFileError: as `read_header`.
    """
    path = Path(path)
    header = read_header(path)
    facts = network_facts(header.metadata)
    kind = str(facts.get("kind"))
    if kind not in BELONGS_TO:
        return None
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "kind": _readable(kind),
        "numbers": sum(math.prod(entry.shape) for entry in header.tensors.values()),
        "belongs_to": facts.get(BELONGS_TO[kind]),
        "shape": facts.get("shape"),
        "provenance": facts.get("provenance"),
    }


def _readable(kind: str) -> str:
    return kind.replace("_", "-")
