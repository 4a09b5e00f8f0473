"""Weights of ComfyUI models: on the device, fit for autograd, and afterwards as they were."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_management as management
import comfy.utils
import torch

ROOM = 3 * 2**30
"""Bytes that a training of a large model needs beside the weights (docs/models.md, "Memory")."""
EVERYTHING = 1e20
"""Bytes asked for besides the weights: more than there are, so that ComfyUI moves every other model out of the way."""


def plain_patcher(patcher: Any) -> Any:
    """The patcher itself, or for one that streams weights on demand a clone that holds them, which training needs.

    Raises ValueError where that would have to be loaded anew and nobody knows from where.
    """
    is_dynamic = getattr(patcher, "is_dynamic", None)
    if is_dynamic is None or not is_dynamic():
        return patcher
    if patcher.cached_patcher_init is None:
        raise ValueError(
            f"{type(patcher.model).__name__} came from a loader that cannot load it a second time, as is needed while "
            "ComfyUI streams weights: use one of ComfyUI's own loaders, or start ComfyUI with --disable-dynamic-vram"
        )
    return patcher.clone(disable_dynamic=True)


def base_weight(patcher: Any, key: str) -> torch.Tensor:
    """A weight without the patcher's own patches, loaded or not."""
    backup = patcher.backup.get(key)
    return comfy.utils.get_attr(patcher.model, key) if backup is None else backup.weight


def patches_digest(patcher: Any) -> str:
    """16 hex digits of all weight patches (LoRAs, merges) on a patcher, by strength and content; "" without any."""
    found = hashlib.blake2b(digest_size=8)
    for key in sorted(patcher.patches, key=str):
        _feed(found, [str(key), patcher.patches[key]])
    return found.hexdigest() if patcher.patches else ""


def _feed(found: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        found.update(str(tuple(value.shape)).encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, list | tuple):
        for part in value:
            _feed(found, part)
    elif hasattr(value, "weights"):  # ComfyUI's weight adapters
        _feed(found, [type(value).__name__, value.weights])
    else:  # a function says nothing that stays the same over restarts
        found.update((type(value).__name__ if callable(value) else repr(value)).encode())


def load(patchers: Sequence[Any], *, alone: bool) -> None:
    """Weights with their patches on their devices, whole; `alone` moves all other models out."""
    with torch.no_grad():
        required = EVERYTHING if alone else 0
        management.load_models_gpu(list(patchers), memory_required=required, force_full_load=True)
        for patcher in patchers:
            # --novram leaves weights behind all the same and casts each into a buffer that the next one overwrites,
            # while a backward pass still needs it.
            if patcher.model.model_lowvram:
                patcher.partially_load(patcher.load_device, EVERYTHING)


def fit_together(patchers: Sequence[Any]) -> bool:
    """Whether the weights of models of one device leave room there for a training."""
    needed = sum(patcher.model_size() for patcher in patchers)
    return needed + ROOM <= management.get_total_memory(patchers[0].load_device)


@contextmanager
def loaded(patchers: Sequence[Any]) -> Iterator[None]:
    """Loaded inside; those that were not loaded before are unloaded and unpatched on exit."""
    before = [any(entry.model is patcher for entry in management.current_loaded_models) for patcher in patchers]
    try:
        load(patchers, alone=True)
        yield
    finally:
        for patcher, was_loaded in zip(patchers, before, strict=True):
            if not was_loaded:
                unload(patcher)


def unload(patcher: Any) -> None:
    """Unpatched and off its device, it and every clone."""
    others = [
        entry
        for entry in management.current_loaded_models
        if entry.model is not None and entry.model.model is not patcher.model
    ]
    management.free_memory(EVERYTHING, patcher.load_device, keep_loaded=others)


@contextmanager
def normal_tensors(modules: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Normal tensors over the same storage in place of inference tensors; the very same ones back on exit.

    Nodes run in inference mode, so what they load cannot be saved for a backward pass, not even outside that mode.
    """
    swapped: list[tuple[dict[str, Any], str, torch.Tensor, torch.Tensor]] = []
    seen: dict[int, torch.Tensor] = {}
    try:
        for module in modules:
            for part in module.modules():
                for slots in (part._parameters, part._buffers):
                    for name, value in list(slots.items()):
                        if value is None or not value.is_inference():
                            continue
                        if id(value) not in seen:
                            seen[id(value)] = as_normal(value)
                        slots[name] = seen[id(value)]
                        swapped.append((slots, name, value, seen[id(value)]))
        yield
    finally:
        for slots, name, value, normal in swapped:
            # A weight that somebody moved or replaced meanwhile is the one in use now: leave it.
            if slots[name] is normal and normal.data_ptr() == value.data_ptr():
                slots[name] = value


def as_normal(value: torch.Tensor) -> torch.Tensor:
    """A normal tensor that shares an inference tensor's storage; a copy for tensors that are more than a storage."""
    with torch.inference_mode(False), torch.no_grad():
        if type(value.data) is torch.Tensor:
            shared = torch.empty(0, dtype=value.dtype, device=value.device)
            shared.set_(value.untyped_storage(), value.storage_offset(), value.size(), value.stride())
        else:
            shared = value.data.clone()
        if not isinstance(value, torch.nn.Parameter):
            return shared
        normal = torch.nn.Parameter(shared, requires_grad=False)
        normal.__dict__.update(value.__dict__)
        return normal
