"""CoRe as a regularizer: the concept must leave the context words what the class word leaves them (METHODS.md 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch

from ...concept import PLACEHOLDER
from ...maths.context import (
    LAMBDA_ATTN,
    LAMBDA_EMB,
    AttentionMode,
    CosineAxis,
    attention_loss,
    embedding_loss,
    paired_context_positions,
)
from ...maths.finite import require_finite
from ...models.protocol import Conditioning, Encoding, TextEncoder, TextToImageModel, TokenMeans
from ...prompts.tokens import ConceptRows, Words, tokenize_prompt
from ..run.draws import send
from .seam import AttentionPass, LossTerm, Terms, TrainingStep, suited

ATTENTION_SHARE = 3
"""The attention loss looks at every third latent of the batch by default: CoRe then costs half a plain step more. A
batch of one has no third: there it is looked at in every third step, or in a third of those that CoRe is asked in."""


@dataclass(frozen=True)
class CoReWeights:
    """lambda_emb and lambda_attn of METHODS.md C4, and where they come from."""

    embedding: float
    attention: float
    source: str


PAPER = CoReWeights(LAMBDA_EMB, LAMBDA_ATTN, "the CoRe paper, for Stable Diffusion's encoders (METHODS.md C4)")
SEARCHED = "chosen by `search` on six development concepts for the bundled tiny model (docs/claims/search.json)"
NARROW = CoReWeights(0.04, 1.5, SEARCHED)
NARROW_BESIDE_WEIGHTS = CoReWeights(0.015, 0.5, SEARCHED)
"""Where the denoiser learns beside the word, less of the picture is the word's."""
NARROW_FLOW = CoReWeights(0.15, 1.5, "measured on the bundled flow matching model (docs/claims.md)")


def recommended_weights(model: TextToImageModel, method: str = "ti") -> CoReWeights:
    """lambda does not carry over between models: the paper's for encoders of Stable Diffusion's width (768 and more,
    METHODS.md C4), larger ones for narrow encoders such as the bundled tiny model's, whose gradient of the diffusion
    loss is larger, and there by whether `method` (`METHODS`) trains a word alone, or for flow matching."""
    return suited(model, method, wide=PAPER, word_alone=NARROW, beside_weights=NARROW_BESIDE_WEIGHTS, flow=NARROW_FLOW)


class CoReRegularizer:
    """lambda_emb L_emb + lambda_attn L_attn (METHODS.md C2, C3, C4) on one random prompt a step.

    `axis` and `attention_mode` choose between what the paper writes and what the official code computes, `bos` and
    `padding` which tokens are context (METHODS.md 1.10 nos. 1-3; defaults as decided there). `attention_batch` is how
    many of the step's latents the attention loss looks at, None a third of them, of a single one in a third of the
    steps, drawn by chance, with three times the weight (where CoRe is asked in every k-th step: in a third of those,
    with 3k times the weight); the official code takes all. The loss is scaled to the full batch, so its expectation,
    and the meaning of lambda, stay the same. A weight of 0 costs nothing and changes nothing. Of several text encoders,
    L_emb is averaged. `places` is how many placeholders a prompt has, where several concepts are trained together.
    """

    name = "core"

    def __init__(
        self,
        prompts: Sequence[str],
        *,
        embedding_weight: float = LAMBDA_EMB,
        attention_weight: float = LAMBDA_ATTN,
        axis: CosineAxis = "paper",
        attention_mode: AttentionMode = "official",
        bos: bool = True,
        padding: bool = False,
        attention_batch: int | None = None,
        places: int = 1,
    ) -> None:
        if not prompts or any(prompt.count(PLACEHOLDER) != places for prompt in prompts):
            raise ValueError(f"CoRe needs prompts with {'one' if places == 1 else places} {PLACEHOLDER} each")
        require_finite(embedding_weight=embedding_weight, attention_weight=attention_weight)
        if embedding_weight < 0 or attention_weight < 0:
            raise ValueError(f"weights cannot be negative: {embedding_weight}, {attention_weight}")
        if axis not in get_args(CosineAxis) or attention_mode not in get_args(AttentionMode):
            raise ValueError(f"unknown axis {axis!r} or attention mode {attention_mode!r}")
        if attention_batch is not None and attention_batch < 1:
            raise ValueError(f"attention_batch is at least 1, not {attention_batch}")
        self.prompts = tuple(prompts)
        self.embedding_weight, self.attention_weight = embedding_weight, attention_weight
        self.axis, self.attention_mode = axis, attention_mode
        self.bos, self.padding = bos, padding
        self.attention_batch = attention_batch
        self._positions: dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]] = {}

    def prepare(self, model: TextToImageModel, class_word: Words, rows: ConceptRows) -> None:
        """Find the context tokens of every prompt. Raises ValueError where one does not fit a text encoder."""
        self._positions = {
            (name, prompt): self._context(encoder, prompt, class_word, rows, model.device)
            for name, encoder in model.text_encoders.items()
            for prompt in self.prompts
        }

    def __call__(self, step: TrainingStep) -> Terms:
        if self.embedding_weight == 0 and self.attention_weight == 0:
            return Terms()
        prompt = self.prompts[int(torch.randint(len(self.prompts), (), generator=step.generator))]
        concept = step.encode_concept([prompt])
        reference = step.encode_words([prompt], step.class_word)
        losses = {}
        if self.embedding_weight > 0:
            losses["core/embedding"] = LossTerm(self._embedding(prompt, concept, reference), self.embedding_weight)
        if self.attention_weight == 0 or not (turn := self._turn(step)):
            return Terms(losses)
        return self._attention(step, prompt, step.conditioning(concept), step.conditioning(reference), losses, turn)

    def _turn(self, step: TrainingStep) -> int:
        """How much the attention loss counts in this step: 0 where it is left out, else one over the share of steps
        that it is in."""
        if self.attention_batch is not None or len(step.latents) > 1:
            return 1
        return ATTENTION_SHARE * (int(torch.randint(ATTENTION_SHARE, (), generator=step.generator)) == 0)

    def _attended(
        self, model: TextToImageModel, prompt: str, conditioning: Conditioning
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The columns of the context tokens in what a probe sees, with the concept and with the class word."""
        columns = getattr(model, "attended", None)
        if columns is None:
            # Encoders that share their tokenizer share the places of the context tokens, and the tokens' keys.
            return self._positions[next(iter(model.text_encoders)), prompt]
        every = [
            tuple(place + first for place in self._positions[name, prompt])
            for name, first in columns(conditioning).items()
        ]
        return tuple(torch.cat(places) for places in zip(*every, strict=True))

    def state(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "embedding_weight": self.embedding_weight,
            "attention_weight": self.attention_weight,
            "axis": self.axis,
            "attention_mode": self.attention_mode,
            "bos": self.bos,
            "padding": self.padding,
            "attention_batch": self.attention_batch,
            "prompts": list(self.prompts),
        }

    def _context(
        self,
        encoder: TextEncoder,
        prompt: str,
        class_word: Words,
        rows: ConceptRows,
        device: torch.device,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """METHODS.md 1.2: positions of the context tokens with the concept and with the class word, on the device."""
        ours = tokenize_prompt(encoder, prompt, rows=rows)
        theirs = tokenize_prompt(encoder, prompt, words=class_word)
        positions = paired_context_positions(
            ours.ids, ours.fill, theirs.ids, theirs.fill, encoder.eos, bos=self.bos, padding=self.padding
        )
        return tuple(send(torch.as_tensor(place, dtype=torch.long), device) for place in positions)

    def _embedding(
        self, prompt: str, concept: Mapping[str, Encoding], reference: Mapping[str, Encoding]
    ) -> torch.Tensor:
        """METHODS.md C2, the mean over the text encoders and, for a word with several, over what its vectors say."""
        parts = []
        for name, encoding in concept.items():
            ours, theirs = encoding.tokens[0], reference[name].tokens[0]
            if encoding.layers is not None:
                ours = encoding.layers[:, 0]
                theirs = theirs.expand(len(ours), -1, -1)
            parts.append(embedding_loss(ours, theirs, *self._positions[name, prompt], axis=self.axis))
        return sum(parts) / len(parts)

    def _attention(
        self,
        step: TrainingStep,
        prompt: str,
        concept: Conditioning,
        reference: Conditioning,
        losses: Mapping[str, LossTerm],
        turn: int,
    ) -> Terms:
        """METHODS.md C3: both prompts see the same z_t and t; the one with the class word needs no gradient."""
        full = len(step.latents)
        batch = min(full, self.attention_batch or math.ceil(full / ATTENTION_SHARE))
        latents, timesteps = step.latents[:batch], step.timesteps[:batch]
        positions = self._attended(step.model, prompt, concept)
        expected = TokenMeans()
        with torch.no_grad(), step.model_as_it_came():
            step.model.predict(latents, timesteps, reference.expand(batch), expected)

        def finish(layers: Sequence[torch.Tensor]) -> dict[str, LossTerm]:
            loss = attention_loss(layers, expected.layers, *positions, mode=self.attention_mode)
            return {"core/attention": LossTerm(loss * (full / batch), turn * self.attention_weight)}

        return Terms(losses, AttentionPass(latents, timesteps, concept.expand(batch)), finish)


__all__ = ["CoReRegularizer", "CoReWeights", "recommended_weights"]
