"""What is in a file: its kind, its concept, and a description for people."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from ..concept import Concept
from .bundle import BUNDLE_PREFIX, LAYER_PREFIX, bundle_from_tensors, has_lora, is_lora_key
from .embedding import FAMILY_OF_WIDTH, check_widths, embedding_from_tensors
from .errors import ConceptFileError
from .metadata import read_facts
from .reading import read_header, read_tensors

Kind = Literal["embedding", "bundle", "LoRA"]

MAX_EMBEDDING_TENSORS = 4
OWN_DOTS = re.compile(r"\.(?:lora|alpha|diff)")
"""Where the name of a layer that is written with dots ends in a LoRA's key."""


def kind_of(path: Path | str) -> Kind:
    """The kind of a file, from its header alone.

    Raises:
        ConceptFileError: damaged, a pickle, or none of the three.
    """
    path = Path(path)
    return _kind(path, read_header(path).tensors)


def load_concept(path: Path | str, *, widths: Mapping[str, int] | None = None, embedding: str | None = None) -> Concept:
    """Read an embedding or a bundle, whichever the file is; arguments as in `load_bundle`.

    Raises:
        ConceptFileError: also for a LoRA, which holds no word.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind == "LoRA":
        raise ConceptFileError(f"{path.name} is a LoRA without a word; load it with a LoRA loader")
    tensors, metadata = read_tensors(path)
    facts = read_facts(path, metadata)
    if kind == "bundle":
        concept = bundle_from_tensors(path, tensors, facts, widths, embedding)
    else:
        concept = embedding_from_tensors(path, tensors, facts, widths)
    if widths is not None:
        check_widths(concept, widths)
    return concept


def describe(path: Path | str) -> dict[str, Any]:
    """Plain data about a file: kind, name, class word, vectors (encoder, count, width, type, norms), LoRA, provenance.

    Needs no model: a nameless tensor of unknown width is described as it is.

    Raises:
        ConceptFileError: as `kind_of` and `read_tensors`.
    """
    path = Path(path)
    kind = kind_of(path)
    tensors, metadata = read_tensors(path)
    facts = read_facts(path, metadata)
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "kind": kind,
        "name": facts.name,
        "class_word": facts.class_word,
        "hard_token": facts.hard_token,
        "vectors": [
            _describe_vectors(path, key, value, facts.encoder)
            for key, value in tensors.items()
            if kind == "embedding" or key.startswith(BUNDLE_PREFIX)
        ],
        "layer_vectors": {
            key.removeprefix(LAYER_PREFIX): list(value.shape)
            for key, value in tensors.items()
            if key.startswith(LAYER_PREFIX)
        },
        "lora": describe_lora(tensors),
        "provenance": facts.provenance,
        "other_metadata": {key: value for key, value in metadata.items() if key != "contextual_inversion"},
    }


def describe_lora(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any] | None:
    """Layers, ranks and types of the LoRA among `tensors`, or None."""
    lora = {key: value for key, value in tensors.items() if is_lora_key(key)}
    if not lora:
        return None
    layers = sorted({key.split(".")[0] if key.startswith("lora_") else OWN_DOTS.split(key)[0] for key in lora})
    down = [value for key, value in lora.items() if ".lora_down." in key or ".lora_A." in key or "lora.down" in key]
    return {
        "layers": layers,
        "ranks": sorted({int(value.shape[0]) for value in down if value.ndim}),
        "types": sorted({str(value.dtype)[6:] for value in lora.values()}),
        "numbers": sum(value.numel() for value in lora.values()),
    }


def _kind(path: Path, tensors: Mapping[str, Any]) -> Kind:
    if not tensors:
        raise ConceptFileError(f"{path.name} holds no tensor")
    if any(key.startswith(BUNDLE_PREFIX) for key in tensors):
        return "bundle"
    if has_lora(tensors):
        return "LoRA"
    shapes = [entry.shape for entry in tensors.values()]
    if len(tensors) <= MAX_EMBEDDING_TENSORS and all(len(shape) in (1, 2) for shape in shapes):
        return "embedding"
    some = next(iter(tensors))
    raise ConceptFileError(
        f"{path.name} is no embedding, LoRA or bundle: it holds {len(tensors)} tensors such as {some!r}"
    )


def _describe_vectors(path: Path, key: str, value: torch.Tensor, encoder: str | None) -> dict[str, Any]:
    if not value.is_floating_point() or value.ndim not in (1, 2):
        raise ConceptFileError(f"{path.name}: {key!r} is no list of vectors")
    rows = value.reshape(-1, value.shape[-1]).float()
    return {
        "key": key,
        "encoder": encoder or key.rsplit(".", 1)[-1],
        "count": rows.shape[0],
        "width": rows.shape[1],
        "family": FAMILY_OF_WIDTH.get(rows.shape[1]),
        "type": str(value.dtype)[6:],
        "norms": rows.norm(dim=1).tolist(),
    }
