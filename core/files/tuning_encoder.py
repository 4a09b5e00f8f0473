"""Tuning-encoder files: its weights, what they were trained on, and which models they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..networks.tuning_encoder import Identity, Shape, TuningEncoder
from .atomic import IfExists
from .networks import load_network, save_network

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
    """Write `root/name.safetensors` and return its path. Raises as `save_network`."""
    tensors = {
        **encoder.state_dict(),
        **{NEGATIVES + key: value for key, value in encoder.negatives.items()},
        **{KNOWN + key: value for key, value in (encoder.known or {}).items()},
    }
    facts = {
        "identity": asdict(encoder.identity),
        "shape": encoder.shape.plain(),
        "resolution": encoder.resolution,
        "timesteps": encoder.timesteps,
        "seed": encoder.seed,
        "provenance": encoder.provenance,
    }
    return save_network(KIND, tensors, facts, root, name, dtype=dtype, if_exists=if_exists)


def load_tuning_encoder(path: Path | str) -> TuningEncoder:
    """Read a tuning-encoder as float32, untrainable. `encoder.identity.require` says whether it fits a model.

    Raises ConceptFileError where the file is damaged or something else.
    """
    return load_network(KIND, Path(path), _built)


def _built(facts: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> TuningEncoder:
    encoder = TuningEncoder(
        Identity(**facts["identity"]),
        Shape.from_plain(facts["shape"]),
        resolution=facts["resolution"],
        timesteps=facts["timesteps"],
        seed=facts["seed"],
        provenance=facts["provenance"],
    )
    encoder.negatives = {name: value.float() for name, value in _taken(tensors, NEGATIVES).items()}
    encoder.known = {name: value.long() for name, value in _taken(tensors, KNOWN).items()} or None
    return encoder


def _taken(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}
