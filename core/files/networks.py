"""What is in the file of a trained network, for people."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .metadata import network_facts
from .reading import read_header

BELONGS_TO = {"contextualizer": "encoder", "tuning_encoder": "identity"}
"""Kind of file -> which of its facts names the model that it was trained for."""


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
        "kind": kind.replace("_", "-"),
        "numbers": sum(math.prod(entry.shape) for entry in header.tensors.values()),
        "belongs_to": facts.get(BELONGS_TO[kind]),
        "shape": facts.get("shape"),
        "provenance": facts.get("provenance"),
    }
