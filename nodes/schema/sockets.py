"""What our own sockets carry. Node ids, socket types and the order of inputs are a contract with people's workflows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ...core.models.protocol import TextToImageModel
from ...core.training.regularizers.registry import Added
from ...core.training.regularizers.seam import Regularizer

CATEGORY = "Contextual Inversion"
TRAIN, USE, LOOK, MEASURE, DEMO = (f"{CATEGORY}/{part}" for part in ("Train", "Use", "Look", "Measure", "Demo"))
"""Where nodes stand in the page's list, by what one wants to do."""
PREFIX = "ContextualInversion"


def searched_as(words: str) -> list[str]:
    """What people type who look for a node, between commas, as a schema's `search_aliases`."""
    return words.split(", ")


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

AS_RECIPE = "as the recipe"
"""The rule for the vectors' length that leaves it to the recipe."""


@dataclass(frozen=True)
class Regularization:
    """What is added to a training, and the norm rule that belongs to it, if one does.

    Names with options and not regularizers travel along the wire: ComfyUI keeps what a node gave and hands it to every
    training that is connected, and a regularizer remembers things about the one training that it is in.
    """

    added: tuple[Added, ...] = ()
    norm_mode: str | None = None

    def adding(self, name: str, norm_mode: str | None = None, **options: Any) -> Regularization:
        """With one more of `REGULARIZERS`, whose norm rule counts where there was none before."""
        return Regularization(
            (*self.added, Added(name, options)), norm_mode if self.norm_mode is None else self.norm_mode
        )

    @property
    def chosen_norm_mode(self) -> str | None:
        """The norm rule, None where it is left to the recipe."""
        return None if self.norm_mode == AS_RECIPE else self.norm_mode

    def make(self, model: TextToImageModel, method: str = "ti") -> tuple[Regularizer, ...]:
        """A fresh regularizer of each, for a training of `method`."""
        return tuple(one.make(model, method) for one in self.added)


NO_REGULARIZATION = Regularization()
"""Where nothing is connected."""
