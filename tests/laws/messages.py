"""How long a message is, wherever a machine keeps its files."""

from __future__ import annotations

import re

FOLDERS = re.compile(r"(?:/[^\s/:,'\"]+)+(?=/)")
"""All of a path but its last part."""
LONGEST = 400
"""Characters of a message that people read to its end."""


def own_length(message: str) -> int:
    """Characters of `message` without the folders of its paths."""
    return len(FOLDERS.sub("", message))
