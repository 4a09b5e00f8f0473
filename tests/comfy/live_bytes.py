"""Bytes of tensors that are alive while code runs, by what every operation of PyTorch gives out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Inside, `peak` is the most bytes that tensors made here had at once, of those that `wanted` wants; storages of
    those `apart` were there before."""

    def __init__(self, wanted: Callable[[torch.Tensor], bool], apart: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.wanted, self.peak = wanted, 0
        self._before = {_key(one) for one in apart}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = self._before | {_key(one) for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, torch.Tensor) and _key(one) not in known and self.wanted(one):
                storage = one.untyped_storage()
                self._alive[_key(one)] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: value for key, value in self._alive.items() if not value[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return out


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
