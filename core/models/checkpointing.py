"""Running a block again in the backward pass instead of keeping what it computed, with the gradient that keeping gives.

torch.utils.checkpoint, in its non-reentrant form, gives a wrong gradient without a word where the block writes into a
tensor that autograd has saved: what would raise an error without it. Here that is noticed and set right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import get_device_states, set_device_states

Save = Callable[[torch.Tensor], torch.Tensor]


def checkpoint(run: Callable[..., Any], *inputs: Any) -> Any:
    """`run(*inputs)`, of which only the inputs are kept; `run` is called again when a gradient goes through it.

    The second call has the random numbers and the autocast of the first. Raises RuntimeError in the backward pass where
    an input has been written into since.
    """
    if not torch.is_grad_enabled():
        return run(*inputs)
    block = _Block(run, inputs)
    with saved_tensors_hooks(block.pack, block.unpack):
        return run(*inputs)


class _Place:
    """Where a tensor would be, were it kept."""

    __slots__ = ("__weakref__",)


class _Block:
    """One call, and what it computed once it has run again."""

    def __init__(self, run: Callable[..., Any], inputs: Sequence[Any]) -> None:
        self.run, self.inputs = run, inputs
        self.versions = [_version(value) for value in inputs]
        self.surroundings = _Surroundings(inputs)
        self.places: list[ref[_Place]] = []
        self.kept: WeakKeyDictionary[_Place, torch.Tensor] = WeakKeyDictionary()

    def pack(self, _: torch.Tensor) -> _Place:
        place = _Place()
        self.places.append(ref(place))
        return place

    def unpack(self, place: _Place) -> torch.Tensor:
        if place not in self.kept:
            saved, changed = self._again(torch.Tensor.detach)
            if changed:
                # As they were when they were saved, and not as the block has left them.
                saved, _ = self._again(lambda tensor: tensor.detach().clone())
            if len(saved) != len(self.places):
                raise RuntimeError(
                    f"a checkpointed block kept {len(self.places)} tensors at first and {len(saved)} when it ran "
                    "again: it must do the same twice; train without gradient_checkpointing"
                )
            for known, tensor in zip(self.places, saved, strict=True):
                at = known()
                if at is not None:
                    self.kept[at] = tensor
        return self.kept[place]

    def _again(self, save: Save) -> tuple[list[torch.Tensor], bool]:
        """What the block has autograd save, and whether any of it was written into afterwards."""
        if [_version(value) for value in self.inputs] != self.versions:
            raise RuntimeError(
                "what goes into a checkpointed block was changed in place after it had run, so its gradient cannot be "
                "computed; train without gradient_checkpointing, or without the node that does that"
            )
        saved: list[torch.Tensor] = []
        noted: list[tuple[torch.Tensor, int]] = []

        def keep(tensor: torch.Tensor) -> None:
            noted.append((tensor.detach(), tensor._version))
            saved.append(save(tensor))

        with self.surroundings.again(), torch.enable_grad(), saved_tensors_hooks(keep, _never):
            self.run(*self.inputs)
        return saved, any(tensor._version != version for tensor, version in noted)


def _never(_: Any) -> torch.Tensor:
    raise RuntimeError("the second run of a checkpointed block has no backward pass of its own")


def _version(value: Any) -> int | None:
    """How often a tensor has been written into; autograd counts, save in inference mode."""
    return value._version if isinstance(value, torch.Tensor) and not value.is_inference() else None


class _Surroundings:
    """The random numbers and the autocast under which a block ran."""

    def __init__(self, inputs: Sequence[Any]) -> None:
        tensors = [value for value in inputs if isinstance(value, torch.Tensor)]
        kinds = {tensor.device.type for tensor in tensors} | {"cpu"}
        self.casts = {kind: _autocast(kind) for kind in kinds if torch.amp.is_autocast_available(kind)}
        self.numbers = torch.get_rng_state()
        self.others = [kind for kind in kinds if kind != "cpu" and _draws_its_own(kind)]
        self.devices, self.states = get_device_states(*tensors) if self.others else ([], [])

    @contextmanager
    def again(self) -> Iterator[None]:
        kind = self.others[0] if self.others else "cuda"
        with torch.random.fork_rng(self.devices, device_type=kind), ExitStack() as stack:
            torch.set_rng_state(self.numbers)
            if self.others:
                set_device_states(self.devices, self.states, device_type=kind)
            for name, settings in self.casts.items():
                stack.enter_context(torch.autocast(name, **settings))
            yield


def _autocast(kind: str) -> dict[str, Any]:
    return {
        "enabled": torch.is_autocast_enabled(kind),
        "dtype": torch.get_autocast_dtype(kind),
        "cache_enabled": torch.is_autocast_cache_enabled(),
    }


def _draws_its_own(kind: str) -> bool:
    """Whether a device of this kind is there and has random numbers of its own."""
    module = getattr(torch, kind, None)
    return bool(getattr(module, "is_initialized", lambda: False)())
