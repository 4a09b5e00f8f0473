"""What can be said of a node's texts before the graph runs: ComfyUI marks their fields and runs nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

ASKED_FOR = {
    "class_word": "write the ordinary word for what is in the pictures, such as dog",
    "prompt": "write the prompt that this is about",
    "prompts": "write at least one prompt, one a line",
}
"""What to do where a field of this name is empty."""


def why_empty(**texts: str | None) -> bool | str:
    """What to do about the first of `texts` that has nothing in it; True where each has, or a link gives it later.

    For ComfyUI's `validate_inputs`, which marks every input that it names: the answer says which one is meant.
    """
    for name, text in texts.items():
        if text is not None and not str(text).strip():
            return f"{name} is empty: {ASKED_FOR[name]}"
    return True


def why_refused(reads: Callable[..., Any], *texts: Any) -> bool | str:
    """What `reads` says against `texts` in its ValueError; True for nothing, or where a link gives one later."""
    try:
        if not any(text is None for text in texts):
            reads(*texts)
    except ValueError as error:
        return str(error)
    return True


def first_reason(*answers: bool | str) -> bool | str:
    """The first of several answers that is a reason; True where none is."""
    return next((answer for answer in answers if answer is not True), True)
