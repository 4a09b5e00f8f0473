"""Contextualizer files: psi, the mask row that was trained with it, and which text encoder they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ..models.protocol import TextEncoder
from ..networks.contextualizer import Contextualizer, ContextualizerShape, EncoderIdentity
from .atomic import IfExists
from .errors import ConceptFileError
from .networks import load_network, require_built_of, require_number, save_network

KIND = "contextualizer"
TOKEN_IDS = "token_ids"
MOST_TOKENS, MOST_POSITIONS = 500_000, 10_000
"""Of a vocabulary and of a prompt, which no tensor shows where only some have rows. CLIP's have 49,408 and 77."""


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
    ids = tensors.pop(TOKEN_IDS, None)
    _require_plausible(identity, shape, ids, tensors)
    return Contextualizer(identity, shape, ids, facts["provenance"])


def _require_plausible(
    identity: EncoderIdentity,
    shape: ContextualizerShape,
    ids: torch.Tensor | None,
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Raises ValueError where the header speaks of another network than the tensors are, before one is built."""
    require_number("number of attentions", shape.attentions, 1, len(tensors))
    require_number("vocabulary", identity.vocabulary, 1, MOST_TOKENS)
    require_number("number of positions", identity.max_length, 1, MOST_POSITIONS)
    require_number("width", identity.width, 1, max((value.numel() for value in tensors.values()), default=1))
    if identity.width % shape.heads:
        raise ValueError(f"{shape.heads} heads do not share a width of {identity.width}")
    # As many output rows as ids, in place of looking the ids up: nothing but shapes is compared here.
    rows = identity.vocabulary if ids is None else ids.numel()
    require_built_of(tensors, lambda: Contextualizer(replace(identity, vocabulary=rows), shape))
