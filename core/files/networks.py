"""Files of trained networks: written and read back, read as untrainable float32, and described for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from .atomic import IfExists
from .errors import ConceptFileError
from .metadata import network_facts, read_network_facts, write_network_facts
from .reading import read_header, read_tensors
from .writing import narrowed, write_concept_file

BELONGS_TO = {"contextualizer": "encoder", "tuning_encoder": "identity"}
"""Kind of file -> which of its facts names the model that it was trained for."""
COMMANDS = {"contextualizer": "pretrain-contextualizer", "tuning_encoder": "pretrain-encoder"}
"""Kind of file -> the command that makes one."""
DAMAGE = (KeyError, TypeError, ValueError, RuntimeError, AttributeError, AssertionError, ArithmeticError)
"""What a header that says anything at all can raise while a network is made of it."""
Network = TypeVar("Network", bound=torch.nn.Module)


def save_network(
    kind: str,
    tensors: Mapping[str, torch.Tensor],
    facts: Mapping[str, Any],
    root: Path | str,
    name: str,
    *,
    dtype: torch.dtype,
    if_exists: IfExists,
) -> Path:
    """Write `root/name.safetensors` and return its path; read back and compared. Floating-point tensors are written in
    `dtype`, ids as int32. `facts` are JSON data.

    Raises ValueError for an unsafe name, ConceptFileError where float16 cannot hold a value, and as
    `atomic_write_verified`.
    """
    written = {
        key: narrowed(value, dtype, key) if value.is_floating_point() else value.cpu().to(torch.int32).contiguous()
        for key, value in tensors.items()
    }
    return write_concept_file(written, write_network_facts(kind, facts), root, name, if_exists)


def load_network(
    kind: str, path: Path, build: Callable[[Mapping[str, Any], dict[str, torch.Tensor]], Network]
) -> Network:
    """What `build(facts, tensors)` makes of a file, untrainable; it takes out of `tensors` what is no weight.

    Raises ConceptFileError where the file is damaged or something else.
    """
    tensors, metadata = read_tensors(path)
    facts = read_network_facts(path, metadata, kind, COMMANDS[kind])
    try:
        network = build(facts, tensors)
        network.load_state_dict(tensors)
    except DAMAGE as error:
        raise ConceptFileError(f"{path.name} is a damaged {_readable(kind)}: {str(error)[:200]}") from error
    return network.requires_grad_(False).eval()


def require_number(name: str, value: object, least: int, most: int) -> None:
    """Raises ValueError unless a header's `value` is a whole number within these bounds."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"its {name} is {str(value)[:40]}, not a whole number from {least} to {most}")


def require_built_of(tensors: Mapping[str, torch.Tensor], build: Callable[[], torch.nn.Module]) -> None:
    """Raises ValueError unless `tensors` are, by name and shape, the weights of what `build` makes.

    It is built without memory first, so a header that announces more than its file holds costs nothing. Before this,
    bound by the tensors whatever says how many modules are made.
    """
    with torch.device("meta"), _Unfilled():
        wanted = {name: tuple(value.shape) for name, value in build().state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"its header speaks of {_shape(wanted.get(name))} for {name!r} and the file holds {_shape(found.get(name))}"
        )


class _Unfilled(TorchFunctionMode):
    """Tensors that are made here keep no values: drawing "random" numbers without memory would import all of sympy."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.arange:
            return torch.empty(*args, dtype=torch.long)
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__"):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _shape(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else " x ".join(map(str, shape)) or "one number"


def describe_network(path: Path | str) -> dict[str, Any] | None:
    """Plain data about a contextualizer or tuning-encoder, from its header alone; None for any other file.

    Raises:
        ConceptFileError: as `read_header`.
    """
    path = Path(path)
    header = read_header(path)
    facts = network_facts(header.metadata)
    kind = str(facts.get("kind"))
    if kind not in BELONGS_TO:
        return None
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "kind": _readable(kind),
        "numbers": sum(math.prod(entry.shape) for entry in header.tensors.values()),
        "belongs_to": facts.get(BELONGS_TO[kind]),
        "shape": facts.get("shape"),
        "provenance": facts.get("provenance"),
    }


def _readable(kind: str) -> str:
    return kind.replace("_", "-")
