"""The words of a prompt as one of a family's text encoders reads it, at the places where the denoiser has them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from ...core.prompts.words import PADDING, PromptWord
from .families.encoders import Frame, Parts, Raw, frame_of, parts_of
from .families.joining import marked_places

NAMES = re.compile(r"<([^<>\s]+)>|(?:(?<=\s)|(?<=^)|(?<=\())embedding:([^\s,;:)(]+)")
"""Learned words as they are typed."""
BEGINS = ("▁", "Ġ")
"""How SentencePiece and byte-level BPE mark the beginning of a word."""
GOES_ON = "##"
"""How BERT's WordPiece marks what is none."""
AUTO = "auto"


def family_words(prompt: str, clip: Any, positions: int, wanted: str = AUTO) -> tuple[list[PromptWord], int]:
    """The words of a prompt, and `positions`, the number of text tokens that was recorded.

    `wanted` is the text encoder to read it with, of those whose tokens come to the denoiser: "auto" the last of them,
    which is the largest. Raises ValueError that lists them for another one.
    """
    parts = {part.name: part for part in parts_of(clip)}
    tokens = clip.tokenize(prompt, return_word_ids=True)
    raw = {name: _unsaid(tokens[part.key][0], parts[name], clip) for name, part in parts.items()}
    places, _ = marked_places(clip.patcher.model, parts, raw)
    name = list(places)[-1] if wanted == AUTO else wanted
    if name not in places:
        raise ValueError(f"text_encoder is {wanted}; of this model it can be {', '.join(places)}")
    words = _words(tokens[parts[name].key][0], parts[name], frame_of(clip, parts[name]), prompt)
    found = []
    for word in words:
        at = tuple(places[name][place] for place in word.positions if place in places[name])
        if at:
            found.append(PromptWord(word.text, word.kind, at))
    taken = {place for word in found for place in word.positions}
    rest = tuple(place for place in range(positions) if place not in taken)
    return ([*found, PromptWord(PADDING, "padding", rest)] if rest else found), positions


def _unsaid(tokens: Sequence[tuple[Any, ...]], part: Parts, clip: Any) -> Raw:
    """A prompt in the form in which a text encoder would have said it, without asking it."""
    module = getattr(clip.patcher.model, part.attribute)
    width = int(module.transformer.get_input_embeddings().weight.shape[1])
    out = torch.zeros(1, len(tokens), width)
    if isinstance(module.layer, list):
        out = out[:, None].expand(-1, len(module.layer), -1, -1)
    extra = ({"attention_mask": torch.ones(1, len(tokens), dtype=torch.long)},) if module.return_attention_masks else ()
    return Raw([(token, 1.0) for token, *_ in tokens], (out, torch.zeros(1, width), *extra), 0, len(tokens))


def _words(tokens: Sequence[tuple[Any, ...]], part: Parts, frame: Frame, prompt: str) -> list[PromptWord]:
    """Words by their positions among ComfyUI's tokens; template and padding are "special" and "padding"."""
    ids = [token for token, *_ in tokens]
    tokenizer = part.tokenizer
    last = len(ids)
    while last > 0 and ids[last - 1] == tokenizer.pad_token:
        last -= 1
    last = max(last, min(len(ids), 1 + next((at for at, one in enumerate(ids) if one == tokenizer.end_token), -1)))
    first = 0
    while tokenizer.pad_left and first < last and ids[first] == tokenizer.pad_token:
        first += 1
    start, end = first + len(frame.before), last - len(frame.behind)
    names = [bracketed or typed for bracketed, typed in NAMES.findall(prompt)]
    found: list[PromptWord] = []
    at = start
    while at < end:
        stop = at + 1
        if not isinstance(ids[at], int):
            while stop < end and not isinstance(ids[stop], int) and tokens[stop][2] == tokens[at][2]:
                stop += 1
            text = names.pop(0) if names else "embedding"
        else:
            while stop < end and isinstance(ids[stop], int) and not _begins(tokenizer, ids, stop):
                stop += 1
            text = tokenizer.decode(ids[at:stop]).strip()
        if text:
            found.append(PromptWord(text, "word", tuple(range(at, stop))))
        at = stop
    around = (*range(first, start), *range(end, last))
    return [*found, PromptWord("template", "special", around)] if around else found


def _begins(tokenizer: Any, ids: Sequence[Any], at: int) -> bool:
    """Whether a new word begins at a token."""
    text, before = (str(tokenizer.inv_vocab.get(ids[place], "")) for place in (at, at - 1))
    if f"{GOES_ON}s" in tokenizer.inv_vocab.values():
        return not text.startswith(GOES_ON)
    return text.startswith(BEGINS) or before.endswith("</w>")
