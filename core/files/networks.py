"""What is in the file of a trained network, for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .errors import ConceptFileError
from .metadata import network_facts
from .reading import read_header

BELONGS_TO = {"contextualizer": "encoder", "tuning_encoder": "identity"}
"""Kind of file -> which of its facts names the model that it was trained for."""

DAMAGE = (KeyError, TypeError, ValueError, RuntimeError, AttributeError, AssertionError, ArithmeticError)
"""What a header that says anything at all can raise while a network is made of it."""


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


def damaged(path: Path, kind: str, error: Exception) -> ConceptFileError:
    """What to say of a network's file of which no network can be made."""
    return ConceptFileError(f"{path.name} is a damaged {kind}: {str(error)[:200]}")


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
        "kind": kind.replace("_", "-"),
        "numbers": sum(math.prod(entry.shape) for entry in header.tensors.values()),
        "belongs_to": facts.get(BELONGS_TO[kind]),
        "shape": facts.get("shape"),
        "provenance": facts.get("provenance"),
    }
