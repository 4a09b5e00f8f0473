"""The words of a prompt as ComfyUI's tokenizers cut it: weights, embeddings and learned words understood."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import folder_paths
import torch
from comfy.sd1_clip import SDTokenizer

from ...core.prompts.words import END, PADDING, START, Piece, PromptWord, prompt_words
from .family_words import AUTO, family_words

MOST_WORDS = 1_000_000
"""More than any prompt has."""
IN_BRACKETS = re.compile(r"<[^<>\s]+>")
BEHIND = re.compile(r"\s+BREAK\s+")
"""Stands between prompts that were encoded apart and put one behind another, as ConditioningConcat does."""


def words_of(
    prompt: str, clip: Any, positions: int, text_encoder: str = AUTO, *, joint: bool = False
) -> tuple[list[PromptWord], int]:
    """`words_in` for a prompt of which `positions` were recorded; where that is not one prompt's number, of the prompts
    between BREAKs one behind another. Of `joint` attention, as `text_encoder` reads it (`family_words`), which takes a
    `clip`: raises ValueError without one."""
    if joint:
        if clip is None:
            raise ValueError(
                "Connect to `clip` the text encoders that the prompt was encoded with: this model has its own"
            )
        return family_words(prompt, clip, positions, text_encoder)
    found = words_in(prompt, clip)
    parts = BEHIND.split(prompt)
    return found if len(parts) == 1 or found[1] == positions else words_in(parts, clip)


def words_in(prompt: str | Sequence[str], clip: Any = None) -> tuple[list[PromptWord], int]:
    """The words of a prompt, or of several whose contexts lie one behind another, and how many positions that takes in
    the context: 77 for each chunk.

    `clip` is the text encoder that the prompt is encoded with; without one ComfyUI's own CLIP tokenizer is taken, which
    knows the files in the embeddings folders but no concept of ApplyConcept.

    Raises ValueError where the prompt seems to have such a concept and there is no `clip`: every word behind it would
    be looked for at the wrong positions.
    """
    parts = [prompt] if isinstance(prompt, str) else prompt
    pieces = [piece for number, part in enumerate(parts) for piece in _pieces_of(part, clip, number)]
    return prompt_words(pieces), len(pieces)


def _pieces_of(prompt: str, clip: Any, number: int) -> list[Piece]:
    tokenizer = _tokenizer(clip)
    names: list[str] = []
    unknown = IN_BRACKETS.findall(prompt)
    tokenizer._try_get_embedding = _noting(tokenizer._try_get_embedding, names, unknown)
    chunks = tokenizer.tokenize_with_weights(prompt, return_word_ids=True)
    if clip is None and unknown:
        raise ValueError(
            f"{unknown[0]} may be a word of Apply Concept. Connect to `clip` the text encoder that the prompt was "
            "encoded with."
        )
    known = _Names(names)
    pieces = [piece for chunk in chunks for piece in _pieces(tokenizer, chunk, known)]
    # ComfyUI numbers the words of every prompt from 1.
    return [piece._replace(word=piece.word + number * MOST_WORDS) for piece in pieces]


def _tokenizer(clip: Any) -> Any:
    if clip is None:
        return SDTokenizer(embedding_directory=folder_paths.get_folder_paths("embeddings"))
    found = [part for part in vars(clip.tokenizer).values() if isinstance(part, SDTokenizer)]
    if not found:
        raise ValueError(f"{type(clip.tokenizer).__name__} is not the tokenizer of a Stable Diffusion CLIP")
    return copy.copy(found[0])


def _noting(look_up: Any, names: list[str], unknown: list[str]) -> Any:
    """`_try_get_embedding` that notes the names that were found, and those that were not."""

    def noting(name: str) -> Any:
        embedding, found, rest = look_up(name)
        if embedding is not None:
            names.append(found.strip(",").removesuffix(".safetensors"))
        else:
            unknown.append(f"embedding:{found}")
        return embedding, found, rest

    return noting


class _Names:
    """The names of the embeddings in the order in which they come; ComfyUI numbers words, not embeddings."""

    seen: dict[int, str]

    def __init__(self, names: list[str]) -> None:
        self.rest, self.seen = names, {}

    def of(self, word: int) -> str:
        if word not in self.seen:
            self.seen[word] = self.rest.pop(0)
        return self.seen[word]


def _pieces(tokenizer: Any, chunk: list[tuple[Any, float, int]], names: _Names) -> list[Piece]:
    pieces, ended = [], False
    for position, (token, _, word) in enumerate(chunk):
        if ended:
            pieces.append(Piece(PADDING, "padding"))
        elif isinstance(token, torch.Tensor):
            pieces.append(Piece(names.of(word), name=True, word=word))
        elif position == 0 and token == tokenizer.start_token:
            pieces.append(Piece(START, "special"))
        elif token == tokenizer.end_token:
            pieces.append(Piece(END, "special"))
            ended = True
        else:
            pieces.append(Piece(tokenizer.inv_vocab[token]))
    return pieces
