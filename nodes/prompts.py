"""Prompts that surround a new word with context while it is learned."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from ..core.prompt_sets import rich_set, rich_sets
from ..core.prompts.sets import (
    PromptSet,
    built_in_set,
    built_in_sets,
    joined,
    prompt_set_from_file,
    prompt_set_from_text,
)
from ..core.prompts.written import without_bullets
from ..core.wording import listed, quoted
from .comfy.folders import NONE, input_files, input_path
from .schema.before_run import why_refused
from .schema.sockets import PREFIX, TRAIN, PromptsSocket, searched_as

RICH = "rich "
NO_PROMPTS = "There are no prompts: choose a built-in set, write some lines, or choose a file."


class ContextPrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "ContextPrompts",
            display_name="Context Prompts",
            category=TRAIN,
            search_aliases=searched_as(
                "prompt list, caption, captions, training prompts, regularization prompts, prompts from file"
            ),
            description="The prompts that a regularizer tries the new word in. A built-in set, your own lines, a file "
            "and the text of another node add up; mistakes are reported with their line numbers.",
            inputs=[
                io.Combo.Input(
                    "built_in_set",
                    options=offered_sets(),
                    default="inanimate",
                    tooltip="inanimate: 100 prompts for a thing. animate: 100 for a person or animal. concept_world: "
                    "those that the demo model understands. rich: tens of thousands of sentences, for MLM.",
                ),
                io.String.Input(
                    "own_prompts",
                    default="",
                    multiline=True,
                    placeholder="a photo of a {} in my garden",
                    tooltip="Prompts for this one concept: one a line, {} where the new word goes, # begins a comment.",
                ),
                io.Combo.Input(
                    "file",
                    options=[NONE, *input_files(".txt")],
                    default=NONE,
                    tooltip="A .txt file in ComfyUI's input folder, written like own_prompts.",
                ),
                io.String.Input(
                    "text",
                    default="",
                    optional=True,
                    force_input=True,
                    tooltip="More prompts from any node that gives text, such as a language model: one a line, {} "
                    "where the new word goes. A list's bullets and numbers are left out.",
                ),
            ],
            outputs=[PromptsSocket.Output(display_name="prompts", tooltip="The checked prompts, each of them once.")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: object) -> object:
        # A file that was edited counts as another input.
        path = input_path(file)
        return path.read_bytes() if path is not None and path.is_file() else None

    @classmethod
    def validate_inputs(
        cls,
        built_in_set: str | None = None,
        own_prompts: str | None = None,
        file: str | None = None,
        text: str | None = "",
    ) -> bool | str:
        return why_refused(require_usable, built_in_set, own_prompts, file, text)

    @classmethod
    def execute(cls, built_in_set: str, own_prompts: str, file: str, text: str = "") -> io.NodeOutput:
        return io.NodeOutput(gather(built_in_set, own_prompts, input_path(file), text))


def offered_sets() -> list[str]:
    return [*built_in_sets(), *(RICH + name for name in rich_sets()), NONE]


def require_usable(name: str, own_prompts: str, file: str, text: str) -> None:
    """What can be known of a choice before the graph runs, which ComfyUI leaves to the node where it asks the node.

    Raises ValueError that names the input.
    """
    if name not in offered_sets():
        raise ValueError(f"built_in_set is {quoted(name)}; choose one of {listed(offered_sets())}")
    path = input_path(file)
    if path is not None and not path.is_file():
        raise ValueError(f"file: there is no {quoted(file)} in ComfyUI's input folder; choose another, or {NONE}")
    if own_prompts.strip():
        prompt_set_from_text(own_prompts, "own_prompts")
    elif name == NONE and path is None and not text.strip():
        raise ValueError(NO_PROMPTS)


def gather(name: str, own_prompts: str, path: Path | None, text: str = "") -> PromptSet:
    """A built-in or rich set (or `NONE`), own lines, a file and a text as one set without repetitions.

    Raises ValueError where there is nothing at all, PromptFileError for lines that cannot be used.
    """
    sets = []
    if name != NONE:
        sets.append(rich_set(name.removeprefix(RICH)) if name.startswith(RICH) else built_in_set(name))
    if own_prompts.strip():
        sets.append(prompt_set_from_text(own_prompts, "own_prompts"))
    if path is not None:
        sets.append(prompt_set_from_file(path))
    if text.strip():
        sets.append(prompt_set_from_text(without_bullets(text), "text"))
    if not sets:
        raise ValueError(NO_PROMPTS)
    return joined(sets)
