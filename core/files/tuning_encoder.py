"""Tuning-encoder files: its weights, what they were trained on, and which models they belong to."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from ..networks.tuning_encoder import Identity, Shape, TuningEncoder
from .atomic import IfExists
from .errors import ConceptFileError
from .metadata import read_network_facts, write_network_facts
from .reading import read_tensors
from .writing import narrowed, write_concept_file

KIND = "tuning_encoder"
NEGATIVES, KNOWN = "negatives.", "known."


def save_tuning_encoder(
    encoder: TuningEncoder,
    root: Path | str,
    name: str,
    *,
    dtype: torch.dtype = torch.float16,
    if_exists: IfExists = "error",
) -> Path:
    """Write `root/name.safetensors` and return its path; read back and compared.

    Raises ValueError for an unsafe name, ConceptFileError where float16 cannot hold a value, and as
    `atomic_write_verified`.
    """
    tensors = {key: narrowed(value, dtype, key) for key, value in encoder.state_dict().items()}
    for key, value in encoder.negatives.items():
        tensors[NEGATIVES + key] = narrowed(value, dtype, NEGATIVES + key)
    for key, value in (encoder.known or {}).items():
        tensors[KNOWN + key] = value.cpu().to(torch.int32).contiguous()
    content = {
        "identity": asdict(encoder.identity),
        "shape": encoder.shape.plain(),
        "resolution": encoder.resolution,
        "timesteps": encoder.timesteps,
        "seed": encoder.seed,
        "provenance": encoder.provenance,
    }
    return write_concept_file(tensors, write_network_facts(KIND, content), root, name, if_exists)


def load_tuning_encoder(path: Path | str) -> TuningEncoder:
    """Read a tuning-encoder as float32, untrainable. `encoder.identity.require` says whether it fits a model.

    Raises ConceptFileError where the file is damaged or something else.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    facts = read_network_facts(path, metadata, KIND, "pretrain-encoder")
    try:
        encoder = TuningEncoder(
            Identity(**facts["identity"]),
            Shape.from_plain(facts["shape"]),
            resolution=facts["resolution"],
            timesteps=facts["timesteps"],
            seed=facts["seed"],
            provenance=facts["provenance"],
        )
        encoder.negatives = {name: value.float() for name, value in _taken(tensors, NEGATIVES).items()}
        known = {name: value.long() for name, value in _taken(tensors, KNOWN).items()}
        encoder.known = known or None
        encoder.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ConceptFileError(f"{path.name} is a damaged tuning-encoder: {str(error)[:300]}") from error
    return encoder.requires_grad_(False).eval()


def _taken(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}
