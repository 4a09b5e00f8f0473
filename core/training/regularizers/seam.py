"""The one signature of everything that is added to the diffusion loss: CoRe, MLM, the nearest-token contrastive loss.

A regularizer is called once a step, or in every k-th with k times the weight, and answers with `Terms`: losses that are
ready, and optionally a UNet pass whose cross-attention it wants to see. The trainer runs all wanted passes *together
with* the main pass, then calls `finish`. Any list of regularizers adds up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch

from ...models.families import is_flow, is_narrow
from ...models.protocol import Conditioning, Encoding, TextToImageModel
from ...prompts.tokens import ConceptRows, Words
from ..methods import method_called


@dataclass(frozen=True)
class LossTerm:
    """`weight * value` enters the total; `value` alone is logged. Both without leaving the device."""

    value: torch.Tensor
    weight: float


@dataclass(frozen=True)
class AttentionPass:
    """A UNet pass with gradient; the mean attention of each token, per layer, goes to `Terms.finish`."""

    latents: torch.Tensor
    timesteps: torch.Tensor
    conditioning: Conditioning


@dataclass(frozen=True)
class Terms:
    losses: Mapping[str, LossTerm] = field(default_factory=dict)
    attention: AttentionPass | None = None
    finish: Callable[[Sequence[torch.Tensor]], Mapping[str, LossTerm]] | None = None
    """Takes the per-layer (B, L) token means of `attention`."""

    def times(self, factor: int) -> Terms:
        """The same with each loss weighing `factor` times as much; its value, which is logged, stays."""
        if factor == 1:
            return self
        finish = self.finish
        later = finish and (lambda seen: _times(finish(seen), factor))
        return replace(self, losses=_times(self.losses, factor), finish=later)


def _times(losses: Mapping[str, LossTerm], factor: int) -> dict[str, LossTerm]:
    return {name: replace(term, weight=factor * term.weight) for name, term in losses.items()}


class TrainingStep(Protocol):
    """What a regularizer may look at."""

    model: TextToImageModel
    latents: torch.Tensor
    """z_t of the main pass (B, C, h, w)."""
    timesteps: torch.Tensor
    """(B,)."""
    class_word: Words
    copies: Mapping[str, torch.Tensor]
    """The concept's input embeddings for each text encoder, part of the graph, (S, n, d): all that a prompt is encoded
    with. S = 1, or one copy for each slot of the UNet (XTI)."""
    generator: torch.Generator
    """The CPU generator of this regularizer: every random choice comes from it, so that a resume repeats them."""

    def encode_concept(self, templates: Sequence[str]) -> Mapping[str, Encoding]:
        """Encode templates with the concept in place of "{}", with gradient."""

    def encode_words(self, templates: Sequence[str], words: Words) -> Mapping[str, Encoding]:
        """Encode templates with plain words in place of "{}", without gradient; cached by template and words."""

    def conditioning(self, encodings: Mapping[str, Encoding]) -> Conditioning: ...

    def model_as_it_came(self) -> AbstractContextManager[None]:
        """Nothing that was learned changes the model inside: what a regularizer compares with."""


class Regularizer(Protocol):
    """One that has an attribute `every_step` that is true is asked in each step, whatever
    `TrainSettings.regularize_every` says: what it gives is a part of the batch and no term on the word."""

    name: str

    def prepare(self, model: TextToImageModel, class_word: Words, rows: ConceptRows) -> None:
        """Check prompts against the model and cache what no step changes. `class_word` and `rows` are what a prompt is
        filled with, with and without the concept. Raises ValueError that says what to do."""

    def __call__(self, step: TrainingStep) -> Terms: ...

    def state(self) -> dict[str, Any]:
        """Plain data for provenance: name, weights, switches."""


Value = TypeVar("Value")


def suited(
    model: TextToImageModel, method: str, *, wide: Value, word_alone: Value, beside_weights: Value, flow: Value
) -> Value:
    """Of what was chosen for each kind of training the one for `model` and `method`: `wide` for text encoders of Stable
    Diffusion's width; for narrower ones `flow` in flow matching, else by whether the method trains a word alone. Raises
    ValueError for an unknown method."""
    trains_weights = method_called(method).trains_weights
    if not is_narrow(model):
        return wide
    if is_flow(model):
        return flow
    return beside_weights if trains_weights else word_alone


def one_class_word(class_word: Words, what: str) -> str:
    """The class word of a training of one concept. Raises ValueError that says `what` cannot work with several."""
    if isinstance(class_word, str):
        return class_word
    if len(class_word) == 1:
        return class_word[0]
    raise ValueError(
        f"{what} knows one class word, and here several concepts are trained, {', '.join(class_word)}: "
        "train them one by one, or leave it out"
    )
