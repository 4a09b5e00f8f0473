"""Learning a new word inside a graph."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io

from ..core.concept import PLACEHOLDER, Concept
from ..core.files import safe_name
from .comfy_model import ComfyModel
from .interrupted import InterruptedWork
from .recipes import recipe_for, recipe_names, train_settings
from .reporting import Reporter
from .sockets import (
    CATEGORY,
    PREFIX,
    ConceptSocket,
    LossMapSocket,
    Regularization,
    RegularizerSocket,
)

TEXTUAL_INVERSION = "textual inversion"
AS_RECIPE = "0: as the recipe says."


class TrainConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "TrainConcept",
            display_name="Train Concept",
            category=CATEGORY,
            description="Learns a new word from a few pictures. The model that comes in is not changed. Cancel "
            "whenever you like: the next queue goes on where this one stopped.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="Stable Diffusion 1.x, 2.x or SDXL, or the demo model. It stays as it is."
                ),
                io.Clip.Input("clip", tooltip="Its text encoder; the new word is made for it. It stays as it is."),
                io.Vae.Input("vae", tooltip="Its autoencoder, to look at the pictures with."),
                io.Image.Input(
                    "images", tooltip="Three to six pictures of the one thing, in different places if possible."
                ),
                io.String.Input(
                    "class_word",
                    default="",
                    placeholder="dog",
                    tooltip="The ordinary word for what is in the pictures, or a phrase: dog, teapot, wooden toy. The "
                    "new word starts from it, and a regularizer compares with it.",
                ),
                io.String.Input(
                    "name",
                    default="my-word",
                    tooltip="What you will type: <name> or embedding:name. Letters, digits and _ - . + are allowed.",
                ),
                io.Combo.Input(
                    "train",
                    options=[TEXTUAL_INVERSION],
                    default=TEXTUAL_INVERSION,
                    tooltip="What is learned. textual inversion: the word's vectors and nothing else, a file of a few "
                    "kilobytes.",
                ),
                io.Combo.Input(
                    "recipe",
                    options=recipe_names(),
                    default=recipe_names()[0],
                    tooltip="Numbers that go together. auto: the CoRe paper's for Stable Diffusion, others for the "
                    "demo model. The numbers below replace the recipe's unless they are 0.",
                ),
                io.Int.Input("steps", default=0, min=0, max=100_000, tooltip=f"How long to train. {AS_RECIPE}"),
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.0001,
                    round=0.0000001,
                    tooltip=f"How far each step goes. Too small learns nothing, too large forgets the prompt. "
                    f"{AS_RECIPE}",
                ),
                io.Int.Input(
                    "batch", default=0, min=0, max=64, tooltip=f"Pictures a step; fewer need less memory. {AS_RECIPE}"
                ),
                io.Int.Input(
                    "vectors",
                    default=1,
                    min=1,
                    max=32,
                    tooltip="How many tokens the word is long. More hold more detail and leave less room for the "
                    "prompt.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Every random choice follows from it: the same seed gives the same word.",
                ),
                io.Int.Input(
                    "preview_every",
                    default=50,
                    min=0,
                    max=10_000,
                    tooltip="Steps between the pictures that show how the word is doing. Each takes a few seconds. 0: "
                    "none.",
                ),
                io.String.Input(
                    "preview_prompt",
                    default=f"a photo of a {PLACEHOLDER}",
                    tooltip="What those pictures show; {} is the new word. One that was not trained on tells most.",
                ),
                io.Boolean.Input(
                    "continue_interrupted",
                    default=True,
                    tooltip="Go on with a cancelled training of exactly these inputs. Off: begin again.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Where the thing is, one mask a picture: only there it counts what the model draws.",
                ),
                RegularizerSocket.Input(
                    "regularizer",
                    optional=True,
                    tooltip="Keeps the rest of the prompt working. Without one this is plain textual inversion.",
                ),
                ConceptSocket.Input(
                    "concept", optional=True, tooltip="Start from this concept instead of from the class word."
                ),
            ],
            outputs=[
                ConceptSocket.Output(display_name="concept", tooltip="For ApplyConcept and SaveConcept."),
                LossMapSocket.Output(
                    display_name="loss", tooltip="Every step's loss, for the stock Plot Loss Graph node."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        images: torch.Tensor,
        class_word: str,
        name: str,
        train: str,
        recipe: str,
        steps: int,
        learning_rate: float,
        batch: int,
        vectors: int,
        seed: int,
        preview_every: int,
        preview_prompt: str,
        continue_interrupted: bool,
        masks: torch.Tensor | None = None,
        regularizer: Regularization | None = None,
        concept: Concept | None = None,
    ) -> io.NodeOutput:
        if not class_word.strip():
            raise ValueError(
                "TrainConcept needs a class word: the ordinary word for what is in the pictures, such as dog."
            )
        if preview_every > 0 and PLACEHOLDER not in preview_prompt:
            raise ValueError(f"preview_prompt needs a {PLACEHOLDER} where the new word goes.")
        adapted = ComfyModel(model, clip, vae)
        settings = train_settings(
            recipe_for(recipe, adapted),
            norm_mode=None if regularizer is None else regularizer.norm_mode,
            numbers={"steps": steps, "learning_rate": learning_rate, "batch": batch},
            class_word=class_word.strip(),
            name=safe_name(name.strip()),
            vectors=vectors if concept is None else concept.length,
            seed=seed,
            preview_every=preview_every,
            preview_prompt=preview_prompt,
        )
        work = InterruptedWork(
            cls.hidden.unique_id,
            adapted,
            settings,
            images=images[..., :3],
            masks=masks,
            regularizers=() if regularizer is None else regularizer.make(adapted),
            initial=concept,
        )
        if not continue_interrupted:
            work.forget()
        learned, losses = train_and_report(work, cls.hidden.unique_id)
        return io.NodeOutput(learned, losses)


def train_and_report(work: InterruptedWork, node_id: str) -> tuple[Concept, dict[str, list[float]]]:
    """Run a training to its end. Returns the concept and a LOSS_MAP.

    When it is cancelled or an error ends it, the steps so far are in `work`'s checkpoint before that goes on its way.
    """
    reporter = Reporter(node_id, work.settings.steps)
    try:
        with closing(work.events()) as events:
            for event in events:
                reporter(event)
                comfy.model_management.throw_exception_if_processing_interrupted()
    except comfy.model_management.InterruptProcessingException:
        reporter.interrupted(work.kept())
        raise
    work.forget()
    losses = {name: values.tolist() for name, values in reporter.finished.losses.items()}
    return reporter.finished.concept, {"loss": losses["diffusion"], **losses}
