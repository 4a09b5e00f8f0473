"""Captions as token ids, in a compact vocabulary of the few hundred tokens the world's English uses."""

from __future__ import annotations

import numpy as np
import torch

from ..core.models.tiny.config import BOS, EOS, POSITIONS
from ..core.models.tiny.tokenizer import tiny_tokenizer
from ..core.world.captions import caption
from ..core.world.scenes import Scene
from .pictures import scene


class Words:
    """Token ids of single words, remembered: CLIP's BPE splits at spaces and punctuation, so words are independent."""

    def __init__(self) -> None:
        self.tokenizer = tiny_tokenizer()
        self.known: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """Ids of `text` with start and end, not padded."""
        out = [BOS]
        for word in text.split():
            if word not in self.known:
                self.known[word] = self.tokenizer(word, add_special_tokens=False).input_ids
            out += self.known[word]
        return [*out[: POSITIONS - 1], EOS]


def used_tokens(n: int = 8_000) -> torch.Tensor:
    """All token ids (sorted) that captions of the training world use, start and end included."""
    words, rng = Words(), np.random.default_rng(3)
    for i in range(n):
        words.ids(caption(scene("train", i), rng))
    found = {token for ids in words.known.values() for token in ids}
    return torch.tensor(sorted(found | {BOS, EOS}))


def token_batch(texts: list[str], words: Words, length: int | None = None) -> torch.Tensor:
    """Token ids (B, L) padded with the end token to `length`, or to the longest text."""
    rows = [words.ids(text) for text in texts]
    width = length or max(map(len, rows))
    return torch.tensor([row + [EOS] * (width - len(row)) for row in rows])


def sample_captions(scenes: list[Scene], index: list[int], rng: np.random.Generator, tries: int = 1) -> list[str]:
    """A fresh caption for each of the scenes numbered `index`: of `tries` captions the first that leaves out least of
    how a subject in two colours looks."""
    return [max((caption(scenes[i], rng) for _ in range(tries)), key=lambda text: told(scenes[i], text)) for i in index]


def told(scene: Scene, text: str) -> int:
    """How much of a subject's look in two colours a caption says, 0 to 2: its second colour, and how the two lie."""
    if scene.texture == "plain":
        return 0
    words = set(text.replace("stripes", "striped").replace("spots", "spotted").split())
    return len(words & {scene.second_colour, scene.texture})
