"""What is there for one pass only, and must be there again when a checkpointed layer is recomputed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


class Replayable:
    """Marks a hook, or whatever an adapter puts in a `Place`, that is there for one pass only. A hook takes the
    keywords that the layer was called with."""


Place = tuple[Any, str]
"""An attribute of an object that may hold something `Replayable`."""

Slots = list[tuple[dict[Any, Any], dict[Any, bool], dict[Any, Any]]]
"""The hook dictionaries of modules, torch's marks of those hooks that take keywords, and the entries that are
`Replayable`."""


def replayed(
    run: Callable[..., Any], places: Sequence[Place] = (), *, of: torch.nn.Module | None = None
) -> Callable[..., Any]:
    """`run`, a layer that is checkpointed, or the forward `of` one, which from its second call on finds the hooks that
    it has now, and what is `Replayable` in the `places` that an adapter names."""
    replay, again = Replay(of or run, places), False

    def call(*arguments: Any, **keywords: Any) -> Any:
        nonlocal again
        if again:
            with replay.again():
                return run(*arguments, **keywords)
        again = True
        return run(*arguments, **keywords)

    return call


class Replay:
    """What is `Replayable` in every part of `module`, and in `places`, as it is now."""

    def __init__(self, module: Any, places: Sequence[Place] = ()) -> None:
        self._module = module if isinstance(module, torch.nn.Module) else torch.nn.Module()
        self._hooks = _replayable(self._module)
        self._places = [place for place in places if isinstance(getattr(*place), Replayable)]
        self._values = _values(self._places)

    @contextmanager
    def again(self) -> Iterator[None]:
        """That inside and nothing else of the kind; what was there on entry is there again on exit."""
        hooks, values = _replayable(self._module), _values(self._places)
        try:
            _exchange(hooks, self._hooks)
            _put(self._places, self._values)
            yield
        finally:
            _exchange(self._hooks, hooks)
            _put(self._places, values)


def _replayable(module: torch.nn.Module) -> Slots:
    found = []
    for part in module.modules():
        before = (part._forward_pre_hooks, part._forward_pre_hooks_with_kwargs)
        for slots, marks in ((part._forward_hooks, part._forward_hooks_with_kwargs), before):
            ours = {key: hook for key, hook in slots.items() if isinstance(hook, Replayable)}
            if ours:
                found.append((slots, marks, ours))
    return found


def _exchange(out: Slots, into: Slots) -> None:
    # Under their own keys, so that the handle that removes a hook still finds it.
    for slots, marks, hooks in out:
        for key in hooks:
            slots.pop(key, None)
            marks.pop(key, None)
    for slots, marks, hooks in into:
        slots.update(hooks)
        marks.update(dict.fromkeys(hooks, True))


def _values(places: Sequence[Place]) -> list[Any]:
    return [getattr(*place) for place in places]


def _put(places: Sequence[Place], values: Sequence[Any]) -> None:
    for (owner, name), value in zip(places, values, strict=True):
        setattr(owner, name, value)
