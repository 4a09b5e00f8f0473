"""Reading and writing the tiny models' weights: fp16 safetensors with a header that says where they come from."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .token_table import IDS_KEY, ROWS_KEY, TABLE_KEY, unpack

FOLDER = Path(__file__).parent / "weights"
"""Where the bundled weights are."""


def tiny_weights_path(part: str) -> Path:
    """Where the file of `part` ("unet", "text_encoder", "vae", "image_encoder", "judge", ...) is."""
    return FOLDER / f"{part}.safetensors"


def read_weights(part: str) -> dict[str, torch.Tensor]:
    """State dict of `part` in fp32, in the diffusers or transformers layout; the token table is rebuilt in full.

    Raises FileNotFoundError when the file is not there.
    """
    return read_tensors(tiny_weights_path(part))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """State dict in a file of `write_tensors`, as `read_weights` gives it. Raises FileNotFoundError without it."""
    if not path.exists():
        raise FileNotFoundError(f"the tiny model's weights are missing: {path.name}; see docs/tiny_model.md")
    with safe_open(path, "pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
    if ROWS_KEY in state:
        state[TABLE_KEY] = unpack(state)
        del state[IDS_KEY], state[ROWS_KEY]
    return {key: value.float() for key, value in state.items()}


def trained_rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (n,) and rows (n, d) of the tokens that the tiny text encoder has learned; the other rows are noise.

    Raises FileNotFoundError when its file is not there.
    """
    path = tiny_weights_path("text_encoder")
    if not path.exists():
        raise FileNotFoundError(f"the tiny model's weights are missing: {path.name}; see docs/tiny_model.md")
    with safe_open(path, "pt") as file:
        return file.get_tensor(IDS_KEY).long(), file.get_tensor(ROWS_KEY)


def write_tensors(path: Path, state: dict[str, torch.Tensor], metadata: dict[str, str]) -> Path:
    """Write floating-point tensors as fp16 (ids stay integers), whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        k: (v.detach().cpu().half() if v.is_floating_point() else v.cpu()).contiguous() for k, v in state.items()
    }
    fresh = path.with_suffix(".new")
    save_file(tensors, fresh, metadata={"format": "pt", **metadata})
    fresh.chmod(0o644)
    fresh.replace(path)
    return path


def fingerprint(parts: tuple[str, ...] = ("unet", "text_encoder", "vae")) -> str:
    """Hash of the weight files of `parts`: changes with any of them, and not with where they lie."""
    digest = hashlib.sha256()
    for part in parts:
        path = tiny_weights_path(part)
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()[:16]
