"""Values in messages for people: short whatever they are, so that every error can be read at one look."""

from __future__ import annotations

from collections.abc import Iterable

MOST = 400
"""Characters of a message; more is not read."""
GAP = " ... "


def quoted(value: object, most: int = 100) -> str:
    """`repr`, cut in the middle where it is long; what cannot be encoded is escaped."""
    return shortened(repr(value).encode("utf-8", "backslashreplace").decode(), most)


def listed(names: Iterable[str], room: int = 160) -> str:
    """Names between commas, as many as fit into `room` characters, and how many more there are."""
    every = list(names)
    shown, used = [], 0
    for name in every:
        used += len(name) + 2
        if shown and used > room:
            break
        shown.append(shortened(name, room))
    more = len(every) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


def shortened(message: str, most: int = MOST - 1) -> str:
    """`message` in at most `most` characters: its beginning says what is wrong, its end what to do."""
    if len(message) <= most:
        return message
    tail = (most - len(GAP)) // 3
    return message[: most - len(GAP) - tail] + GAP + message[len(message) - tail :]
