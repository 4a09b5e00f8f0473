"""Checkpoints: one safetensors file each, whole or not there, with everything a run needs to go on as if never stopped.

Random numbers need no state (`draws`), so a checkpoint holds the learner, the losses so far and what the run was made
of. No pickle is written or read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ...files.atomic import atomic_write_verified

FORMAT = "contextual_inversion.checkpoint.1"
KEPT = 2
"""Checkpoints that stay in the folder: the newest, and one in case a disk lost that."""


class CheckpointMismatchError(ValueError):
    """The checkpoint belongs to another training; the message names every item that differs."""


@dataclass(frozen=True)
class Checkpoint:
    """`identity` decides the numbers of a run, `state` is the learner's, `losses` (done,) per name."""

    identity: Mapping[str, Any]
    state: Mapping[str, Any]
    losses: Mapping[str, torch.Tensor]
    facts: Mapping[str, Any]


def restore_optimizer(optimizer: torch.optim.Optimizer, moments: Mapping[Any, Any]) -> None:
    """Give an optimizer back what its `state_dict()["state"]` was; its groups stay its own."""
    entries = {int(index): value for index, value in moments.items()}  # a file has text for keys
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:06d}.safetensors"


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints of a folder, newest step first."""
    found = (path for path in folder.glob("step_*.safetensors") if path.stem.removeprefix("step_").isdecimal())
    return sorted(found, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def save_checkpoint(folder: Path, step: int, checkpoint: Checkpoint) -> Path:
    """Write atomically, then remove all but the newest few. Returns the file's path; raises OSError.

    Those of later steps go too: they are of an earlier run, or of one that went back, and would otherwise count as
    newer than this one.
    """
    tensors: dict[str, torch.Tensor] = {}
    plain = {
        "format": FORMAT,
        "identity": checkpoint.identity,
        "facts": checkpoint.facts,
        "state": _pack(checkpoint.state, "state", tensors),
        "losses": _pack(checkpoint.losses, "losses", tensors),
    }
    path = checkpoint_path(folder, step)
    atomic_write_verified(path, save(tensors, {"contextual_inversion": json.dumps(plain)}), if_exists="replace")
    there = checkpoints_in(folder)
    for old in [*(one for one in there if _step(one) > step), *there[there.index(path) + KEPT :]]:
        old.unlink(missing_ok=True)
    return path


def load_checkpoint(source: Path) -> Checkpoint:
    """Read a checkpoint file, or the newest readable one of a folder.

    Raises FileNotFoundError where there is none, ValueError where what is there is not a checkpoint.
    """
    source = Path(source)
    paths = checkpoints_in(source) if source.is_dir() else [source]
    if not paths or not paths[0].exists():
        raise FileNotFoundError(f"no checkpoint at {source}")
    for path in paths[:-1]:
        try:
            return _read(path)
        except ValueError:
            continue  # a disk may lose the newest file; the one before it is kept for this
    return _read(paths[-1])


def require_same_run(identity: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Raises CheckpointMismatchError that names each item of `identity` that the checkpoint has otherwise."""
    here, there = json.loads(json.dumps(identity)), checkpoint.identity
    differing = [
        f"{key} (checkpoint {there.get(key)!r}, now {here.get(key)!r})"
        for key in sorted({*here, *there})
        if here.get(key) != there.get(key)
    ]
    if differing:
        raise CheckpointMismatchError("this checkpoint belongs to another training: " + "; ".join(differing))


def _pack(value: Any, key: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The tree as JSON data, its tensors put aside in `tensors`."""
    if isinstance(value, torch.Tensor):
        tensors[key] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": key}
    if isinstance(value, Mapping):
        return {"tree": {str(name): _pack(item, f"{key}.{name}", tensors) for name, item in value.items()}}
    if isinstance(value, list | tuple):
        return {"list": [_pack(item, f"{key}.{index}", tensors) for index, item in enumerate(value)]}
    return {"value": value}


def _unpack(packed: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Any:
    ((kind, value),) = packed.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "tree":
        return {name: _unpack(item, tensors) for name, item in value.items()}
    if kind == "list":
        return [_unpack(item, tensors) for item in value]
    return value


def _read(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            plain = json.loads((file.metadata() or {}).get("contextual_inversion", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if plain.get("format") != FORMAT:
            raise ValueError(f"{path} is not a checkpoint of this program (format {plain.get('format')!r})")
        state, losses = _unpack(plain["state"], tensors), _unpack(plain["losses"], tensors)
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a whole checkpoint: {error}") from error
    return Checkpoint(plain["identity"], state, losses, plain["facts"])
