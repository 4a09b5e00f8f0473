"""What autograd keeps for the backward pass, as it was when it was kept, also where code writes into it afterwards.

PyTorch has `allow_mutation_on_saved_tensors` for that. It looks at every operation, of backward passes too, which takes
most of the time of a small model, and its tables grow as long as it is held. Here only calls that write are looked at,
and what they would overwrite is copied first; a write that was not seen is an error in the backward pass and never a
wrong gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import ref

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

UNSEEN = (
    "a tensor that the backward pass needs was written into by code that this pack does not see: train without the "
    "node or the option that does that"
)


class _Place:
    """Where autograd finds a tensor again; `version` is None once it is a copy of its own."""

    __slots__ = ("__weakref__", "tensor", "version")

    def __init__(self, tensor: torch.Tensor) -> None:
        # Without its graph: an output that is kept would keep itself alive.
        self.tensor, self.version = tensor.detach(), None if tensor.is_inference() else tensor._version


class Kept:
    """The tensors that autograd keeps at the moment, by their storage."""

    def __init__(self) -> None:
        self._places: dict[int, set[ref[_Place]]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def pack(self, tensor: torch.Tensor) -> _Place:
        place, storage = _Place(tensor), tensor.untyped_storage().data_ptr()
        self._places.setdefault(storage, set()).add(ref(place, lambda gone: self._forget(storage, gone)))
        return place

    def unpack(self, place: _Place) -> torch.Tensor:
        """Raises RuntimeError where it is no longer what was kept."""
        if place.version is not None and place.tensor._version != place.version:
            raise RuntimeError(UNSEEN)
        return place.tensor

    @torch.no_grad()
    def before_writing(self, tensor: torch.Tensor) -> None:
        """Copies all that is kept of the storage of `tensor`."""
        for known in self._places.pop(tensor.untyped_storage().data_ptr(), ()):
            place = known()
            if place is not None:
                place.tensor, place.version = place.tensor.clone(), None

    def _forget(self, storage: int, gone: ref[_Place]) -> None:
        places = self._places.get(storage)
        if places is not None:
            places.discard(gone)
            if not places:
                del self._places[storage]


_HELD: list[Kept] = []
"""Those in force, the innermost last."""


@contextmanager
def kept_for_backward() -> Iterator[Kept]:
    """Around forward and backward passes; forward passes have to run inside `Writes` beside it."""
    kept = Kept()
    _HELD.append(kept)
    try:
        with saved_tensors_hooks(kept.pack, kept.unpack):
            yield kept
    finally:
        _HELD.remove(kept)


class Writes(TorchFunctionMode):
    """Lets code write into what autograd keeps, and drops `out=`, which it does not allow: whoever gives it uses what
    is returned."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if "out" in given:
            given = {key: value for key, value in given.items() if key != "out"}
        if _HELD and args and (_writes(func) or given.get("inplace")):
            for target in args[0] if isinstance(args[0], list | tuple) else args[:1]:
                if isinstance(target, torch.Tensor):
                    _HELD[-1].before_writing(target)
        return func(*args, **given)


_KNOWN: dict[Callable[..., Any], bool] = {}


def _writes(function: Callable[..., Any]) -> bool:
    """Whether a function changes its first argument, by its name, as PyTorch has it for all of them."""
    found = _KNOWN.get(function)
    if found is None:
        name = getattr(function, "__name__", "")
        special = name == "__setitem__" or name.strip("_") in _IN_PLACE
        found = _KNOWN[function] = special or (name.endswith("_") and not name.endswith("__"))
    return found


_IN_PLACE = {f"i{name}" for name in ("add", "sub", "mul", "div", "truediv", "floordiv", "mod", "pow", "and", "or")}
_IN_PLACE |= {"ixor", "ilshift", "irshift"}
