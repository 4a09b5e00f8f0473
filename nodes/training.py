"""Learning a new word inside a graph."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io
from server import PromptServer

from ..core.concept import Concept
from ..core.files import safe_name
from ..core.training.methods import METHODS, first_stages
from ..core.training.plan import CLASS_PICTURES, Choices, Prior, plan
from ..core.training.regularizers.prior import Progress
from .comfy.adapting import adapted
from .comfy.folders import checkpoints_root
from .comfy.saving import why_no_word
from .page.concept_training import captioned, require_place, train_concept
from .schema import inputs
from .schema.sockets import CATEGORY, NO_REGULARIZATION, PREFIX, ConceptSocket, Regularization, RegularizerSocket


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
                    tooltip="What is learned. textual inversion: the word's vectors and nothing else, a file of a few "
                    "kilobytes. XTI: vectors of its own for every cross-attention layer (P+), or every block of them "
                    "(the MLM paper). Custom Diffusion: the word, and the keys and values of the cross-attention. "
                    "DreamBooth: a rare word that stays as it is, and UNet and text encoder, as a LoRA or all of them "
                    "but the token table and the position embeddings, which every word shares. word and LoRA together: "
                    "both at once, which is what learns on Flux, SD3.5, Qwen-Image and Z-Image.",
                ),
                inputs.recipe(
                    first_stages().values(),
                    "Numbers that go together. auto: those of what is trained, for Stable Diffusion or for the demo "
                    "model. The numbers below replace the recipe's unless they are 0.",
                ),
                inputs.training_steps(),
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.0001,
                    round=0.0000001,
                    tooltip="How far each step goes. Too small learns nothing, too large forgets the prompt. "
                    f"{inputs.ZERO_AS_RECIPE}",
                ),
                inputs.training_batch(),
                io.Int.Input(
                    "vectors",
                    default=0,
                    min=0,
                    max=32,
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
                    step=0.000001,
                    round=0.000000001,
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
                    tooltip="The text encoders that the word learns in, between commas, by their names in embedding "
                    "files: clip_l, clip_g, t5xxl, qwen25_7b, qwen3_4b. In the others it stays the class word. Empty: "
                    "those that suit the model.",
                ),
            ],
            outputs=[
                ConceptSocket.Output(display_name="concept", tooltip="For ApplyConcept and SaveConcept."),
                inputs.losses(),
            ],
            hidden=[io.Hidden.unique_id],
            is_input_list=True,
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return why_no_word(name)

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
    ) -> io.NodeOutput:
        if not class_word.strip():
            raise ValueError(
                "TrainConcept needs a class word: the ordinary word for what is in the pictures, such as dog."
            )
        require_place(preview_every, preview_prompt, "the new word")
        method, regularization = first_stages()[train], regularizer or NO_REGULARIZATION
        subject = adapted(model, clip, vae, method=method)
        # The size is a word's own: with a concept that of the concept counts.
        sizes = inputs.chosen(vectors=vectors if concept is None else 0, resolution=resolution)
        numbers = inputs.chosen(steps=steps, learning_rate=learning_rate, batch=batch, weight_rate=weight_rate)
        choices = Choices(
            inputs.chosen_recipe(recipe, subject, method),
            class_word.strip(),
            {
                **numbers,
                **sizes,
                "name": safe_name(name.strip()),
                "rank": None if rank < 0 else rank,
                "seed": seed,
                "preview_every": preview_every,
                "preview_prompt": preview_prompt,
                "transparent_masks": masks_mean == inputs.TRANSPARENCY,
                "keep_latents": keep_latents,
                "gradient_checkpointing": gradient_checkpointing,
                "encoders": tuple(name.strip() for name in encoders.split(",") if name.strip()),
            },
            regularization.added,
            regularization.chosen_norm_mode,
            Prior(
                weight=None if prior_preservation < 0 else prior_preservation,
                pictures=prior_pictures,
                folder=checkpoints_root() / "class_pictures",
                progress=told_of_class_pictures(cls.hidden.unique_id),
                applied=subject.applied,
            ),
            concept,
        )
        return train_concept(
            cls.hidden.unique_id,
            subject,
            captioned(subject, plan(subject, choices), captions, images),
            images=images,
            masks=masks,
            continue_interrupted=continue_interrupted,
        )


def told_of_class_pictures(node_id: str) -> Progress:
    """Tells the page how many are drawn, and lets Cancel in."""

    def progress(done: int, wanted: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        PromptServer.instance.send_progress_text(f"drawing class pictures: {done} of {wanted}", node_id)

    return progress
