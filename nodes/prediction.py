"""One picture, one word: what a tuning-encoder says of a picture, and tuning that on the picture."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui

from ..core.concept import Concept
from ..core.files import safe_name
from ..core.networks.tuning_encoder import TuningEncoder
from ..core.training.one_picture.predict import predict_concept
from ..core.training.one_picture.tuning import MOST_STEPS, TuneSettings, tune
from .comfy.adapting import with_unet
from .comfy.clip_vision import image_encoder_of
from .comfy.saving import why_no_word
from .page.outlook import Outlook
from .page.reporting import Reporter, loss_map
from .page.running import report
from .schema import inputs
from .schema.sockets import PREFIX, TRAIN, ConceptSocket, TuningEncoderSocket, searched_as

LORA_AND_VECTORS, LORA, VECTORS = "lora and vectors", "lora", "vectors"


def prediction_inputs() -> list[Any]:
    """What PredictConcept and TunePredictedConcept have in common, first."""
    return [
        TuningEncoderSocket.Input("tuning_encoder", tooltip="From LoadTuningEncoder, trained for this model."),
        io.Image.Input("image", tooltip="One picture with one subject, of any size; its middle square is looked at."),
        io.Model.Input("model", tooltip="The model that the encoder was trained for. It stays as it is."),
        io.Clip.Input("clip", tooltip="Its text encoder."),
        io.Vae.Input("vae", tooltip="Its autoencoder."),
        inputs.word_name(),
        io.String.Input(
            "class_word",
            default="",
            tooltip="The ordinary word for what is on the picture. Empty: the word that the prediction is nearest to.",
        ),
    ]


def hard_token() -> Any:
    return io.String.Output(display_name="hard_token", tooltip="The vocabulary's nearest word.")


class PredictConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "PredictConcept",
            display_name="Predict Concept",
            category=TRAIN,
            search_aliases=searched_as(
                "one image, single image, one shot, one picture, instant embedding, image to embedding, E4T, "
                "hypernetwork, fast personalization"
            ),
            description="A word and a LoRA for what is on one picture, in one look and without training.",
            inputs=[*prediction_inputs(), inputs.clip_vision()],
            outputs=[
                ConceptSocket.Output(
                    display_name="concept", tooltip="For ApplyConcept, DualPath, SaveConcept and TunePredictedConcept."
                ),
                hard_token(),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return why_no_word(name)

    @classmethod
    def execute(
        cls,
        tuning_encoder: TuningEncoder,
        image: torch.Tensor,
        model: Any,
        clip: Any,
        vae: Any,
        name: str,
        class_word: str,
        clip_vision: Any = None,
    ) -> io.NodeOutput:
        adapted = with_unet(model, clip, vae)
        concept = predict_concept(
            adapted,
            image_encoder_of(clip_vision, adapted),
            tuning_encoder,
            image,
            name=safe_name(name.strip()),
            class_word=class_word,
        )
        return io.NodeOutput(concept, concept.hard_token, ui=ui.PreviewText(said(concept, "predicted")))


class TunePredictedConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "TunePredictedConcept",
            display_name="Tune Predicted Concept",
            category=TRAIN,
            search_aliases=searched_as("one image, single image, one shot, fast personalization, E4T"),
            description="Tunes a predicted word and its LoRA on their one picture, for a dozen steps at most. Predicts "
            "them first unless a concept is connected.",
            inputs=[
                *prediction_inputs(),
                io.Int.Input(
                    "steps",
                    default=MOST_STEPS,
                    min=1,
                    max=10_000,
                    tooltip=f"{MOST_STEPS} at most, unless more_steps allows more: the word would begin to hold this "
                    "one picture instead of its subject.",
                ),
                io.Int.Input("batch", default=4, min=1, max=64, tooltip="Noised copies of the picture a step."),
                io.Combo.Input(
                    "tuned",
                    options=[LORA_AND_VECTORS, LORA, VECTORS],
                    default=LORA_AND_VECTORS,
                    tooltip="What moves. The network that made the prediction never does.",
                ),
                io.Float.Input(
                    "lora_learning_rate",
                    default=0.0001,
                    min=0.0,
                    max=1.0,
                    step=inputs.FINE,
                    round=inputs.FINE,
                    tooltip="How far each step moves the LoRA.",
                ),
                io.Float.Input(
                    "vector_learning_rate",
                    default=0.001,
                    min=0.0,
                    max=1.0,
                    step=inputs.FINE,
                    round=inputs.FINE,
                    tooltip="How far each step moves the word.",
                ),
                inputs.contrastive_weight("How much it counts that the word is near real words and far from others"),
                io.Float.Input(
                    "norm_weight",
                    default=0.01,
                    min=0.0,
                    max=10.0,
                    step=inputs.FINE,
                    round=inputs.FINE,
                    tooltip="How much it counts that the word is not long (lambda_2).",
                ),
                io.Boolean.Input(
                    "dual_path",
                    default=True,
                    tooltip="Tune with both paths, as DualPath samples: the LoRA and the new word beside the plain "
                    "model and its nearest word.",
                ),
                io.Float.Input(
                    "alpha",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="With dual_path: the share of the new word's path. 1: that one alone.",
                ),
                inputs.seed("Every random choice follows from it."),
                io.Boolean.Input("more_steps", default=False, advanced=True, tooltip="Allow more than twelve steps."),
                io.Boolean.Input(
                    "gradient_checkpointing", default=False, advanced=True, tooltip="Save memory, take longer."
                ),
                ConceptSocket.Input("concept", optional=True, tooltip="A prediction to go on from."),
                inputs.clip_vision(),
            ],
            outputs=[
                ConceptSocket.Output(display_name="concept", tooltip="For ApplyConcept, DualPath and SaveConcept."),
                inputs.losses(),
                hard_token(),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return why_no_word(name)

    @classmethod
    def outlook(
        cls,
        narrow: bool,
        *,
        steps: int,
        batch: int,
        tuned: str,
        lora_learning_rate: float,
        vector_learning_rate: float,
        more_steps: bool,
    ) -> Outlook:
        """What `execute` will do. Raises ValueError for more steps than are allowed."""
        TuneSettings(steps=steps, more_steps=more_steps)
        rates = {LORA_AND_VECTORS: (vector_learning_rate, lora_learning_rate), LORA: (lora_learning_rate, None)}
        rate, weight_rate = rates.get(tuned, (vector_learning_rate, None))
        return Outlook(steps, batch, rate, weight_rate)

    @classmethod
    def execute(
        cls,
        tuning_encoder: TuningEncoder,
        image: torch.Tensor,
        model: Any,
        clip: Any,
        vae: Any,
        name: str,
        class_word: str,
        steps: int,
        batch: int,
        tuned: str,
        lora_learning_rate: float,
        vector_learning_rate: float,
        contrastive_weight: float,
        norm_weight: float,
        dual_path: bool,
        alpha: float,
        seed: int,
        more_steps: bool,
        gradient_checkpointing: bool,
        concept: Concept | None = None,
        clip_vision: Any = None,
    ) -> io.NodeOutput:
        settings = TuneSettings(
            steps=steps,
            batch=batch,
            tuned=tuned,
            lora_learning_rate=lora_learning_rate,
            vector_learning_rate=vector_learning_rate,
            contrastive=contrastive_weight,
            l2=norm_weight,
            alpha=alpha if dual_path else None,
            seed=seed,
            more_steps=more_steps,
            gradient_checkpointing=gradient_checkpointing,
        )
        adapted = with_unet(model, clip, vae)
        run = tune(
            adapted,
            image_encoder_of(clip_vision, adapted),
            tuning_encoder,
            image,
            settings,
            name=safe_name(name.strip()),
            class_word=class_word,
            predicted=concept,
        )
        outlook = cls.outlook(
            False,
            steps=steps,
            batch=batch,
            tuned=tuned,
            lora_learning_rate=lora_learning_rate,
            vector_learning_rate=vector_learning_rate,
            more_steps=more_steps,
        )
        reporter = Reporter(cls.hidden.unique_id, outlook, lambda event: said(event.concept, "tuned"))
        finished = report(run, reporter)
        return io.NodeOutput(finished.concept, loss_map(finished.losses), finished.concept.hard_token)


def said(concept: Concept, what: str) -> str:
    """A line for the node: the nearest word, seconds and memory."""
    facts = concept.provenance[what]
    memory = facts["peak_bytes"] / 2**30
    return f"{what} <{concept.name}>, nearest word {concept.hard_token}, {facts['seconds']:.1f} s, {memory:.1f} GB"
