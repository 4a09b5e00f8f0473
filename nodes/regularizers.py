"""What keeps a new word from swallowing the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..core.maths.context import LAMBDA_ATTN, LAMBDA_EMB
from ..core.maths.contrastive import LAMBDA_CONTRASTIVE, LAMBDA_NORM, NEIGHBOURS, TAU
from ..core.maths.mlm import LAMBDA_MLM, RHO
from ..core.networks.contextualizer import Contextualizer
from ..core.networks.tuning_encoder import TuningEncoder
from ..core.prompts.sets import PromptSet
from ..core.training.regularizers.mlm import BATCH, XTI_BATCH
from ..core.training.regularizers.registry import REGULARIZERS
from .schema import inputs
from .schema.inputs import AUTO
from .schema.sockets import (
    AS_RECIPE,
    NO_REGULARIZATION,
    PREFIX,
    TRAIN,
    ContextualizerSocket,
    PromptsSocket,
    Regularization,
    RegularizerSocket,
    TuningEncoderSocket,
    searched_as,
)

PAPER_WEIGHTS, STRONG, CUSTOM = "paper", "strong", "custom"
STRONG_LAMBDA = 5e-4
"""METHODS.md 2.8 no. 5: for stronger text alignment."""


def regularizer_output() -> Any:
    return RegularizerSocket.Output(display_name="regularizer", tooltip="For TrainConcept, or to add more to.")


def another_regularizer(more: str) -> Any:
    return RegularizerSocket.Input(
        "regularizer", optional=True, tooltip=f"Another regularizer to add this one to{more}"
    )


class CoReRegularizerNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "CoReRegularizer",
            display_name="CoRe Regularizer",
            category=TRAIN,
            search_aliases=searched_as(
                "regularization, context regularization, prevent overfitting, prompt ignored, keep the prompt"
            ),
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
                    step=inputs.FINE,
                    round=inputs.FINE,
                    tooltip="With custom weights: how much the meaning of the context words counts (lambda_emb).",
                ),
                io.Float.Input(
                    "attention_weight",
                    default=LAMBDA_ATTN,
                    min=0.0,
                    max=1000.0,
                    step=inputs.FINE,
                    round=inputs.FINE,
                    tooltip="With custom weights: how much the attention that the context words get counts "
                    "(lambda_attn). 0 saves the second pass through the UNet.",
                ),
                io.Combo.Input(
                    "rescale_mode",
                    options=[AS_RECIPE, "core_window", "fixed_mean", "spherical", "none", "dti"],
                    default=AS_RECIPE,
                    tooltip="What happens to the length of the learned vector; the help page explains each. as the "
                    "recipe: Train Concept decides. core_window: held in the middle fifth, as in the "
                    "paper. none: free.",
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
                another_regularizer(". Its rescale mode counts."),
            ],
            outputs=[regularizer_output()],
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
        paper = {"embedding_weight": LAMBDA_EMB, "attention_weight": LAMBDA_ATTN}
        custom = {"embedding_weight": embedding_weight, "attention_weight": attention_weight}
        return io.NodeOutput(
            (regularizer or NO_REGULARIZATION).adding(
                "core",
                rescale_mode,
                **{AUTO: {}, PAPER_WEIGHTS: paper, CUSTOM: custom}[weights],
                prompts=prompts.prompts,
                axis=embedding_axis,
                attention_mode=attention_mode,
                attention_batch=attention_batch or None,
            )
        )


class MLMRegularizerNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "MLMRegularizer",
            display_name="MLM Regularizer",
            category=TRAIN,
            search_aliases=searched_as(
                "regularization, masked language modelling, masked language model, BERT, keep the prompt"
            ),
            description="MLM (masked language modelling): some words of a prompt are hidden, and it must stay possible "
            "to guess them beside the new word. Looks at the text encoder only, so a step costs little more.",
            inputs=[
                ContextualizerSocket.Input(
                    "contextualizer", tooltip="What guesses: from LoadContextualizer or PretrainContextualizer."
                ),
                PromptsSocket.Input(
                    "prompts", tooltip="What is guessed from: a rich set of ContextPrompts, or prompts of your own."
                ),
                io.Combo.Input(
                    "weights",
                    options=[AUTO, PAPER_WEIGHTS, STRONG, CUSTOM],
                    default=AUTO,
                    tooltip="auto: the paper's for what is trained on Stable Diffusion, a larger one for the demo "
                    "model. paper: 0.0001 always. strong: 0.0005, where prompts are ignored. custom: the number below.",
                ),
                io.Float.Input(
                    "weight",
                    default=LAMBDA_MLM,
                    min=0.0,
                    max=100.0,
                    step=inputs.FINE,
                    round=inputs.FINE,
                    tooltip="With custom weights: how much guessing counts (lambda). For Stable Diffusion 0.00001 to "
                    "0.001 was tried; 0 switches MLM off.",
                ),
                io.Float.Input(
                    "mask_rate",
                    default=RHO,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="How probably a word is hidden (rho). The paper takes 0.15.",
                ),
                io.Int.Input(
                    "batch",
                    default=BATCH,
                    min=0,
                    max=512,
                    tooltip=f"Prompts a step. The paper takes {BATCH}, for XTI {XTI_BATCH}. 0: as the paper, by what "
                    "is trained. Any other number counts as it stands.",
                ),
                io.Boolean.Input(
                    "beside_class_word",
                    default=False,
                    tooltip="Write the class word after the new word in these prompts. The paper writes it in all its "
                    "prompts; switch it on if you will type it too. Not with an identifier: the word then ends in it "
                    "already.",
                ),
                another_regularizer(", such as CoRe."),
                ContextualizerSocket.Input(
                    "contextualizer_2",
                    optional=True,
                    tooltip="SDXL has two text encoders: the contextualizer of the other one.",
                ),
            ],
            outputs=[regularizer_output()],
        )

    @classmethod
    def execute(
        cls,
        contextualizer: Contextualizer,
        prompts: PromptSet,
        weights: str,
        weight: float,
        mask_rate: float,
        batch: int,
        beside_class_word: bool,
        regularizer: Regularization | None = None,
        contextualizer_2: Contextualizer | None = None,
    ) -> io.NodeOutput:
        given = [one for one in (contextualizer, contextualizer_2) if one is not None]
        names = [one.encoder.name for one in given]
        if len(set(names)) != len(names):
            raise ValueError(f"Both contextualizers are for the text encoder {names[0]}; disconnect one of them.")
        # MLM says nothing about the vector's length: that is for the one it is added to, or that is added to it.
        return io.NodeOutput(
            (regularizer or NO_REGULARIZATION).adding(
                "mlm",
                contextualizers=tuple(given),
                prompts=prompts.drawn,
                weight={AUTO: None, PAPER_WEIGHTS: LAMBDA_MLM, STRONG: STRONG_LAMBDA, CUSTOM: weight}[weights],
                rho=mask_rate,
                batch=batch or None,
                beside_class=beside_class_word,
            )
        )


class NearestWordRegularizer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "NearestWordRegularizer",
            display_name="Nearest Word Regularizer",
            category=TRAIN,
            search_aliases=searched_as("regularization, contrastive loss, nearest neighbour, nearest token"),
            description="Pulls the new word towards the real words that it is nearest to, and away from others. Looks "
            "at the vectors alone, so a step costs the same.",
            inputs=[
                io.Float.Input(
                    "weight",
                    default=LAMBDA_CONTRASTIVE,
                    min=0.0,
                    max=100.0,
                    step=inputs.FINE,
                    round=inputs.FINE,
                    tooltip="How much the pull counts. The tuning-encoder takes 0.01; 0 switches it off.",
                ),
                io.Float.Input(
                    "norm_weight",
                    default=LAMBDA_NORM,
                    min=0.0,
                    max=100.0,
                    step=inputs.FINE,
                    round=inputs.FINE,
                    tooltip="How much a long vector costs: its length, squared. 0 with a rescale mode that holds the "
                    "length.",
                ),
                io.Int.Input(
                    "neighbours",
                    default=NEIGHBOURS,
                    min=1,
                    max=1000,
                    tooltip="Nearest words that pull, chosen anew every step.",
                ),
                io.Float.Input(
                    "temperature",
                    default=TAU,
                    min=0.01,
                    max=10.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Smaller: the nearest of the others push hardest.",
                ),
                io.Int.Input(
                    "words",
                    default=64,
                    min=0,
                    max=4096,
                    advanced=True,
                    tooltip="Random words that push, a step, where no tuning-encoder is connected.",
                ),
                TuningEncoderSocket.Input(
                    "tuning_encoder",
                    optional=True,
                    tooltip="What pushes in place of random words: the things that it was trained on.",
                ),
                another_regularizer(", such as CoRe."),
            ],
            outputs=[regularizer_output()],
        )

    @classmethod
    def execute(
        cls,
        weight: float,
        norm_weight: float,
        neighbours: int,
        temperature: float,
        words: int,
        tuning_encoder: TuningEncoder | None = None,
        regularizer: Regularization | None = None,
    ) -> io.NodeOutput:
        options = {"weight": weight, "norm_weight": norm_weight, "neighbours": neighbours, "tau": temperature}
        bank = None if tuning_encoder is None else tuning_encoder.negatives
        return io.NodeOutput((regularizer or NO_REGULARIZATION).adding("nearest", bank=bank, words=words, **options))


OWN_NODES: Mapping[str, type[io.ComfyNode]] = {
    "core": CoReRegularizerNode,
    "mlm": MLMRegularizerNode,
    "nearest": NearestWordRegularizer,
}
"""By the name in `REGULARIZERS`. Every other one there gets `node_of`."""


def further_nodes() -> list[type[io.ComfyNode]]:
    """A node for each regularizer that has none of its own."""
    return [node_of(name) for name in REGULARIZERS if name not in OWN_NODES]


def node_of(name: str) -> type[io.ComfyNode]:
    """A node for a regularizer of which only its `Kind` is known: its numbers, and another one to add it to."""
    kind = REGULARIZERS[name]

    class RegularizerNode(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> io.Schema:
            return io.Schema(
                node_id=f"{PREFIX}{name.title().replace('_', '').replace('-', '')}Regularizer",
                display_name=f"{kind.title} Regularizer",
                category=TRAIN,
                search_aliases=searched_as(f"regularization, {name}"),
                description=kind.about,
                inputs=[*(number(label, value) for label, value in kind.numbers.items()), another_regularizer(".")],
                outputs=[regularizer_output()],
            )

        @classmethod
        def execute(cls, regularizer: Regularization | None = None, **numbers: float) -> io.NodeOutput:
            norm_mode = AS_RECIPE if kind.keeps_window else None
            return io.NodeOutput((regularizer or NO_REGULARIZATION).adding(name, norm_mode, **numbers))

    return RegularizerNode


def number(name: str, value: float) -> Any:
    """An input for one number of a `Kind`, as fine or as whole as `value` is."""
    tooltip = f"Usually {value:g}."
    if isinstance(value, int):
        return io.Int.Input(name, default=value, min=0, max=4096, tooltip=tooltip)
    return io.Float.Input(
        name, default=value, min=0.0, max=1000.0, step=inputs.FINE, round=inputs.FINE, tooltip=tooltip
    )
