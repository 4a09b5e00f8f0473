"""Learning a new word inside a graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io
from server import PromptServer

from ..core.concept import Concept
from ..core.files import safe_name
from ..core.models.families import is_narrow
from ..core.training.methods import METHODS, first_stages
from ..core.training.plan import CLASS_PICTURES, Choices, Prior, outlined, plan
from ..core.training.regularizers.prior import Progress
from .comfy.adapting import adapted
from .comfy.folders import checkpoints_root
from .comfy.saving import why_no_word
from .page.concept_training import captioned, require_place, train_concept
from .page.outlook import ANY_WORD, Outlook, of_training
from .schema import inputs
from .schema.before_run import first_reason, why_empty
from .schema.sockets import (
    NO_REGULARIZATION,
    PREFIX,
    TRAIN,
    ConceptSocket,
    Regularization,
    RegularizerSocket,
    searched_as,
)


class TrainConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "TrainConcept",
            # The first words that people search for; ComfyUI ranks names above aliases.
            display_name="Train Concept (Textual Inversion)",
            category=TRAIN,
            search_aliases=searched_as(
                "textual inversion, train embedding, embedding trainer, dreambooth, custom diffusion, XTI, P+, LoRA "
                "trainer, personalization, learn a new word, train on my photos, fine-tune, train style"
            ),
            description="Learns a new word from a few pictures. The model that comes in is not changed. Cancel "
            "whenever you like: the next queue goes on where this one stopped.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Stable Diffusion 1.x, 2.x or SDXL, the demo model, or SD3.5, Flux.1, Qwen-Image, Z-Image "
                    "and others of docs/models.md. It stays as it is.",
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
                inputs.word_name(),
                io.Combo.Input(
                    "train",
                    options=list(first_stages()),
                    default=METHODS["ti"].title,
                    tooltip="textual inversion: a word alone. XTI: one for each layer or block. Custom Diffusion: also "
                    "the cross-attention's keys and values. DreamBooth: the model. word and LoRA together: both at "
                    "once.",
                ),
                inputs.recipe(
                    first_stages().values(),
                    "Numbers that go together; the help page lists them. auto: those of what is trained, for Stable "
                    "Diffusion or for the demo model. The numbers below replace them unless they are 0.",
                ),
                inputs.training_steps(),
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=inputs.FINE,
                    round=inputs.FINE,
                    tooltip="How far each step goes. Too small learns nothing, too large forgets the prompt. "
                    f"{inputs.ZERO_AS_RECIPE}",
                ),
                inputs.training_batch(),
                io.Int.Input(
                    "vectors",
                    default=0,
                    min=0,
                    max=32,
                    advanced=True,
                    tooltip="How many tokens the word is long. More hold more detail and leave less room for the "
                    f"prompt. {inputs.ZERO_AS_RECIPE}",
                ),
                inputs.seed("Every random choice follows from it: the same seed gives the same word."),
                *inputs.previews(
                    "Steps between the pictures that show how the word is doing. Each takes a few seconds. 0: none.",
                    "What those pictures show; {} is the new word. One that was not trained on tells most.",
                ),
                inputs.continue_interrupted(),
                inputs.masks(": only there it counts what the model draws"),
                RegularizerSocket.Input(
                    "regularizer",
                    optional=True,
                    tooltip="Keeps the rest of the prompt working. Without one this is plain textual inversion.",
                ),
                ConceptSocket.Input(
                    "concept", optional=True, tooltip="Start from this concept instead of from the class word."
                ),
                io.Int.Input(
                    "rank",
                    default=-1,
                    optional=True,
                    min=-1,
                    max=128,
                    advanced=True,
                    tooltip="Where weights are trained: the rank of their change. -1: as the method does it. 0: whole "
                    "weights, a large file.",
                ),
                io.Float.Input(
                    "weight_rate",
                    default=0.0,
                    optional=True,
                    min=0.0,
                    max=1.0,
                    step=inputs.FINE,
                    round=inputs.FINE,
                    advanced=True,
                    tooltip="How far each step goes for weights, where they are trained beside the word. "
                    f"{inputs.ZERO_AS_RECIPE}",
                ),
                io.Float.Input(
                    "prior_preservation",
                    default=-1.0,
                    optional=True,
                    min=-1.0,
                    max=100.0,
                    step=0.1,
                    advanced=True,
                    tooltip="How much it counts that the class word still means what it meant. -1: as the recipe says "
                    "(1 for Custom Diffusion and DreamBooth, 0 on the demo model). 0: not at all.",
                ),
                io.Int.Input(
                    "prior_pictures",
                    default=CLASS_PICTURES,
                    optional=True,
                    min=1,
                    max=2000,
                    advanced=True,
                    tooltip="For prior preservation: pictures of the class, drawn once by the model that came in and "
                    "kept for the next training with the same seed.",
                ),
                io.Boolean.Input(
                    "keep_latents",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Keep the latents of up to six training pictures with the concept (about 30 kB each), for "
                    "Optimize for Prompt.",
                ),
                *inputs.memory_savers(),
                inputs.masks_mean(),
                inputs.captions(),
                io.String.Input(
                    "encoders",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="The text encoders that the word learns in, between commas, as embedding files call "
                    "them: clip_l, clip_g, t5xxl, qwen25_7b, qwen3_4b. In others it stays the class word. Empty: as it "
                    "suits.",
                ),
                inputs.regularize_every(),
            ],
            outputs=[
                ConceptSocket.Output(display_name="concept", tooltip="For ApplyConcept and SaveConcept."),
                inputs.losses(),
            ],
            hidden=[io.Hidden.unique_id],
            is_input_list=True,
        )

    @classmethod
    def validate_inputs(cls, class_word: str | None = None, name: str | None = None) -> bool | str:
        return first_reason(why_empty(class_word=class_word), why_no_word(name))

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
        vectors: int,
        preview_every: int,
        concept: bool,
        rank: int,
        weight_rate: float,
        prior_preservation: float,
        prior_pictures: int,
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
        masks: torch.Tensor | list[torch.Tensor] | None = None,
        regularizer: Regularization | None = None,
        concept: Concept | None = None,
        rank: int = -1,
        weight_rate: float = 0.0,
        prior_preservation: float = -1.0,
        prior_pictures: int = CLASS_PICTURES,
        keep_latents: bool = False,
        resolution: int = 0,
        gradient_checkpointing: bool = False,
        masks_mean: str = inputs.WHERE_IT_COUNTS,
        captions: str | list[str] = "",
        encoders: str = "",
        regularize_every: int = 1,
    ) -> io.NodeOutput:
        if not class_word.strip():
            raise ValueError(
                "TrainConcept needs a class word: the ordinary word for what is in the pictures, such as dog."
            )
        require_place(preview_every, preview_prompt, "the new word")
        subject = adapted(model, clip, vae, method=first_stages()[train])
        regularization = regularizer or NO_REGULARIZATION
        numbers = chosen_numbers(
            is_narrow(subject),
            class_word.strip(),
            train=train,
            recipe=recipe,
            steps=steps,
            learning_rate=learning_rate,
            batch=batch,
            vectors=vectors,
            preview_every=preview_every,
            concept=concept is not None,
            rank=rank,
            weight_rate=weight_rate,
            prior_preservation=prior_preservation,
            prior_pictures=prior_pictures,
            resolution=resolution,
            gradient_checkpointing=gradient_checkpointing,
            regularize_every=regularize_every,
        )
        others = {
            "name": safe_name(name.strip()),
            "seed": seed,
            "preview_prompt": preview_prompt,
            "transparent_masks": masks_mean == inputs.TRANSPARENCY,
            "keep_latents": keep_latents,
            "encoders": tuple(name.strip() for name in encoders.split(",") if name.strip()),
        }
        choices = replace(
            numbers,
            settings={**numbers.settings, **others},
            added=regularization.added,
            norm_mode=regularization.chosen_norm_mode,
            prior=replace(
                numbers.prior,
                folder=checkpoints_root() / "class_pictures",
                progress=told_of_class_pictures(cls.hidden.unique_id),
                applied=subject.applied,
            ),
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
    vectors: int,
    preview_every: int,
    concept: bool,
    rank: int,
    weight_rate: float,
    prior_preservation: float,
    prior_pictures: int,
    resolution: int,
    gradient_checkpointing: bool,
    regularize_every: int,
) -> Choices:
    """The recipe, and the numbers of the widgets that replace its own; with a `concept` that one's length counts.
    Raises ValueError where the recipe is for another method."""
    sizes = inputs.chosen(vectors=0 if concept else vectors, resolution=resolution)
    numbers = inputs.chosen(steps=steps, learning_rate=learning_rate, batch=batch, weight_rate=weight_rate)
    others = {
        "rank": None if rank < 0 else rank,
        "preview_every": preview_every,
        "gradient_checkpointing": gradient_checkpointing,
        "regularize_every": regularize_every,
    }
    return Choices(
        inputs.chosen_recipe(recipe, narrow, first_stages()[train]),
        class_word,
        {**numbers, **sizes, **others},
        prior=Prior(None if prior_preservation < 0 else prior_preservation, prior_pictures),
    )


def told_of_class_pictures(node_id: str) -> Progress:
    """Tells the page how many are drawn, and lets Cancel in."""

    def progress(done: int, wanted: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        PromptServer.instance.send_progress_text(f"drawing class pictures: {done} of {wanted}", node_id)

    return progress
