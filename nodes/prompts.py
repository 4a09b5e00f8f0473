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
from .comfy.folders import NONE, input_files, input_path
from .schema.sockets import CATEGORY, PREFIX, PromptsSocket

RICH = "rich "


class ContextPrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "ContextPrompts",
            display_name="Context Prompts",
            category=CATEGORY,
            description="The prompts that a regularizer tries the new word in. A built-in set, your own lines, a file "
            "and the text of another node add up; mistakes are reported with their line numbers.",
            inputs=[
                io.Combo.Input(
                    "built_in_set",
                    options=[*built_in_sets(), *(RICH + name for name in rich_sets()), NONE],
                    default="inanimate",
                    tooltip="100 prompts for a thing, 100 for a person or animal, or those that the demo model "
                    "understands (concept_world). The rich sets are for MLM: tens of thousands of sentences about a "
                    "pet or an object, put together as they are drawn; CoRe takes 400 of them.",
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
    def execute(cls, built_in_set: str, own_prompts: str, file: str, text: str = "") -> io.NodeOutput:
        return io.NodeOutput(gather(built_in_set, own_prompts, input_path(file), text))


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
        raise ValueError("There are no prompts: choose a built-in set, write some lines, or choose a file.")
    return joined(sets)
