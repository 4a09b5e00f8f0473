"""Prompts that surround a new word with context while it is learned."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..core.prompts.sets import PromptSet, built_in_set, built_in_sets, prompt_set_from_file, prompt_set_from_text
from .sockets import CATEGORY, PREFIX, PromptsSocket

NONE = "none"


class ContextPrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "ContextPrompts",
            display_name="Context Prompts",
            category=CATEGORY,
            description="The prompts that a regularizer tries the new word in. A built-in set, your own lines and a "
            "file add up; mistakes are reported with their line numbers.",
            inputs=[
                io.Combo.Input(
                    "built_in_set",
                    options=[*built_in_sets(), NONE],
                    default="inanimate",
                    tooltip="100 prompts for a thing, 100 for a person or animal, or those that the demo model "
                    "understands (concept_world).",
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
                    options=[NONE, *_text_files()],
                    default=NONE,
                    tooltip="A .txt file in ComfyUI's input folder, written like own_prompts.",
                ),
            ],
            outputs=[PromptsSocket.Output(display_name="prompts", tooltip="The checked prompts, each of them once.")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: object) -> object:
        # A file that was edited counts as another input.
        path = _path(file)
        return path.read_bytes() if path is not None and path.is_file() else None

    @classmethod
    def execute(cls, built_in_set: str, own_prompts: str, file: str) -> io.NodeOutput:
        return io.NodeOutput(gather(built_in_set, own_prompts, _path(file)))


def gather(name: str, own_prompts: str, path: Path | None) -> PromptSet:
    """A built-in set (or `NONE`), own lines and a file as one set without repetitions.

    Raises ValueError where there is nothing at all, PromptFileError for lines that cannot be used.
    """
    sets = [built_in_set(name)] if name != NONE else []
    if own_prompts.strip():
        sets.append(prompt_set_from_text(own_prompts, "own_prompts"))
    if path is not None:
        sets.append(prompt_set_from_file(path))
    if not sets:
        raise ValueError("There are no prompts: choose a built-in set, write some lines, or choose a file.")
    return PromptSet(
        " + ".join(one.name for one in sets),
        tuple(dict.fromkeys(prompt for one in sets for prompt in one.prompts)),
        " + ".join(one.source for one in sets),
    )


def _text_files() -> list[str]:
    folder = Path(folder_paths.get_input_directory())
    return sorted(path.name for path in folder.glob("*.txt") if path.is_file())


def _path(file: str) -> Path | None:
    # The name alone: what is chosen lies in the input folder whatever a hand-written workflow says.
    return None if file == NONE else Path(folder_paths.get_input_directory()) / Path(file).name
