"""The two forms of the model: the bundled one, and the candidate that is to follow it part by part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.form import BUNDLED, CANDIDATE, FORM, VARIABLE
from ..core.models.tiny import build, config
from ..core.models.tiny.load import load_part
from ..core.models.tiny.weights import FOLDERS, read_tensors


@dataclass(frozen=True)
class Form:
    """The numbers of the parts that a form has of its own, and the folder of its weights."""

    name: str
    folder: Path
    numbers: dict[str, dict[str, Any]]

    def path(self, part: str) -> Path:
        """The weight file of `part`, whether it is there or not."""
        return self.folder / f"{part}.safetensors"

    def build(self, part: str) -> torch.nn.Module:
        """An empty module of `part`, with this form's numbers where it has its own."""
        maker = getattr(build, f"build_{part}")
        return maker(self.numbers[part]) if part in self.numbers else maker()

    def load(self, part: str, device: str | torch.device = "cpu") -> torch.nn.Module:
        """`part` with its weights, frozen; the bundled one where this form has neither numbers nor a file of its own.

        Raises FileNotFoundError where the form has numbers for it and no weights have been trained.
        """
        if part not in self.numbers and not self.path(part).exists():
            return load_part(part, device, form=BUNDLED)
        module = self.build(part)
        module.load_state_dict(read_tensors(self.path(part)))
        return module.requires_grad_(False).eval().to(device)


FORMS = {
    BUNDLED: Form(BUNDLED, FOLDERS[BUNDLED], {"vae": config.VAE_BUNDLED, "unet": config.UNET_BUNDLED}),
    CANDIDATE: Form(
        CANDIDATE,
        FOLDERS[CANDIDATE],
        {"vae": config.VAE_CANDIDATE, "unet": config.UNET_CANDIDATE, "transformer": config.TRANSFORMER},
    ),
}
FLOW = "flow"
STARTS = (*FORMS, FLOW, "fresh")
"""Weights that a stage may begin from: a form's, those of the flow matching model's VAE or judge, or none."""


def start_path(start: str, part: str) -> Path:
    """The weight file of `part` that `start`, one of `STARTS` but "fresh", stands for, whether it is there or not."""
    return FORMS[BUNDLED].path(f"flow_{part}") if start == FLOW else FORMS[start].path(part)


def require_world(form: str) -> None:
    """Raises ValueError where this process has not the concepts of `form`: a judge has a class for each of them."""
    if form != FORM:
        raise ValueError(f"the {form} form has concepts of its own: set {VARIABLE}={form}")


def inherit(
    own: dict[str, torch.Tensor], state: dict[str, torch.Tensor], grown: dict[str, int]
) -> dict[str, torch.Tensor]:
    """`own` with another form's weights over it; `grown[key]` is the axis along which it may be the longer one.

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
