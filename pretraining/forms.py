"""What a stage trains, and what it may begin from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..core.models.tiny import build
from ..core.models.tiny.weights import FOLDER, read_tensors, tiny_weights_path


@dataclass(frozen=True)
class Form:
    """A model in training: the folder of its weights, the bundled ones' unless another is given, and the numbers of the
    parts that differ from the bundled ones (`core.models.tiny.config`)."""

    folder: Path = FOLDER
    numbers: dict[str, dict[str, Any]] = field(default_factory=dict)

    def path(self, part: str) -> Path:
        """The weight file of `part`, whether it is there or not."""
        return self.folder / f"{part}.safetensors"

    def build(self, part: str) -> torch.nn.Module:
        """An empty module of `part`, with this form's numbers where it has its own."""
        maker = getattr(build, f"build_{part}")
        return maker(self.numbers[part]) if part in self.numbers else maker()

    def found(self, part: str) -> Path:
        """The weight file that `load` reads: its own, or the bundled one where it has neither numbers nor a file of its
        own."""
        bundled = part not in self.numbers and not self.path(part).exists()
        return tiny_weights_path(part) if bundled else self.path(part)

    def load(self, part: str, device: str | torch.device = "cpu") -> torch.nn.Module:
        """`part` with its weights, frozen. Raises FileNotFoundError where `found` names a file that is not there."""
        module = self.build(part)
        module.load_state_dict(read_tensors(self.found(part)))
        return module.requires_grad_(False).eval().to(device)


BUNDLED = Form()
FLOW, FRESH = "flow", "fresh"
STARTS = ("bundled", FLOW, FRESH)
"""Weights that a stage may begin from: the bundled ones, the flow matching model's judge, or none."""


def start_path(start: str, part: str) -> Path:
    """The weight file of `part` that `start`, one of `STARTS` but "fresh", stands for, whether it is there or not."""
    return tiny_weights_path(f"{FLOW}_{part}" if start == FLOW and part == "judge" else part)


def inherit(
    own: dict[str, torch.Tensor], state: dict[str, torch.Tensor], grown: dict[str, int]
) -> dict[str, torch.Tensor]:
    """`own` with other weights over it; `grown[key]` is the axis along which it may be the longer one.

    Raises ValueError where anything else differs, or where `state` is the longer one.
    """
    out = {key: value.clone() for key, value in own.items()}
    for key, value in state.items():
        room = list(out[key].shape)
        if (axis := grown.get(key)) is not None:
            room[axis] = min(room[axis], value.shape[axis])
        if tuple(room) != tuple(value.shape):
            raise ValueError(f"{key}: {tuple(value.shape)} does not fit into {tuple(out[key].shape)}")
        out[key][tuple(slice(size) for size in room)] = value
    return out
