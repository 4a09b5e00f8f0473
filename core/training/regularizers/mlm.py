"""MLM as a regularizer: the context must stay as easy to guess beside the concept as it always was (METHODS.md 2.6)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from einops import rearrange

from ...maths.finite import require_finite
from ...maths.mlm import LAMBDA_MLM, RHO, cross_entropy, masked_loss
from ...models.frozen import autograd
from ...models.protocol import TextEncoder, TextToImageModel, fingerprint
from ...networks.contextualizer import Contextualizer, ShortEncoder
from ...prompt_sets import regularization_prompts
from ...prompts.rich import PromptSource, with_class
from ...prompts.tokens import ConceptRows, Words, tokenize_prompt
from ..contextualizer.masking import MaskableRow, mask_rows, masked_inputs, nameable_ids, prompt_row
from ..methods import method_called
from ..run.remembered import remembered
from .seam import LossTerm, Terms, TrainingStep, one_class_word, suited

KEPT_ROWS = 1 << 16
"""Tokenized prompts that are kept; a set of METHODS.md 2.5 fits."""
NARROW_LAMBDA, NARROW_LAMBDA_BESIDE_WEIGHTS = 0.06, 1e-3
"""For encoders narrower than Stable Diffusion's, such as the bundled tiny model's, of a word alone and of one beside
which the denoiser learns: chosen by `search` on six development concepts (docs/claims/search.json)."""
NARROW_FLOW_LAMBDA = 0.03
"""For flow matching with such encoders, as measured on the bundled one (docs/claims.md)."""

BATCH = 25
XTI_BATCH = 12
"""METHODS.md 2.6: prompts a step; fewer where each is encoded once a vector."""


def recommended_lambda(model: TextToImageModel, method: str = "ti") -> float:
    """lambda does not carry over between models: the paper's for encoders of Stable Diffusion's width (768 and more,
    METHODS.md 2.8 no. 5, by the method that it is added to), a larger one for narrow encoders, whose gradient of the
    diffusion loss is larger."""
    return suited(
        model,
        method,
        wide=method_called(method).mlm_weight,
        word_alone=NARROW_LAMBDA,
        beside_weights=NARROW_LAMBDA_BESIDE_WEIGHTS,
        flow=NARROW_FLOW_LAMBDA,
    )


def recommended_batch(method: str = "ti") -> int:
    """METHODS.md 2.6: MLM's prompts a step, by the method that it is added to."""
    return XTI_BATCH if method_called(method).learns_copies else BATCH


def recommended_mlm(
    model: TextToImageModel,
    contextualizers: Contextualizer | Sequence[Contextualizer] | None = None,
    prompts: PromptSource | None = None,
    *,
    weight: float | None = None,
    method: str = "ti",
    batch: int | None = None,
    **options: Any,
) -> MLMRegularizer:
    """MLM at the lambda that suits `model` and `method` unless `weight` is given, on as many prompts a step as suit the
    method unless `batch` is; `options` are `MLMRegularizer`'s.

    By default the bundled contextualizer, on ConceptWorld's rich prompts without the backgrounds that evaluation asks
    for: both belong to the bundled tiny model. The concept stands without its class word, as in this pack's training
    prompts.
    """
    if contextualizers is None:
        from ...models.tiny.contextualizer import load_contextualizer

        contextualizers = load_contextualizer()
    prompts = prompts or regularization_prompts()
    weight = recommended_lambda(model, method) if weight is None else weight
    batch = recommended_batch(method) if batch is None else batch
    return MLMRegularizer(contextualizers, prompts, **{"beside_class": False, **options}, weight=weight, batch=batch)


class MLMRegularizer:
    """lambda L_MLM (METHODS.md M5) on `batch` rich prompts a step, through the text encoder and psi only.

    `prompts` hold one "{}" each; `beside_class` writes the class word after the concept (METHODS.md 2.5), else the
    concept stands alone, as it should where an identifier makes the class word a part of the word itself. With one
    contextualizer for each text encoder of a model, every encoder gets a term of its own, `mlm/<encoder>`; an encoder
    without one gets none. psi and its mask row are copied and never trained. A weight of 0 costs nothing and changes
    nothing.
    """

    name = "mlm"

    def __init__(
        self,
        contextualizers: Contextualizer | Sequence[Contextualizer],
        prompts: PromptSource,
        *,
        weight: float = LAMBDA_MLM,
        rho: float = RHO,
        batch: int = BATCH,
        beside_class: bool = True,
    ) -> None:
        given = [contextualizers] if isinstance(contextualizers, Contextualizer) else list(contextualizers)
        names = [psi.encoder.name for psi in given]
        if not given or len(set(names)) != len(names):
            raise ValueError(f"one contextualizer a text encoder is needed, got {', '.join(names) or 'none'}")
        require_finite(weight=weight, rho=rho)
        if weight < 0 or not 0 < rho <= 1 or batch < 1:
            raise ValueError(f"weight >= 0, 0 < rho <= 1 and batch >= 1 are needed: {weight}, {rho}, {batch}")
        self.given = given
        self.prompts = prompts
        self.weight, self.rho, self.batch, self.beside_class = weight, rho, batch, beside_class
        self._encoders: list[_Guesser] = []

    def prepare(self, model: TextToImageModel, class_word: Words, rows: ConceptRows) -> None:
        """Freeze copies of the contextualizers on the model's device. Raises ValueError where one is not for this
        model, a prompt does not fit a text encoder, or there is nothing to guess in any of them."""
        self._encoders = []
        if self.weight == 0:
            return
        self.require_fit(model)
        beside = one_class_word(class_word, "MLM") if self.beside_class else None
        for psi in self.given:
            encoder = model.text_encoders[psi.encoder.name]
            guesser = _Guesser(encoder, frozen_copy(psi, model.device), beside, rows)
            hardest = self.prompts.hardest(lambda text, encoder=encoder: len(encoder.tokenize(text)))
            prepared = [guesser.row(prompt) for prompt in hardest]  # all, so that each is known to fit
            if not any(bool(row.maskable.any()) for row in prepared):
                raise ValueError(
                    f"the contextualizer of {psi.encoder.name} knows no word of the prompts, such as {hardest[0]!r}; "
                    "write prompts with more context, or of words that it was trained on"
                )
            self._encoders.append(guesser)

    def require_fit(self, model: TextToImageModel) -> None:
        """Raises ValueError that names both where a contextualizer is for another text encoder than the model's."""
        for psi in self.given if self.weight > 0 else ():
            encoder = model.text_encoders.get(psi.encoder.name)
            if encoder is None:
                raise ValueError(
                    f"the contextualizer is for the text encoder {psi.encoder}, "
                    f"but the model has {', '.join(model.text_encoders)}"
                )
            psi.encoder.require(encoder)

    def __call__(self, step: TrainingStep) -> Terms:
        if self.weight == 0:
            return Terms()
        prompts = self.prompts.draw(self.batch, step.generator)
        losses = {}
        for guesser in self._encoders:
            copies = step.copies[guesser.encoder.name]
            uniform = torch.rand((len(copies) * self.batch, guesser.encoder.max_length), generator=step.generator)
            loss = guesser.loss(prompts, uniform, self.rho, copies)
            losses[f"{self.name}/{guesser.encoder.name}"] = LossTerm(loss, self.weight)
        return Terms(losses)

    def state(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weight": self.weight,
            "rho": self.rho,
            "batch": self.batch,
            "beside_class": self.beside_class,
            "prompts": self.prompts.state(),
            "contextualizers": self._fingerprints,
        }

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        return {psi.encoder.name: fingerprint(psi.state_dict(), encoder=psi.encoder.fingerprint) for psi in self.given}


class _Guesser:
    """A text encoder, the contextualizer frozen for it, and the prompts tokenized so far."""

    def __init__(self, encoder: TextEncoder, psi: Contextualizer, class_word: str | None, rows: ConceptRows) -> None:
        self.encoder = ShortEncoder(encoder, len(psi.positions))
        self.psi, self.class_word, self.rows = psi, class_word, rows
        self.nameable = nameable_ids(psi.rows)
        self.row = remembered(self._row, KEPT_ROWS)

    def loss(self, prompts: Sequence[str], uniform: torch.Tensor, rho: float, copies: torch.Tensor) -> torch.Tensor:
        """METHODS.md M5: the mean cross-entropy of the masked tokens, (). The output layer sees only those.

        METHODS.md 2.6: every prompt is encoded with each of the `copies` (S, n, d) of the concept's vectors, masked
        independently by `uniform` (S * B, L).
        """
        rows = [self.row(prompt).of_copy(copy, copies.shape[1]) for copy in range(len(copies)) for prompt in prompts]
        batch = mask_rows(rows, uniform, rho).to(self.psi.mask.device)
        inputs = masked_inputs(
            self.encoder.table(), batch, self.psi.mask, rearrange(copies, "slots n d -> (slots n) d")
        )
        outputs = self.encoder.encode(inputs, batch.ids).tokens
        logits = self.psi(outputs, batch.masked)
        return masked_loss(cross_entropy(logits, self.psi.rows[batch.targets]))

    def _row(self, prompt: str) -> MaskableRow:
        if self.class_word is not None:
            prompt = with_class(prompt, self.class_word)
        return prompt_row(
            self.encoder, tokenize_prompt(self.encoder, prompt, rows=self.rows), self.class_word, self.nameable
        )


def frozen_copy(psi: Contextualizer, device: torch.device) -> Contextualizer:
    """An untrainable float32 copy on `device` that autograd may keep, also when `psi` was loaded in inference mode."""
    with autograd():
        copy = Contextualizer(psi.encoder, psi.shape, psi.token_ids.tolist() if psi.sparse else None, psi.provenance)
        copy.load_state_dict(psi.state_dict())
        return copy.to(device).requires_grad_(False).eval()


__all__ = [
    "BATCH",
    "XTI_BATCH",
    "MLMRegularizer",
    "frozen_copy",
    "recommended_batch",
    "recommended_lambda",
    "recommended_mlm",
]
