"""Contextualizer files: psi, the mask row that was trained with it, and which text encoder they belong to."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from ..models.protocol import TextEncoder
from ..networks.contextualizer import Contextualizer, ContextualizerShape, EncoderIdentity
from .atomic import IfExists
from .errors import ConceptFileError
from .metadata import read_network_facts, write_network_facts
from .reading import read_tensors
from .writing import narrowed, write_concept_file

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
    """Write `root/name.safetensors` and return its path; read back and compared.

    Raises ValueError for an unsafe name, ConceptFileError where float16 cannot hold a value, and as
    `atomic_write_verified`.
    """
    tensors = {key: narrowed(value, dtype, key) for key, value in contextualizer.state_dict().items()}
    if contextualizer.sparse:
        tensors[TOKEN_IDS] = contextualizer.token_ids.cpu().to(torch.int32)
    content = {
        "encoder": asdict(contextualizer.encoder),
        "shape": asdict(contextualizer.shape),
        "classes": contextualizer.classes,
        "provenance": contextualizer.provenance,
    }
    return write_concept_file(tensors, write_network_facts(KIND, content), root, name, if_exists)


def load_contextualizer(path: Path | str, encoder: TextEncoder | None = None) -> Contextualizer:
    """Read a contextualizer as float32, untrainable; with `encoder`, only if it belongs to that one.

    Raises ConceptFileError where the file is damaged, something else, or belongs to another text encoder (METHODS.md
    2.8 no. 4; the message names both).
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    facts = read_network_facts(path, metadata, KIND, "pretrain-contextualizer")
    try:
        identity = EncoderIdentity(**facts["encoder"])
        shape = ContextualizerShape(**facts["shape"])
        ids = tensors.pop(TOKEN_IDS, None)
        contextualizer = Contextualizer(identity, shape, ids, facts["provenance"])
        contextualizer.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ConceptFileError(f"{path.name} is a damaged contextualizer: {str(error)[:300]}") from error
    if encoder is not None:
        try:
            identity.require(encoder)
        except ValueError as error:
            raise ConceptFileError(f"{path.name}: {error}") from error
    return contextualizer.requires_grad_(False).eval()
