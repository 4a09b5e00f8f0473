"""A model and pictures to try everything with, where nothing has been downloaded yet."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.latest import io

from ..core.world.companions import COMPANIONS, companion_for, specific_prompts
from ..core.world.concepts import CONCEPTS
from ..core.world.render import concept_images
from ..core.world.scenes import BACKGROUNDS
from .comfy import demo_model
from .page.pictures import as_images
from .schema import inputs
from .schema.sockets import DEMO, PREFIX, searched_as

STABLE_DIFFUSION, FLOW = "Stable Diffusion in small", "Flux in small (flow matching)"
OWN_BACKGROUND = "the concept's own"
ALONE = "none"


class LoadDemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "LoadDemoModel",
            display_name="Load Demo Model",
            category=DEMO,
            search_aliases=[
                "tiny model",
                "tiny Stable Diffusion",
                "tiny Flux",
                "example model",
                "test model",
                "sample checkpoint",
            ],
            description="A bundled tiny model (12 or 14 MB, 128 x 128 pictures of a small drawn world). It trains and "
            "samples on a CPU, so that every graph can be tried before a real checkpoint takes its place.",
            inputs=[
                io.Combo.Input(
                    "kind",
                    options=[STABLE_DIFFUSION, FLOW],
                    default=STABLE_DIFFUSION,
                    optional=True,
                    tooltip="A UNet with cross-attention, or a transformer with joint attention that is asked for the "
                    "flow, as Flux and its kin.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The tiny denoiser; any sampler takes it."),
                io.Clip.Output(display_name="clip", tooltip="Its text encoder, behind the ordinary CLIP tokenizer."),
                io.Vae.Output(display_name="vae", tooltip="Its autoencoder: 8 pixels a latent cell, like SD's."),
            ],
        )

    @classmethod
    def execute(cls, kind: str = STABLE_DIFFUSION) -> io.NodeOutput:
        if kind == FLOW:
            model, clip = demo_model.load_flow_patcher(), demo_model.load_flow_clip()
        else:
            model, clip = demo_model.load_model_patcher(), demo_model.load_clip()
        return io.NodeOutput(model, clip, demo_model.load_vae())


class DemoImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "DemoImages",
            display_name="Demo Images",
            category=DEMO,
            search_aliases=searched_as(
                "example images, sample images, sample pictures, training images, test images, ConceptWorld"
            ),
            description="Drawn pictures of a thing that the demo model has never seen, as a stand-in for your own "
            "photos.",
            inputs=[
                io.Combo.Input(
                    "concept",
                    options=list(CONCEPTS),
                    default=next(iter(CONCEPTS)),
                    tooltip="The thing to learn. None of these is in the demo model's training pictures or captions.",
                ),
                io.Int.Input(
                    "count",
                    default=4,
                    min=1,
                    max=32,
                    tooltip="How many pictures. Three to six are usual for a new word.",
                ),
                io.Combo.Input(
                    "background",
                    options=[OWN_BACKGROUND, *BACKGROUNDS],
                    default=OWN_BACKGROUND,
                    tooltip="Where all the pictures are taken. One place for all is what makes an ordinary training "
                    "swallow the prompt: the word learns the place too.",
                ),
                inputs.seed("Places and sizes vary with it. The same seed draws the same pixels."),
                io.Combo.Input(
                    "companion",
                    options=[ALONE, *COMPANIONS],
                    default=ALONE,
                    optional=True,
                    tooltip="A second thing in every picture. The class word says which of the two is meant; "
                    "whether the new word goes there is another matter.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The pictures, 128 x 128."),
                io.Mask.Output(display_name="masks", tooltip="Exactly where the thing is, for a training with masks."),
                io.String.Output(display_name="class_word", tooltip="The ordinary word for it, for TrainConcept."),
                io.String.Output(
                    display_name="prompts",
                    tooltip="About 50 prompts for this one concept, with the companion named: for the text of "
                    "ContextPrompts.",
                ),
            ],
        )

    @classmethod
    def execute(cls, concept: str, count: int, background: str, seed: int, companion: str = ALONE) -> io.NodeOutput:
        place = None if background == OWN_BACKGROUND else background
        beside = None if companion == ALONE else companion_for(concept, companion)
        pictures, masks, class_word = concept_images(concept, count, seed, place, beside)
        subjects = torch.from_numpy(np.stack([mask.subject for mask in masks]).astype(np.float32))
        return io.NodeOutput(as_images(pictures), subjects, class_word, "\n".join(specific_prompts(concept, beside)))
