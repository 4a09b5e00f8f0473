"""Learning a new word inside a graph."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io
from server import PromptServer

from ..core.concept import Concept
from ..core.files import safe_name
from ..core.training.methods import METHODS
from ..core.training.pictures import checked_pictures
from ..core.training.preparation import resolution_for
from ..core.training.regularizers.prior import PriorPreservation, require_weights
from .comfy.folders import checkpoints_root
from .comfy.model import ComfyModel
from .page.concept_training import require_place, train_concept
from .recipes import recipe_for, recipe_names, sources, train_settings
from .schema import inputs
from .schema.sockets import CATEGORY, NO_REGULARIZATION, PREFIX, ConceptSocket, Regularization, RegularizerSocket

TRAINED = {METHODS[key].title: key for key in METHODS if not key.startswith("refine")}
"""What the node offers to train -> the method's name."""
TEXTUAL_INVERSION = METHODS["ti"].title


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
                inputs.word_name(),
                io.Combo.Input(
                    "train",
                    options=list(TRAINED),
                    default=TEXTUAL_INVERSION,
                    tooltip="What is learned. textual inversion: the word's vectors and nothing else, a file of a few "
                    "kilobytes. XTI: vectors of its own for every cross-attention layer (P+), or every block of them "
                    "(the MLM paper). Custom Diffusion: the word, and the keys and values of the cross-attention. "
                    "DreamBooth: a rare word that stays as it is, and UNet and text encoder, as a LoRA or all of them "
                    "but the token table and the position embeddings, which every word shares.",
                ),
                io.Combo.Input(
                    "recipe",
                    options=recipe_names(*TRAINED.values()),
                    default=recipe_names()[0],
                    tooltip="Numbers that go together. auto: those of what is trained, for Stable Diffusion or for the "
                    "demo model. The numbers below replace the recipe's unless they are 0. "
                    + sources(*TRAINED.values()),
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
                    default=100,
                    optional=True,
                    min=1,
                    max=2000,
                    advanced=True,
                    tooltip="For prior preservation: pictures of the class, drawn once by the model that came in and "
                    "kept for the next training.",
                ),
                io.Boolean.Input(
                    "keep_latents",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Keep the latents of up to six training pictures with the concept (about 30 kB each), for "
                    "Optimize for Prompt.",
                ),
                io.Int.Input(
                    "resolution",
                    default=0,
                    optional=True,
                    min=0,
                    max=4096,
                    step=64,
                    advanced=True,
                    tooltip="Side of the square that is cut from the middle of each picture, in pixels. 0: the model's "
                    "own, 512 for Stable Diffusion 1, 1024 for SDXL. Fewer need less memory.",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Save memory, take longer. The word is the same.",
                ),
            ],
            outputs=[
                ConceptSocket.Output(display_name="concept", tooltip="For ApplyConcept and SaveConcept."),
                inputs.losses(),
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
        rank: int = -1,
        weight_rate: float = 0.0,
        prior_preservation: float = -1.0,
        prior_pictures: int = 100,
        keep_latents: bool = False,
        resolution: int = 0,
        gradient_checkpointing: bool = False,
    ) -> io.NodeOutput:
        if not class_word.strip():
            raise ValueError(
                "TrainConcept needs a class word: the ordinary word for what is in the pictures, such as dog."
            )
        require_place(preview_every, preview_prompt, "the new word")
        adapted, regularization = ComfyModel(model, clip, vae), regularizer or NO_REGULARIZATION
        chosen = recipe_for(recipe, adapted, TRAINED[train])
        settings = train_settings(
            chosen,
            norm_mode=regularization.norm_mode,
            numbers={
                "steps": steps,
                "learning_rate": learning_rate,
                "batch": batch,
                "vectors": vectors if concept is None else concept.length,
                "weight_rate": weight_rate,
            },
            class_word=class_word.strip(),
            name=safe_name(name.strip()),
            seed=seed,
            preview_every=preview_every,
            preview_prompt=preview_prompt,
            keep_latents=keep_latents,
            resolution=resolution or None,
            gradient_checkpointing=gradient_checkpointing,
            **({} if rank < 0 else {"rank": rank}),
        )
        prior = float(chosen.prior) if prior_preservation < 0 else prior_preservation
        regularizers = regularization.make(adapted, settings.method)
        if prior > 0:
            require_weights(settings.trains)
            side = resolution_for(adapted, settings, checked_pictures(images[..., :3]))
            drawn = {"pictures": prior_pictures, "batch": settings.batch, "resolution": side}
            regularizers += (class_pictures(cls.hidden.unique_id, prior, applied=adapted.applied, **drawn),)
        return train_concept(
            cls.hidden.unique_id,
            adapted,
            settings,
            images=images,
            masks=masks,
            regularizers=regularizers,
            initial=concept,
            continue_interrupted=continue_interrupted,
        )


def class_pictures(node_id: str, weight: float, **drawn: Any) -> PriorPreservation:
    """Prior preservation that draws its pictures where the page sees it and may cancel."""

    def progress(done: int, wanted: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        PromptServer.instance.send_progress_text(f"drawing class pictures: {done} of {wanted}", node_id)

    return PriorPreservation(
        checkpoints_root() / "class_pictures",
        weight=weight,
        progress=progress,
        **drawn,
    )
