"""A CLIP that knows a new word without any file: `embedding:name` and `<name>` in its prompts mean the concept."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from comfy.sd1_clip import SDTokenizer

from ...core.concept import Concept
from ...core.files import check_widths
from .text import text_widths


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
        return super().tokenize_with_weights(bare_words(text, self.concepts), *args, **kwargs)

    def _try_get_embedding(self, embedding_name: str) -> tuple[torch.Tensor | None, str, str]:
        name = leading_name(embedding_name, self.concepts)
        if name is None:
            return super()._try_get_embedding(embedding_name)
        return self.concepts[name], name, embedding_name[len(name) :].strip()


def bare_words(text: str, known: Mapping[str, Any]) -> str:
    """`<name>` of every known name as `embedding:name`, between the spaces that ComfyUI wants around it."""
    return re.sub(r"<([^<>\s]+)>", lambda match: f" embedding:{match[1]} " if match[1] in known else match[0], text)


def leading_name(text: str, known: Mapping[str, Any]) -> str | None:
    """The known name that `text` begins with as a whole word; punctuation may follow it."""
    for name in sorted(known, key=len, reverse=True):
        rest = text[len(name) :]
        # A dot or hyphen inside a word belongs to it: "gear.v2" and "gear-red" are other names than "gear".
        if text.startswith(name) and re.match(r"$|[\s,;:!?<>\[\](){}\"']|[.]+(\s|$)", rest):
            return name
    return None
