"""What keeps a new word from swallowing the prompt."""

from __future__ import annotations

from functools import partial
from typing import Any

from comfy_api.latest import io

from ..core.maths.core import LAMBDA_ATTN, LAMBDA_EMB
from ..core.models.protocol import TextToImageModel
from ..core.prompts.sets import PromptSet
from ..core.training.core_regularizer import PAPER, CoReRegularizer, CoReWeights, recommended_weights
from .recipes import AS_RECIPE
from .sockets import CATEGORY, PREFIX, PromptsSocket, Regularization, RegularizerSocket

AUTO, PAPER_WEIGHTS, CUSTOM = "auto (for this model)", "paper", "custom"


class CoReRegularizerNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "CoReRegularizer",
            display_name="CoRe Regularizer",
            category=CATEGORY,
            description="CoRe (Context Regularization): the words around the new word must mean, and draw as much "
            "attention, as they do around the class word. A word trained with it obeys the prompt.",
            inputs=[
                PromptsSocket.Input(
                    "prompts", tooltip="Where the new word is tried: one of them, drawn at random, a step."
                ),
                io.Combo.Input(
                    "weights",
                    options=[AUTO, PAPER_WEIGHTS, CUSTOM],
                    default=AUTO,
                    tooltip="The weights do not carry over between models. auto: the paper's for Stable Diffusion, "
                    "larger ones for the demo model. paper: 0.00015 and 0.05 always. custom: the two numbers below.",
                ),
                io.Float.Input(
                    "embedding_weight",
                    default=LAMBDA_EMB,
                    min=0.0,
                    max=100.0,
                    step=0.00001,
                    round=0.0000001,
                    tooltip="With custom weights: how much the meaning of the context words counts (lambda_emb).",
                ),
                io.Float.Input(
                    "attention_weight",
                    default=LAMBDA_ATTN,
                    min=0.0,
                    max=1000.0,
                    step=0.001,
                    round=0.00001,
                    tooltip="With custom weights: how much the attention that the context words get counts "
                    "(lambda_attn). 0 saves the second pass through the UNet.",
                ),
                io.Combo.Input(
                    "rescale_mode",
                    options=[AS_RECIPE, "core_window", "fixed_mean", "spherical", "none"],
                    default=AS_RECIPE,
                    tooltip="The length of the learned vector. as the recipe: TrainConcept decides. core_window: held "
                    "during the middle fifth of the training, as in the paper. fixed_mean: always that of an average "
                    "word. spherical: as fixed_mean, and only the direction is learned. none: free.",
                ),
                io.Combo.Input(
                    "embedding_axis",
                    options=["paper", "official"],
                    default="paper",
                    advanced=True,
                    tooltip="What is compared: each context word's meaning (paper), or each feature over all words "
                    "(what the authors' code computes).",
                ),
                io.Combo.Input(
                    "attention_mode",
                    options=["official", "paper"],
                    default="official",
                    advanced=True,
                    tooltip="How attention is averaged: layer by layer (the authors' code, for which 0.05 was chosen) "
                    "or over all layers before comparing (the paper's formula).",
                ),
                io.Int.Input(
                    "attention_batch",
                    default=0,
                    min=0,
                    max=64,
                    advanced=True,
                    tooltip="How many of a step's pictures the attention loss looks at. 0: a third of them, which is "
                    "faster and the same on average. The authors' code takes all.",
                ),
                RegularizerSocket.Input(
                    "regularizer",
                    optional=True,
                    tooltip="Another regularizer to add this one to. Its rescale mode counts.",
                ),
            ],
            outputs=[
                RegularizerSocket.Output(display_name="regularizer", tooltip="For TrainConcept, or to add more to.")
            ],
        )

    @classmethod
    def execute(
        cls,
        prompts: PromptSet,
        weights: str,
        embedding_weight: float,
        attention_weight: float,
        rescale_mode: str,
        embedding_axis: str,
        attention_mode: str,
        attention_batch: int,
        regularizer: Regularization | None = None,
    ) -> io.NodeOutput:
        fixed = {
            AUTO: None,
            PAPER_WEIGHTS: PAPER,
            CUSTOM: CoReWeights(embedding_weight, attention_weight, "set by hand"),
        }[weights]
        maker = partial(
            make_core,
            prompts=prompts.prompts,
            weights=fixed,
            axis=embedding_axis,
            attention_mode=attention_mode,
            attention_batch=attention_batch or None,
        )
        before = regularizer.makers if regularizer is not None else ()
        norm_mode = rescale_mode if regularizer is None else regularizer.norm_mode
        return io.NodeOutput(Regularization((*before, maker), norm_mode))


def make_core(model: TextToImageModel, *, weights: CoReWeights | None, **options: Any) -> CoReRegularizer:
    """CoRe with `weights`, or with those recommended for the model where they are None."""
    chosen = recommended_weights(model) if weights is None else weights
    return CoReRegularizer(embedding_weight=chosen.embedding, attention_weight=chosen.attention, **options)
