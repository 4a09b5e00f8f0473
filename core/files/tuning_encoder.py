"""Tuning-encoder files: its weights, what they were trained on, and which models they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..networks.tuning_encoder import Identity, Shape, TuningEncoder
from .atomic import IfExists
from .networks import load_network, require_built_of, require_number, save_network

KIND = "tuning_encoder"
NEGATIVES, KNOWN = "negatives.", "known."
MOST_PIXELS, MOST_CELLS, TIMESTEPS = 8192, 256, 1000
"""Of a picture's side, of the grid's side, and of noise levels: numbers of the header that no tensor shows."""


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
    shape, options = Shape.from_plain(facts["shape"]), _options(facts)
    negatives = {name: value.float() for name, value in _taken(tensors, NEGATIVES).items()}
    known = {name: value.long() for name, value in _taken(tensors, KNOWN).items()}
    _require_plausible(shape, negatives, known, tensors)
    identity = Identity(**facts["identity"])
    require_built_of(tensors, lambda: TuningEncoder(identity, shape, **options))
    encoder = TuningEncoder(identity, shape, **options)
    encoder.negatives, encoder.known = negatives, known or None
    return encoder


def _taken(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}


def _options(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a header says beside the shape. Raises KeyError, TypeError or ValueError."""
    require_number("resolution", facts["resolution"], 1, MOST_PIXELS)
    require_number("number of timesteps", len(facts["timesteps"]), 1, TIMESTEPS)
    for timestep in facts["timesteps"]:
        require_number("timestep", timestep, 0, TIMESTEPS - 1)
    return {name: facts[name] for name in ("resolution", "timesteps", "seed", "provenance")}


def _require_plausible(
    shape: Shape,
    negatives: Mapping[str, torch.Tensor],
    known: Mapping[str, torch.Tensor],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Raises ValueError where the header announces what the tensors cannot be, before anything is built."""
    require_number("number of decoder layers", shape.preset.layers, 1, len(tensors))
    require_number("grid", shape.preset.grid, 1, MOST_CELLS)
    for name, value in negatives.items():
        if value.ndim != 2 or value.shape[1] != shape.embeddings.get(name):
            raise ValueError(f"its negatives of {name} are {tuple(value.shape)}")
    for name, value in known.items():
        if value.ndim != 1 or name not in shape.embeddings:
            raise ValueError(f"its known words of {name} are {tuple(value.shape)}")
