"""What our own sockets carry. Node ids, socket types and the order of inputs are a contract with people's workflows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from comfy_api.latest import io

from ...core.models.protocol import TextToImageModel
from ...core.training.regularizers.seam import Regularizer

CATEGORY = "Contextual Inversion"
PREFIX = "ContextualInversion"

PromptsSocket = io.Custom("PROMPTS")
"""A `PromptSet`."""
RegularizerSocket = io.Custom("REGULARIZER")
"""A `Regularization`."""
ConceptSocket = io.Custom("CONCEPT")
"""A `Concept`."""
ContextualizerSocket = io.Custom("CONTEXTUALIZER")
"""A `Contextualizer`."""
TuningEncoderSocket = io.Custom("TUNING_ENCODER")
"""A `TuningEncoder`."""
LossMapSocket = io.Custom("LOSS_MAP")
"""ComfyUI's own: a dict whose "loss" is a list of numbers, one a step."""

MakeRegularizer = Callable[[TextToImageModel, str], Regularizer]
"""Of the model and the method (`METHODS`) that it is added to."""


@dataclass(frozen=True)
class Regularization:
    """How to make each regularizer once the model is known, and the norm rule that belongs to them, if one does.

    Recipes and not regularizers travel along the wire: ComfyUI keeps what a node gave and hands it to every training
    that is connected, and a regularizer remembers things about the one training that it is in.
    """

    makers: tuple[MakeRegularizer, ...] = ()
    norm_mode: str | None = None

    def adding(self, maker: MakeRegularizer, norm_mode: str | None = None) -> Regularization:
        """With one more recipe, whose norm rule counts where there was none before."""
        return Regularization((*self.makers, maker), norm_mode if self.norm_mode is None else self.norm_mode)

    def make(self, model: TextToImageModel, method: str = "ti") -> tuple[Regularizer, ...]:
        """A fresh regularizer from every recipe, for a training of `method`."""
        return tuple(maker(model, method) for maker in self.makers)


NO_REGULARIZATION = Regularization()
"""Where nothing is connected."""
