"""Prompt files: one prompt a line, one placeholder a prompt, and every mistake reported at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..concept import PLACEHOLDER
from ..models.protocol import TextEncoder
from ..wording import quoted
from .tokens import tokenize_prompt

ROOM = 2000
"""Characters of a message about many wrong lines; what shows it to people may cut it further."""
COMMENT = re.compile(r"(?:^|\s)#")
"""Begins a comment: at the start of a line or after a space, so that "C#" stays a word."""


class PromptFileError(ValueError):
    """A prompt file with mistakes. `problems` maps line numbers, from 1, to what is wrong there."""

    def __init__(self, source: str, problems: Mapping[int, str]) -> None:
        self.source = source
        self.problems = dict(sorted(problems.items()))
        super().__init__("\n".join([f"{source} cannot be used:", *self._lines(ROOM)]))

    def _lines(self, room: int) -> list[str]:
        """The first problems, as many as fit into `room` characters, and how many more there are."""
        every = [f"  line {line}: {problem}" for line, problem in self.problems.items()]
        shown = every[:1]
        for line in every[1:]:
            if sum(map(len, shown)) + len(line) > room:
                return [*shown, f"  and {len(every) - len(shown)} lines more"]
            shown.append(line)
        return shown


def parse_prompts(
    text: str,
    source: str = "the prompt list",
    *,
    encoders: Iterable[TextEncoder] = (),
    rows: int = 1,
    class_word: str | None = None,
) -> tuple[str, ...]:
    """The prompts in `text`, one a line, without blank lines and comments (`# ...`).

    With `encoders`, every prompt must fit each of them, filled with a concept of `rows` vectors and with `class_word`.

    Raises:
        PromptFileError: a line without exactly one `{}`, a repeated prompt, a prompt too long, or no prompt at all; all
            wrong lines together.
    """
    encoders = tuple(encoders)
    prompts: list[str] = []
    problems: dict[int, str] = {}
    first_line: dict[str, int] = {}
    for line, raw in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        prompt = strip_comment(raw)
        if not prompt:
            continue
        prompts.append(prompt)
        same = " ".join(prompt.casefold().split())  # encoders see neither case nor the number of spaces
        earlier = first_line.setdefault(same, line)
        problem = placeholder_problem(prompt)
        if problem is None and earlier != line:
            problem = f"{quoted(prompt)} repeats line {earlier}"
        if problem is None:
            problem = _length_problem(prompt, encoders, rows, class_word)
        if problem is not None:
            problems[line] = problem
    if not prompts:
        problems[1] = f"no prompt found; write one a line, such as 'a photo of a {PLACEHOLDER}'"
    if problems:
        raise PromptFileError(source, problems)
    return tuple(prompts)


def read_prompt_file(path: Path | str, **checks: Any) -> tuple[str, ...]:
    """`parse_prompts` of a UTF-8 text file; `checks` are its keyword arguments.

    Raises:
        PromptFileError: as `parse_prompts`, and where the file is missing or no text.
    """
    path = Path(path)
    return parse_prompts(text_of(path), path.name, **checks)


def text_of(path: Path) -> str:
    """What is in a UTF-8 text file, with or without a mark at its beginning, its lines ended in whatever way.

    Raises PromptFileError where it is missing or no such text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + error.object[: error.start].count(b"\n")
        raise PromptFileError(path.name, {line: "this is not UTF-8 text"}) from error
    except OSError as error:
        raise PromptFileError(path.name, {1: f"the file cannot be read: {error.strerror or error}"}) from error


def prompts_by_category(text: str) -> dict[str, tuple[str, ...]]:
    """The prompts under each one-word comment, as in `# background`: how the built-in sets name their categories."""
    categories: dict[str, list[str]] = {}
    current = ""
    for line in text.splitlines():
        heading = re.fullmatch(r"#\s*(\w+)\s*", line)
        if heading:
            current = heading[1]
        elif prompt := strip_comment(line):
            categories.setdefault(current, []).append(prompt)
    return {name: tuple(prompts) for name, prompts in categories.items()}


def strip_comment(line: str) -> str:
    """A line without its comment and the spaces around it."""
    return COMMENT.split(line, maxsplit=1)[0].strip()


def placeholder_problem(prompt: str) -> str | None:
    """What is wrong with the placeholders of a prompt, or None."""
    count = prompt.count(PLACEHOLDER)
    if count == 1:
        return None
    if count == 0:
        where = f"write {PLACEHOLDER} where the new word belongs (not S* or <name>)"
        return f"{quoted(prompt)} has no {PLACEHOLDER}; {where}"
    return f"{quoted(prompt)} has {PLACEHOLDER} {count} times; keep one"


def _length_problem(prompt: str, encoders: tuple[TextEncoder, ...], rows: int, class_word: str | None) -> str | None:
    for encoder in encoders:
        try:
            tokenize_prompt(encoder, prompt, rows=rows)
            if class_word is not None:
                tokenize_prompt(encoder, prompt, words=class_word)
        except ValueError as error:
            return str(error)
    return None
