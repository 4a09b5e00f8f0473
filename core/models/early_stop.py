"""A pass that ends where what is wanted of it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch

Watched = tuple[torch.nn.Module, Callable[[Any], Iterable[torch.Tensor]]]
"""A module, and what of its output is wanted."""


class _Seen(Exception):
    """Raised behind the last module that is watched: what comes after it has nothing to add."""


def outputs_until(run: Callable[[], object], watched: Sequence[Watched]) -> list[torch.Tensor]:
    """What is wanted of the `watched` modules' outputs, in the order in which `run` calls them. The pass ends behind
    the last of `watched`. Hooks see the values and change none."""
    found: list[torch.Tensor] = []

    def hook(wanted: Callable[[Any], Iterable[torch.Tensor]], last: bool) -> Callable[..., None]:
        def see(_: Any, __: Any, output: Any) -> None:
            found.extend(wanted(output))
            if last:
                raise _Seen

        return see

    hooks = [
        module.register_forward_hook(hook(wanted, number == len(watched)))
        for number, (module, wanted) in enumerate(watched, 1)
    ]
    try:
        with suppress(_Seen):
            run()
    finally:
        for one in hooks:
            one.remove()
    return found


def itself(output: torch.Tensor) -> tuple[torch.Tensor]:
    """All of an output that is one tensor."""
    return (output,)
