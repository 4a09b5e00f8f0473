"""What a learned word does to its neighbours in the text encoder: sim1 and sim2 (METHODS.md 2.7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ...maths.similarity import sim1, sim2
from ...models.protocol import TextEncoder, TextToImageModel
from ...prompts.tokens import TokenizedPrompt, input_embeddings, tokenize_prompt, word_tokens

NO_PROBES = "no probes: give at least one prompt with a context word"


@dataclass(frozen=True)
class ContextProbe:
    """A prompt with the concept, one of its context words, and a prompt that says the word without the concept.

    E.g. `ContextProbe("a picture of a {} with the beach in the background", "beach", "a picture of the beach")`.
    """

    template: str
    word: str
    reference: str


class ContextSimilarity(NamedTuple):
    """`sim1`: cos of the concept's output and the context word's; `sim2`: cos of the context word's outputs with and
    without the concept. Means over probes and text encoders."""

    sim1: float
    sim2: float


@torch.no_grad()
def context_similarity(
    model: TextToImageModel,
    probes: Sequence[ContextProbe],
    *,
    vectors: Mapping[str, torch.Tensor] | None = None,
    words: str | None = None,
    layers: Mapping[str, torch.Tensor] | None = None,
) -> ContextSimilarity:
    """METHODS.md 2.7 for a concept's `vectors`, or for plain `words` in its place (the class word, as a yardstick).

    A concept of several positions speaks through its last one, which has seen the others. One with vectors for every
    layer, `layers` (layers, n, d), is the mean over what each layer sees. Raises ValueError where a
    probe's word is not in its prompts, or there are no probes.
    """
    if not probes:
        raise ValueError(NO_PROBES)
    pairs = [
        _similarity(encoder, probe, own, words)
        for name, encoder in model.text_encoders.items()
        for own in seen_vectors(name, vectors, layers)
        for probe in probes
    ]
    means = torch.tensor(pairs, dtype=torch.float64).mean(dim=0)
    return ContextSimilarity(float(means[0]), float(means[1]))


def seen_vectors(
    encoder: str, vectors: Mapping[str, torch.Tensor] | None, layers: Mapping[str, torch.Tensor] | None
) -> Sequence[torch.Tensor | None]:
    """The vectors (n, d) that a prompt is encoded with for the UNet: of each layer, or one for all; None for words."""
    if layers is not None:
        return layers[encoder].unbind(0)
    return [None if vectors is None else vectors[encoder]]


def word_position(encoder: TextEncoder, prompt: TokenizedPrompt, word: str) -> int:
    """The position of the first sub-token of `word` (METHODS.md 2.7) outside the filled slot. ValueError if absent."""
    return word_stretch(encoder, prompt, word).start


def word_stretch(encoder: TextEncoder, prompt: TokenizedPrompt, word: str) -> range:
    """The positions of `word`, where it first stands outside the filled slot, as it is cut at the beginning of a text
    or behind a space. Raises ValueError if absent."""
    spellings = [list(encoder.tokenize(word)), word_tokens(encoder, word)]
    for start in range(1, prompt.eot):
        for tokens in spellings:
            stretch = range(start, start + len(tokens))
            if list(prompt.ids[start : stretch.stop]) == tokens and not set(stretch) & set(prompt.fill):
                return stretch
    raise ValueError(f"the word {word!r} is not in the prompt {prompt.text!r}")


def require_words(
    model: TextToImageModel,
    probes: Sequence[ContextProbe],
    *,
    vectors: Mapping[str, torch.Tensor] | None = None,
    words: str | None = None,
) -> None:
    """Raises ValueError where a probe's word is not in its prompts or these do not fit a text encoder, or there is no
    probe: before anything is computed."""
    if not probes:
        raise ValueError(NO_PROBES)
    for name, encoder in model.text_encoders.items():
        rows = None if vectors is None else int(vectors[name].shape[0])
        for probe in probes:
            word_position(encoder, tokenize_prompt(encoder, probe.template, rows=rows, words=words), probe.word)
            word_position(encoder, tokenize_prompt(encoder, probe.reference), probe.word)


def _similarity(
    encoder: TextEncoder, probe: ContextProbe, vectors: torch.Tensor | None, words: str | None
) -> tuple[float, float]:
    rows = None if vectors is None else vectors.shape[0]
    prompt = tokenize_prompt(encoder, probe.template, rows=rows, words=words)
    reference = tokenize_prompt(encoder, probe.reference)
    ours, theirs = (_outputs(encoder, p, vectors) for p in (prompt, reference))
    at = word_position(encoder, prompt, probe.word)
    reference_at = word_position(encoder, reference, probe.word)
    return float(sim1(ours, prompt.fill[-1], at)), float(sim2(ours, at, theirs, reference_at))


def _outputs(encoder: TextEncoder, prompt: TokenizedPrompt, vectors: torch.Tensor | None) -> torch.Tensor:
    return encoder.encode(*input_embeddings(encoder, [prompt], vectors)).tokens[0]
