"""A generator of events that trains between them, handed out so that its reader keeps its own autograd mode."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

from ...models.frozen import autograd

E = TypeVar("E")
S = TypeVar("S", bound="EventStream[Any]")


class EventStream(Iterator[E], Generic[E]):
    """Iterate it, or use it in a `with`; ceasing to iterate and closing it gives the model back as it was."""

    def __init__(self, events: Generator[E, None, None]) -> None:
        self._events = events

    def __next__(self) -> E:
        # Entered anew for every event: a generator that held the mode would leave its reader in it.
        with autograd():
            return next(self._events)

    def close(self) -> None:
        """End now."""
        with autograd():
            self._events.close()

    def __enter__(self: S) -> S:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
