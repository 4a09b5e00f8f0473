"""A CLIP that knows a new word without any file: `embedding:name` and `<name>` in its prompts mean the concept."""

from __future__ import annotations

import copy
import logging
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import torch
from comfy.sd1_clip import SDTokenizer

from ...core.concept import Concept
from ...core.files import check_widths
from ...core.files.names import ALLOWED_PUNCTUATION
from .text import ENCODERS, text_widths

log = logging.getLogger(__name__)
IN_BRACKETS = re.compile(r"<([^<>\s]+)>")
UNSPACED = re.compile(r"(?:(?<=[^\s()])|(?<=\\[()]))embedding:")
"""ComfyUI finds a word at the beginning of a prompt, of a bracket that weighs, and behind a space; nowhere else."""
INSIDE_NAMES = ALLOWED_PUNCTUATION + "/\\"
"""Signs that belong to the name of a word or of an embedding file in a folder, and do not end it."""


def with_concept(clip: Any, concept: Concept) -> Any:
    """A clone of `clip` that knows `concept` by its name, beside every word and embedding file that it knew before.

    Raises ConceptFileError where the concept's vectors do not fit the text encoders.
    """
    check_widths(concept, text_widths(clip))
    clone = clip.clone()
    clone.tokenizer = copy.copy(clip.tokenizer)
    for attribute, part in vars(clip.tokenizer).items():
        if isinstance(part, SDTokenizer) and part.embedding_key in concept.vectors:
            setattr(clone.tokenizer, attribute, _knowing(part, concept.name, concept.vectors[part.embedding_key]))
    return clone


def _knowing(tokenizer: SDTokenizer, name: str, vectors: torch.Tensor) -> SDTokenizer:
    known = {**getattr(tokenizer, "concepts", {}), name: vectors.detach().float().cpu()}
    clone = copy.copy(tokenizer)
    if not isinstance(tokenizer, _KnowsConcepts):
        clone.__class__ = type(f"Concept{type(tokenizer).__name__}", (_KnowsConcepts, type(tokenizer)), {})
    clone.concepts = known
    if clone.embedding_directory is None:
        clone.embedding_directory = []  # None would switch `embedding:` off
    return clone


class _KnowsConcepts:
    """Goes before an SDTokenizer class: looks among `concepts` first and leaves the rest to it."""

    concepts: Mapping[str, torch.Tensor]

    def tokenize_with_weights(self, text: str, *args: Any, **kwargs: Any) -> Any:
        for lost in lost_words(text, self.concepts):
            if lost in self.inv_vocab.values():  # a sign of the template, as <think>
                continue
            log.warning(
                "Contextual Inversion: %s is read by letters, not as a word of %s, which knows %s",
                lost,
                self.embedding_key,
                _known(self.concepts),
            )
        chunks = super().tokenize_with_weights(bare_words(text, self.concepts), *args, **kwargs)
        if self.embedding_key in ENCODERS:
            return chunks
        # ComfyUI drops the line breaks that end a prompt's last piece where a word stands in it; a template ends so.
        breaks = text[len(text.rstrip("\n")) :]
        line_break = self.tokenizer(breaks)["input_ids"] if breaks else []
        last = chunks[-1]
        if line_break and any(isinstance(token[0], torch.Tensor) for token in last):
            self._end_with(last, line_break)
        return [[_comparable(token) for token in row] for row in chunks]

    def _end_with(self, row: list[tuple[Any, ...]], ids: list[int]) -> None:
        """Puts `ids` behind a row's last token, in the place of as much padding behind it, unless it ends so."""
        end = len(row)
        while end > 0 and isinstance(row[end - 1][0], int) and row[end - 1][0] == self.pad_token:
            end -= 1
        if not isinstance(row[end - 1][0], torch.Tensor) and row[end - 1][0] == ids[-1]:
            return
        row[end : end + len(ids)] = [(token, 1.0, *row[end - 1][2:]) for token in ids]

    def _try_get_embedding(self, embedding_name: str) -> tuple[torch.Tensor | None, str, str]:
        name = leading_name(embedding_name, self.concepts)
        if name is None:
            found = super()._try_get_embedding(embedding_name)
            if found[0] is None:
                log.warning(
                    "Contextual Inversion: embedding:%s is lost from the prompt, since %s knows no such word or file; "
                    "it knows %s. A name ends at a space or a punctuation mark",
                    found[1],
                    self.embedding_key,
                    _known(self.concepts),
                )
            return found
        rest = embedding_name[len(name) :]
        # What is behind the words of a language model is its template, to which the last line break belongs.
        return self.concepts[name], name, rest.strip() if self.embedding_key in ENCODERS else rest.lstrip()


def _comparable(token: tuple[Any, ...]) -> tuple[Any, ...]:
    """A row in ComfyUI's other form for it: the tokenizer of Qwen-Image compares tokens with numbers, which a tensor
    cannot be, so that `embedding:` of a file stops there with an error in 0.33."""
    first, *rest = token
    return ({"type": "embedding", "data": first}, *rest) if isinstance(first, torch.Tensor) else token


def bare_words(text: str, known: Mapping[str, Any]) -> str:
    """`<name>` of every known name as `embedding:name`, between the spaces that ComfyUI wants around it."""
    return IN_BRACKETS.sub(lambda match: f" embedding:{match[1]} " if match[1] in known else match[0], text)


def lost_words(text: str, known: Mapping[str, Any]) -> list[str]:
    """What of a prompt looks like a word of ours and is none: `<name>` that nobody knows (`<lora:file:1>` of other
    programs is no name), and known ones with no space before `embedding:`."""
    brackets = [
        f"<{name}>" for name in IN_BRACKETS.findall(text) if name not in known and not any(map(ends_name, name))
    ]
    found = (leading_name(text[match.end() :], known) for match in UNSPACED.finditer(text))
    return brackets + [f"embedding:{name} without a space before it" for name in found if name is not None]


def leading_name(text: str, known: Mapping[str, Any]) -> str | None:
    """The known name that `text` begins with as a whole word; punctuation may follow it."""
    for name in sorted(known, key=len, reverse=True):
        rest = text[len(name) :]
        # A dot or hyphen inside a word belongs to it: "gear.v2" and "gear-red" are other names than "gear".
        behind = rest.lstrip(".")
        if text.startswith(name) and (not behind or ends_name(behind[0])):
            return name
    return None


def ends_name(sign: str) -> bool:
    """Whether no name can go on with `sign`: a space, a punctuation mark or symbol of any script."""
    return sign not in INSIDE_NAMES and unicodedata.category(sign)[0] in "PSZC"


def _known(concepts: Mapping[str, Any]) -> str:
    names = sorted(concepts)
    return ", ".join(f"<{name}>" for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
