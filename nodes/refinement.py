"""The second stage of CoRe: the word stays, the UNet learns its looks (METHODS.md 1.5)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io

from ..core.concept import Concept
from ..core.models.families import is_narrow
from ..core.training.methods import METHODS, second_stages
from ..core.training.plan import Choices, Prior, outlined, plan
from .comfy.adapting import adapted
from .page.concept_training import captioned, require_place, train_concept
from .page.outlook import ANY_WORD, Outlook, of_training
from .schema import inputs
from .schema.sockets import (
    NO_REGULARIZATION,
    PREFIX,
    TRAIN,
    ConceptSocket,
    Regularization,
    RegularizerSocket,
    searched_as,
)


class RefineConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "RefineConcept",
            display_name="Refine Concept",
            category=TRAIN,
            search_aliases=searched_as("second stage, LoRA trainer, train LoRA, fine-tune, improve likeness"),
            description="CoRe's second stage: the word stays as it is, and the model learns how the thing looks when "
            "it is said. The model that comes in is not changed; ApplyConcept applies what was learned to a copy.",
            inputs=[
                *inputs.concept_model(),
                io.Vae.Input("vae", tooltip="Its autoencoder, to look at the pictures with."),
                io.Image.Input("images", tooltip="The pictures that the concept was trained on."),
                ConceptSocket.Input("concept", tooltip="A word from TrainConcept or LoadConcept. It stays as it is."),
                io.Combo.Input(
                    "train",
                    options=list(second_stages()),
                    default=METHODS["refine"].short,
                    tooltip="What of the UNet is learned. LoRA: a small change of its attention. all weights: as in "
                    "the paper; a file as large as the UNet.",
                ),
                inputs.recipe(
                    second_stages().values(),
                    "Numbers that go together; the help page lists them. Those below replace them unless they are 0.",
                ),
                inputs.training_steps(),
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=inputs.FINE,
                    round=inputs.FINE,
                    tooltip=f"How far each step goes. {inputs.ZERO_AS_RECIPE}",
                ),
                inputs.training_batch(),
                io.Int.Input("rank", default=4, min=1, max=128, tooltip="Of the LoRA: more holds more detail."),
                inputs.seed("Every random choice follows from it."),
                *inputs.previews("Steps between previews. 0: none.", "What previews show; {} is the word."),
                inputs.continue_interrupted(),
                inputs.masks(""),
                RegularizerSocket.Input(
                    "regularizer",
                    optional=True,
                    tooltip="The paper's second stage goes without one; CoRe may be added.",
                ),
                io.Int.Input(
                    "least_rank",
                    default=0,
                    min=0,
                    max=128,
                    optional=True,
                    tooltip="T-LoRA: the rank that learns where the noise is strongest, growing to the whole rank, so "
                    "that layout and background are learned less. 0: the whole rank learns everywhere.",
                ),
                *inputs.memory_savers(),
                inputs.masks_mean(),
                inputs.captions(),
                inputs.regularize_every(),
            ],
            outputs=[
                ConceptSocket.Output(
                    display_name="concept", tooltip="The same word with what the model learned about it."
                ),
                inputs.losses(),
            ],
            hidden=[io.Hidden.unique_id],
            is_input_list=True,
        )

    @classmethod
    def outlook(
        cls,
        narrow: bool,
        *,
        train: str,
        recipe: str,
        steps: int,
        learning_rate: float,
        batch: int,
        rank: int,
        preview_every: int,
        resolution: int,
        gradient_checkpointing: bool,
        regularize_every: int,
    ) -> Outlook:
        """What `execute` will train, with a model as `narrow` as the bundled one, or not. Raises ValueError."""
        given = {name: value for name, value in locals().items() if name not in ("cls", "narrow")}
        outline = outlined(chosen_numbers(narrow, ANY_WORD, **given))
        return of_training(outline, outline.settings)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        images: torch.Tensor | list[torch.Tensor],
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
        masks: torch.Tensor | list[torch.Tensor] | None = None,
        regularizer: Regularization | None = None,
        least_rank: int = 0,
        resolution: int = 0,
        gradient_checkpointing: bool = False,
        masks_mean: str = inputs.WHERE_IT_COUNTS,
        captions: str | list[str] = "",
        regularize_every: int = 1,
    ) -> io.NodeOutput:
        require_place(preview_every, preview_prompt, "the word")
        subject = adapted(model, clip, vae, method=second_stages()[train])
        regularization = regularizer or NO_REGULARIZATION
        numbers = chosen_numbers(
            is_narrow(subject),
            concept.require_class_word(),
            train=train,
            recipe=recipe,
            steps=steps,
            learning_rate=learning_rate,
            batch=batch,
            rank=rank,
            preview_every=preview_every,
            resolution=resolution,
            gradient_checkpointing=gradient_checkpointing,
            regularize_every=regularize_every,
        )
        others = {
            "name": concept.name.rpartition("/")[2],
            "least_rank": least_rank or None,
            "seed": seed,
            "preview_prompt": preview_prompt,
            "transparent_masks": masks_mean == inputs.TRANSPARENCY,
        }
        choices = replace(
            numbers,
            settings={**numbers.settings, **others},
            added=regularization.added,
            norm_mode=regularization.chosen_norm_mode,
            start=concept,
        )
        return train_concept(
            cls.hidden.unique_id,
            subject,
            captioned(subject, plan(subject, choices), captions, images),
            images=images,
            masks=masks,
            continue_interrupted=continue_interrupted,
        )


def chosen_numbers(
    narrow: bool,
    class_word: str,
    *,
    train: str,
    recipe: str,
    steps: int,
    learning_rate: float,
    batch: int,
    rank: int,
    preview_every: int,
    resolution: int,
    gradient_checkpointing: bool,
    regularize_every: int,
) -> Choices:
    """The recipe, and the numbers of the widgets that replace its own. Raises ValueError where the recipe is for
    another method."""
    method = second_stages()[train]
    # In this method the rate is that of the weights: nothing else moves.
    rates = inputs.chosen(learning_rate=learning_rate, weight_rate=learning_rate)
    others = {
        "rank": rank if METHODS[method].rank else 0,
        "preview_every": preview_every,
        "gradient_checkpointing": gradient_checkpointing,
        "regularize_every": regularize_every,
    }
    return Choices(
        inputs.chosen_recipe(recipe, narrow, method),
        class_word,
        {**inputs.chosen(steps=steps, batch=batch, resolution=resolution), **rates, **others},
        prior=Prior(weight=0.0),
    )
