"""Checkpoints: one safetensors file each, whole or not there, with everything a run needs to go on as if never stopped.

Random numbers need no state (`draws`), so a checkpoint holds the learner, the losses so far and what the run was made
of. No pickle is written or read.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ...files.atomic import atomic_write_verified, require_writable
from .events import CheckpointFailed, CheckpointSaved

FORMAT = "contextual_inversion.checkpoint.1"
KEY, CHECKSUM = "contextual_inversion", "contextual_inversion.sha256"
KEPT = 2
"""Checkpoints that stay in the folder: the newest, and one in case a disk lost that."""

T = TypeVar("T")
log = logging.getLogger(__name__)

DAMAGE = (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError)
"""What taking over a state raises that is not whole or has other shapes."""


class DamagedCheckpointError(ValueError):
    """There is nothing whole to go on from; the message names the file."""


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
    """Give an optimizer back what its `state_dict()["state"]` was; its groups stay its own.

    Raises ValueError where a moment has another shape than what it is of.
    """
    entries = {int(index): value for index, value in moments.items()}  # a file has text for keys
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    for index, entry in entries.items():
        shape = parameters[index].shape
        for name, value in entry.items():
            # Adafactor's moments of rows and columns alone are narrower.
            whole = isinstance(value, torch.Tensor) and value.ndim and name not in ("row_var", "col_var")
            if whole and value.shape != shape:
                raise ValueError(f"{name} of number {index} has the shape {tuple(value.shape)}, not {tuple(shape)}")
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


def require_like(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    """Raises ValueError where one of `ours` has no counterpart of its shape: copying would stretch it in silence."""
    for name, value in ours.items():
        shape = tuple(theirs[name].shape)
        if shape != tuple(value.shape):
            raise ValueError(f"{name} has the shape {shape}, not {tuple(value.shape)}")


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
    path, text = checkpoint_path(folder, step), json.dumps(plain)
    header = {KEY: text, CHECKSUM: checksum(text, tensors)}
    atomic_write_verified(path, save(tensors, header), if_exists="replace")
    there = checkpoints_in(folder)
    for old in [*(one for one in there if _step(one) > step), *there[there.index(path) + KEPT :]]:
        old.unlink(missing_ok=True)
    return path


def written(step: int, save: Callable[[], Path]) -> CheckpointSaved | CheckpointFailed:
    """What came of `save`. A disk that fails is no reason to end the training that is to be saved."""
    try:
        return CheckpointSaved(step, save())
    except OSError as error:
        log.warning("Contextual Inversion: no checkpoint of step %d: %s", step, error)
        return CheckpointFailed(step, str(error))


def require_place(folder: Path | None, numbers: int = 0) -> None:
    """Raises OSError where no checkpoint of so many `numbers`, with their average and their optimizer's moments, can be
    written to `folder`: before the work, not after it."""
    if folder is not None:
        require_writable(folder, 4 * 4 * numbers)


def load_checkpoint(source: Path) -> Checkpoint:
    """Read a checkpoint file, or the newest whole one of a folder.

    Raises FileNotFoundError where there is none, DamagedCheckpointError where what is there is not a checkpoint.
    """
    return go_on_from(source, lambda checkpoint: checkpoint)


def go_on_from(source: Path, take: Callable[[Checkpoint], T]) -> T:
    """What `take` makes of a checkpoint file, or of the newest of a folder that is whole and that it can take over.

    A disk may damage the newest, so the one before it is kept for this. Those that were passed over are named in the
    log. Raises as `load_checkpoint`, and what `take` raises for a checkpoint of another training.
    """
    source = Path(source)
    paths = checkpoints_in(source) if source.is_dir() else [source]
    if not paths or not paths[0].exists():
        raise FileNotFoundError(f"no checkpoint at {source}")
    reasons = []
    for path in paths:
        try:
            taken = take(_read(path))
        except (CheckpointMismatchError, torch.cuda.OutOfMemoryError):
            raise
        except DAMAGE as error:
            reasons.append(_reason(path, error))
            continue
        for reason in reasons:
            log.warning("Contextual Inversion goes on from %s: %s", path.name, reason)
        return taken
    others = "; nor is an older one there" if len(paths) > 1 else ""
    raise DamagedCheckpointError(reasons[0] + others)


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, DamagedCheckpointError):
        return str(error)
    said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return f"{path} is not a whole checkpoint: {said[:150]}"


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


def checksum(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Of everything in a checkpoint, as hex digits."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


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
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        text = header.get(KEY, "{}")
        plain = json.loads(text)
        if plain.get("format") != FORMAT:
            raise DamagedCheckpointError(f"{path} is not a checkpoint of this program (format {plain.get('format')!r})")
        # Earlier versions wrote none.
        if CHECKSUM in header and header[CHECKSUM] != checksum(text, tensors):
            raise DamagedCheckpointError(f"{path} is not a whole checkpoint: the disk has changed it")
        state, losses = _unpack(plain["state"], tensors), _unpack(plain["losses"], tensors)
        return Checkpoint(plain["identity"], state, losses, plain["facts"])
    except (SafetensorError, OSError, *DAMAGE) as error:
        raise DamagedCheckpointError(_reason(path, error)) from error
