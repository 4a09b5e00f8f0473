"""Contextualizer files: psi, the mask row that was trained with it, and which text encoder they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..models.protocol import TextEncoder
from ..networks.contextualizer import Contextualizer, ContextualizerShape, EncoderIdentity
from .atomic import IfExists
from .errors import ConceptFileError
from .networks import load_network, save_network

KIND = "contextualizer"
TOKEN_IDS = "token_ids"


def save_contextualizer(
    contextualizer: Contextualizer,
    root: Path | str,
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    if_exists: IfExists = "error",
) -> Path:
    """Write `root/name.safetensors` and return its path. Raises as `save_network`."""
    ids = {TOKEN_IDS: contextualizer.token_ids} if contextualizer.sparse else {}
    facts = {
        "encoder": asdict(contextualizer.encoder),
        "shape": asdict(contextualizer.shape),
        "classes": contextualizer.classes,
        "provenance": contextualizer.provenance,
    }
    return save_network(
        KIND, {**contextualizer.state_dict(), **ids}, facts, root, name, dtype=dtype, if_exists=if_exists
    )


def load_contextualizer(path: Path | str, encoder: TextEncoder | None = None) -> Contextualizer:
    """Read a contextualizer as float32, untrainable; with `encoder`, only if it belongs to that one.

    Raises ConceptFileError where the file is damaged, something else, or belongs to another text encoder (METHODS.md
    2.8 no. 4; the message names both).
    """
    path = Path(path)
    contextualizer = load_network(KIND, path, _built)
    if encoder is not None:
        try:
            contextualizer.encoder.require(encoder)
        except ValueError as error:
            raise ConceptFileError(f"{path.name}: {error}") from error
    return contextualizer


def _built(facts: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> Contextualizer:
    identity, shape = EncoderIdentity(**facts["encoder"]), ContextualizerShape(**facts["shape"])
    return Contextualizer(identity, shape, tensors.pop(TOKEN_IDS, None), facts["provenance"])
