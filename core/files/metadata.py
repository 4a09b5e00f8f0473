"""What travels in a file's metadata beside the tensors: who made the word, from what, and how."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..concept import Concept
from .errors import ConceptFileError

KEY = "contextual_inversion"
VERSION = 1


@dataclass(frozen=True)
class Facts:
    """Everything of a concept that is not a tensor."""

    name: str
    class_word: str = ""
    hard_token: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    encoder: str | None = None
    """For a file with one nameless tensor: the text encoder that it belongs to."""
    ours: bool = True
    """False for a file of another program, which is named after itself."""


def write_facts(concept: Concept, kind: str, encoder: str | None = None) -> dict[str, str]:
    """Metadata of a file: one JSON text under one key, since safetensors writes several keys in a random order.

    So the same concept always gives the same bytes.
    """
    content = {
        "version": VERSION,
        "kind": kind,
        "name": concept.name,
        "class_word": concept.class_word,
        "hard_token": concept.hard_token,
        "encoder": encoder,
        "provenance": _plain(concept.provenance),
    }
    return {KEY: json.dumps(content, allow_nan=False, sort_keys=True)}


def read_facts(path: Path, metadata: Mapping[str, str]) -> Facts:
    """The facts in a file's metadata; a file of another program is named after itself and has no others.

    Raises:
        ConceptFileError: the metadata is ours and damaged, or of a newer version.
    """
    if KEY not in metadata:
        return Facts(name=path.stem, ours=False)
    try:
        content = _plain(json.loads(metadata[KEY]))
    except (ValueError, RecursionError) as error:
        raise ConceptFileError(f"{path.name} has damaged provenance: {str(error)[:200]}") from error
    if not isinstance(content, dict):
        raise ConceptFileError(f"{path.name} has damaged provenance: it is no table")
    version = content.get("version")
    if type(version) is not int or version < 1:
        raise ConceptFileError(f"{path.name} has damaged provenance: it names no version")
    if version > VERSION:
        raise ConceptFileError(f"{path.name} has version {version} of the format; update to read it")
    facts = Facts(
        name=content.get("name", path.stem),
        class_word=content.get("class_word", ""),
        hard_token=content.get("hard_token"),
        provenance=content.get("provenance", {}),
        encoder=content.get("encoder"),
    )
    text = (facts.name, facts.class_word, facts.hard_token or "", facts.encoder or "")
    if not all(isinstance(value, str) for value in text) or not isinstance(facts.provenance, dict):
        raise ConceptFileError(f"{path.name} has damaged provenance: a name or word in it is not text")
    return facts


def write_network_facts(kind: str, content: Mapping[str, Any]) -> dict[str, str]:
    """Metadata of a network's file: its kind and `content`, JSON data, under our key."""
    facts = {"version": VERSION, "kind": kind, **content}
    return {"format": "pt", KEY: json.dumps(facts, allow_nan=False, sort_keys=True)}


def network_facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The table under our key; empty where there is none."""
    try:
        facts = json.loads(metadata[KEY])
    except (KeyError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def read_network_facts(path: Path, metadata: Mapping[str, str], kind: str, command: str) -> dict[str, Any]:
    """What `write_network_facts` wrote. `command` makes such files.

    Raises ConceptFileError where the file is of another kind or of a newer version.
    """
    facts = network_facts(metadata)
    if facts.get("kind") != kind:
        raise ConceptFileError(f"{path.name} is no {kind.replace('_', '-')}; make one with `{command}`")
    version = facts.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise ConceptFileError(f"{path.name} has version {version} of the format; update to read it")
    return facts


def _plain(value: Any) -> Any:
    # Provenance must never be the reason why a trained word is not saved: what JSON lacks becomes null or text.
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)
