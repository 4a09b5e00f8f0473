"""The second stage of CoRe: the word stays, the UNet learns its looks (METHODS.md 1.5)."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..core.concept import PLACEHOLDER, Concept
from ..core.training.methods import METHODS
from .comfy_model import ComfyModel
from .interrupted import InterruptedWork
from .live_view import OUTPUT
from .recipes import recipe_for, recipe_names, sources, train_settings
from .sockets import CATEGORY, PREFIX, ConceptSocket, LossMapSocket, Regularization, RegularizerSocket
from .training import AS_RECIPE, train_and_report

REFINED = {"LoRA": "refine", "all weights": "refine-all"}


class RefineConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "RefineConcept",
            display_name="Refine Concept",
            category=CATEGORY,
            description="CoRe's second stage: the word stays as it is, and the model learns how the thing looks when "
            "it is said. The model that comes in is not changed; ApplyConcept applies what was learned to a copy.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the concept was trained on. It stays as it is."),
                io.Clip.Input("clip", tooltip="Its text encoder. It stays as it is."),
                io.Vae.Input("vae", tooltip="Its autoencoder, to look at the pictures with."),
                io.Image.Input("images", tooltip="The pictures that the concept was trained on."),
                ConceptSocket.Input("concept", tooltip="A word from TrainConcept or LoadConcept. It stays as it is."),
                io.Combo.Input(
                    "train",
                    options=list(REFINED),
                    default="LoRA",
                    tooltip="What of the UNet is learned. LoRA: a small change of its attention. all weights: as in "
                    "the paper; a file as large as the UNet.",
                ),
                io.Combo.Input(
                    "recipe",
                    options=recipe_names(*REFINED.values()),
                    default=recipe_names()[0],
                    tooltip="Numbers that go together. The numbers below replace them unless they are 0. "
                    + sources(*REFINED.values()),
                ),
                io.Int.Input("steps", default=0, min=0, max=100_000, tooltip=f"How long to train. {AS_RECIPE}"),
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.000001,
                    round=0.000000001,
                    tooltip=f"How far each step goes. {AS_RECIPE}",
                ),
                io.Int.Input(
                    "batch", default=0, min=0, max=64, tooltip=f"Pictures a step; fewer need less memory. {AS_RECIPE}"
                ),
                io.Int.Input("rank", default=4, min=1, max=128, tooltip="Of the LoRA: more holds more detail."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Every random choice follows from it.",
                ),
                io.Int.Input(
                    "preview_every", default=50, min=0, max=10_000, tooltip="Steps between previews. 0: none."
                ),
                io.String.Input(
                    "preview_prompt",
                    default=f"a photo of a {PLACEHOLDER}",
                    tooltip="What previews show; {} is the word.",
                ),
                io.Boolean.Input(
                    "continue_interrupted",
                    default=True,
                    tooltip="Go on with a cancelled training of exactly these inputs. Off: begin again.",
                ),
                io.Mask.Input("masks", optional=True, tooltip="Where the thing is, one mask a picture."),
                RegularizerSocket.Input(
                    "regularizer",
                    optional=True,
                    tooltip="The paper's second stage goes without one; CoRe may be added.",
                ),
            ],
            outputs=[
                ConceptSocket.Output(
                    display_name="concept", tooltip="The same word with what the model learned about it."
                ),
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
        concept: Concept,
        train: str,
        recipe: str,
        steps: int,
        learning_rate: float,
        batch: int,
        rank: int,
        seed: int,
        preview_every: int,
        preview_prompt: str,
        continue_interrupted: bool,
        masks: torch.Tensor | None = None,
        regularizer: Regularization | None = None,
    ) -> io.NodeOutput:
        if preview_every > 0 and PLACEHOLDER not in preview_prompt:
            raise ValueError(f"preview_prompt needs a {PLACEHOLDER} where the word goes.")
        adapted, method = ComfyModel(model, clip, vae), REFINED[train]
        chosen = recipe_for(recipe, adapted, method)
        # In this method the rate is that of the weights: nothing else moves.
        numbers = {"steps": steps, "learning_rate": learning_rate, "weight_rate": learning_rate, "batch": batch}
        settings = train_settings(
            chosen,
            norm_mode=None if regularizer is None else regularizer.norm_mode,
            numbers=numbers,
            class_word=concept.class_word,
            name=concept.name.rpartition("/")[2],
            vectors=concept.length,
            rank=rank if METHODS[method].rank else 0,
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
        learned, losses, view = train_and_report(work, cls.hidden.unique_id)
        return io.NodeOutput(learned, losses, ui={OUTPUT: [view]})
