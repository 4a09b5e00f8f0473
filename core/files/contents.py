"""What is in a file: its kind, its concept, and a description for people."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..concept import Concept
from .bundle import bundle_from_tensors
from .embedding import FAMILY_OF_WIDTH, check_widths, embedding_from_tensors
from .errors import ConceptFileError
from .kinds import BUNDLE_PREFIX, LAYER_PREFIX, XTI_LAYERS, Kind, is_lora_key, kind_of_tensors, stem_of
from .metadata import read_facts
from .portable import not_everywhere
from .programs import readers
from .reading import read_header, read_tensors

DOWN = re.compile(r"[._]lora[._](?:down|A)\b|\.hada_w1_b$|\.lokr_w[12]_b$")
"""The part of a low-rank change whose first side is its rank."""


def kind_of(path: Path | str) -> Kind:
    """The kind of a file, from its header alone.

    Raises:
        ConceptFileError: damaged, a pickle, or none of the kinds.
    """
    path = Path(path)
    return kind_of_tensors(path, read_header(path).tensors)


def load_concept(path: Path | str, *, widths: Mapping[str, int] | None = None, embedding: str | None = None) -> Concept:
    """Read an embedding, an XTI file or a bundle, whichever the file is; arguments as in `load_bundle`.

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
    contents = {
        "file": path.name,
        "bytes": path.stat().st_size,
        "kind": kind,
        "name": facts.name,
        "class_word": facts.class_word,
        "hard_token": facts.hard_token,
        "vectors": [
            _describe_vectors(path, key, value, None if kind == "XTI" else facts.encoder)
            for key, value in tensors.items()
            if kind in ("embedding", "XTI") or key.startswith(BUNDLE_PREFIX)
        ],
        "layer_vectors": _describe_layers(kind, tensors),
        "lora": describe_lora(tensors),
        "provenance": facts.provenance,
        "other_metadata": {key: value for key, value in metadata.items() if key != "contextual_inversion"},
    }
    return {**contents, "programs": readers(contents)}


def describe_lora(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any] | None:
    """Layers, ranks and types of the LoRA among `tensors`, or None."""
    lora = {key: value for key, value in tensors.items() if is_lora_key(key)}
    if not lora:
        return None
    down = [value for key, value in lora.items() if DOWN.search(key)]
    return {
        "layers": sorted({stem_of(key) for key in lora}),
        "ranks": sorted({int(value.shape[0]) for value in down if value.ndim}),
        "types": sorted({str(value.dtype)[6:] for value in lora.values()}),
        "numbers": sum(value.numel() for value in lora.values()),
        "not everywhere": not_everywhere(lora),
    }


def _describe_layers(kind: Kind, tensors: Mapping[str, torch.Tensor]) -> dict[str, list[int]]:
    """Encoder -> (layers, vectors, width) of what has vectors for each layer."""
    if kind == "XTI":
        return {"every layer": [len(XTI_LAYERS), *tensors[XTI_LAYERS[0]].shape]}
    return {
        key.removeprefix(LAYER_PREFIX): list(value.shape)
        for key, value in tensors.items()
        if key.startswith(LAYER_PREFIX)
    }


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
