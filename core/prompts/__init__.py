"""Prompts with a place for the concept: their files, their built-in sets, and their tokens."""

from typing import TYPE_CHECKING

from ..later import later

if TYPE_CHECKING:
    from .parse import PromptFileError, parse_prompts, read_prompt_file
    from .sets import PromptSet, built_in_set, built_in_sets, prompt_set_from_file, prompt_set_from_text
    from .tokens import TokenizedPrompt, input_embeddings, tokenize_prompt

__getattr__ = later(
    __name__,
    {
        "parse": ("PromptFileError", "parse_prompts", "read_prompt_file"),
        "sets": ("PromptSet", "built_in_set", "built_in_sets", "prompt_set_from_file", "prompt_set_from_text"),
        "tokens": ("TokenizedPrompt", "input_embeddings", "tokenize_prompt"),
    },
)

__all__ = [
    "PromptFileError",
    "PromptSet",
    "TokenizedPrompt",
    "built_in_set",
    "built_in_sets",
    "input_embeddings",
    "parse_prompts",
    "prompt_set_from_file",
    "prompt_set_from_text",
    "read_prompt_file",
    "tokenize_prompt",
]
