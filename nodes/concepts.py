"""A learned word in use, in a file, and back."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui

from ..core.concept import Concept
from ..core.files import all_or_none, check_widths, layout_of, load_concept, save_bundle, save_embedding
from ..core.files.embedding import LEFT_OUT
from ..core.files.typed_names import advice
from ..core.models.blending import blended
from .comfy.concept_lora import with_weights
from .comfy.concept_tokenizer import with_concept
from .comfy.folders import BUNDLES, EMBEDDINGS, ENDING, LORAS, files_of, first_folder, not_there, told, version
from .comfy.late_lora import with_late_weights
from .comfy.layer_contexts import reading_layers, writing_layers
from .comfy.saving import checked_word, clip_vocabulary, free_name, said_of_meaning, why_no_file, written_as
from .comfy.text import text_widths
from .page.interrupted import saved, waiting
from .page.saved_files import saved_output
from .schema import inputs
from .schema.sockets import PREFIX, USE, ConceptSocket, searched_as

NOTHING_SAVED = "(nothing saved yet)"
LAYOUTS = {"auto": "auto", "clip_l, clip_g": "encoders", "emb_params": "emb_params"}
"""What SaveConcept offers -> what `save_embedding` takes."""


class ApplyConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "ApplyConcept",
            display_name="Apply Concept",
            category=USE,
            search_aliases=searched_as(
                "use embedding, apply embedding, apply textual inversion, use learned word, apply LoRA"
            ),
            description="A model that knows the new word. Type <name> or embedding:name in any prompt that is encoded "
            "with the CLIP that comes out. No file is needed.",
            inputs=[
                io.Model.Input("model", tooltip="A model of the kind that the concept was trained on."),
                io.Clip.Input("clip", tooltip="Its text encoder. Only the copy that comes out learns the word."),
                ConceptSocket.Input("concept", tooltip="From TrainConcept or LoadConcept."),
                io.Float.Input(
                    "strength_model",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How strongly the concept's LoRA changes the model. Without a LoRA nothing changes.",
                ),
                io.Float.Input(
                    "strength_clip",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How strongly the concept's LoRA changes the text encoder. The word itself is weighted in "
                    "the prompt: (<name>:1.2).",
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip="Another name to type, for example to compare two trainings of one thing.",
                ),
                ConceptSocket.Input(
                    "blend_with",
                    optional=True,
                    tooltip="Another word of the same length for the same model: what is typed then means something "
                    "between the two.",
                ),
                io.Float.Input(
                    "blend",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="How far the word is on its way to the other one, along the great circle (DTI). Only where "
                    "blend_with is connected.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="From this part of the sampling on the LoRA acts; until there the word alone lays the "
                    "picture out. Where other things of the prompt get lost, try 0.04 to 0.2.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model, with the concept's LoRA where it has one."),
                io.Clip.Output(display_name="clip", tooltip="The text encoder that knows the word."),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return why_no_file(name, None, [], own_name=True)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        concept: Concept,
        strength_model: float,
        strength_clip: float,
        name: str,
        blend_with: Concept | None = None,
        blend: float = 0.5,
        start_percent: float = 0.0,
    ) -> io.NodeOutput:
        if blend_with is not None:
            concept = blended(concept, blend_with, blend)
        concept = concept.renamed(checked_word(name.strip() or concept.name))
        check_widths(concept, text_widths(clip))
        if concept.lora:
            strengths = strength_model, strength_clip
            if start_percent > 0:
                model, clip = with_late_weights(model, clip, concept, *strengths, start_percent)
            else:
                model, clip = with_weights(model, clip, concept, *strengths)
        clip = with_concept(clip, concept)
        if concept.layer_vectors:
            model, clip = reading_layers(model, concept), writing_layers(clip, concept)
        return io.NodeOutput(model, clip)


class SaveConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "SaveConcept",
            display_name="Save Concept",
            category=USE,
            search_aliases=searched_as(
                "save embedding, save textual inversion, export embedding, save LoRA, save learned word"
            ),
            description="Writes a small bundle (everything that was learned, and how) and an embedding file that "
            "other Stable Diffusion programs read too. Files are written whole, read back and compared.",
            inputs=[
                ConceptSocket.Input("concept", tooltip="From TrainConcept; what was learned."),
                io.String.Input(
                    "name",
                    default="",
                    tooltip="File name, also what is typed after embedding: later. Empty: the concept's own name. "
                    "Letters, digits and _ - . + are allowed, and folders after a /.",
                ),
                inputs.if_taken("Where files of this name exist: write name_2, overwrite them, or stop with an error."),
                io.Boolean.Input(
                    "embedding_file",
                    default=True,
                    tooltip="Also write the word alone into models/embeddings, for embedding:name in any graph or "
                    "program.",
                ),
                inputs.half_precision(False),
                io.Boolean.Input(
                    "lora_file",
                    default=False,
                    optional=True,
                    tooltip="Where the concept changed the model (Custom Diffusion, DreamBooth, a second stage): write "
                    "the bundle into models/loras too, for the stock Load LoRA node and other programs.",
                ),
                io.Combo.Input(
                    "layout",
                    options=list(LAYOUTS),
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="What the tensors of the embedding file are called. auto: as most programs read it, "
                    "emb_params for a model with one text encoder and clip_l, clip_g for SDXL.",
                ),
            ],
            outputs=[typed()],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls, name: str | None = None, if_taken: str | None = None, embedding_file: bool | None = None
    ) -> bool | str:
        # Before the graph runs: what is trained in it may take hours.
        kinds = (BUNDLES, EMBEDDINGS) if embedding_file else (BUNDLES,)
        return why_no_file(name, if_taken, [first_folder(kind) for kind in kinds], own_name=True)

    @classmethod
    def execute(
        cls,
        concept: Concept,
        name: str,
        if_taken: str,
        embedding_file: bool,
        half_precision: bool,
        lora_file: bool = False,
        layout: str = "auto",
    ) -> io.NodeOutput:
        places = [("bundle", save_bundle, first_folder(BUNDLES))]
        if embedding_file:
            chosen = layout_of(concept, LAYOUTS[layout])  # what cannot be written is refused before anything is
            places.append(("embedding", partial(save_embedding, layout=chosen), first_folder(EMBEDDINGS)))
        if lora_file and concept.lora:
            places.append(("LoRA", save_bundle, first_folder(LORAS)))
        name = free_name(name.strip() or concept.name, [folder for *_, folder in places], if_taken)
        # Under the name it will be typed by, whatever it was called while it was trained.
        learned, concept = concept, concept.renamed(name.rpartition("/")[2])
        how = written_as(if_taken, half_precision)
        with waiting(learned), all_or_none():
            written = {kind: save(concept, folder, name, **how) for kind, save, folder in places}
        saved(learned)
        text = f"embedding:{name}"
        paths = list(written.values())
        lines = [f"Type {text} in a prompt.", *said_of_meaning(name, paths), *more_than_a_word(concept)]
        lines += [f"Saved {told(path)}" for path in paths]
        if embedding_file:
            lines += advice(name, concept.length, clip_vocabulary())
        return io.NodeOutput(text, ui=saved_output(lines, written, text))


class LoadConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "LoadConcept",
            display_name="Load Concept",
            category=USE,
            search_aliases=searched_as("load embedding, load textual inversion, open embedding, import embedding"),
            description="A saved concept, or a textual-inversion embedding of another program (.safetensors only: a "
            "pickle can run code when it is opened).",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=saved_files() or [NOTHING_SAVED],
                    tooltip="Bundles written by SaveConcept, and the files in models/embeddings.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Checks at once that the concept fits this text encoder. Needed for embeddings of models "
                    "with an unusual width.",
                ),
                io.String.Input(
                    "class_word",
                    default="",
                    optional=True,
                    tooltip="The ordinary word for the thing, such as dog. Needed for files of other programs, which "
                    "do not say it, where the concept is refined or a prompt repaired. Empty: what the file says.",
                ),
                io.String.Input(
                    "embedding",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Which word, where the file of another program bundles several; an error lists them. It is "
                    "then typed by that name.",
                ),
            ],
            outputs=[
                ConceptSocket.Output(display_name="concept", tooltip="For ApplyConcept, or TrainConcept to continue."),
                typed(),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: object) -> object:
        return version(saved_path, file)

    @classmethod
    def execute(cls, file: str, clip: Any = None, class_word: str = "", embedding: str = "") -> io.NodeOutput:
        path, chosen = saved_path(file), embedding.strip() or None
        concept = load_concept(path, widths=None if clip is None else text_widths(clip), embedding=chosen)
        _, _, inner = file.partition("/")
        concept = concept.renamed(typeable(chosen.strip("<>") if chosen else inner.removesuffix(ENDING)))
        concept = replace(concept, class_word=class_word.strip() or concept.class_word)
        text, unused = f"embedding:{concept.name}", concept.provenance.get(LEFT_OUT)
        if not unused:
            return io.NodeOutput(concept, text)
        said = f"Left out of {path.name}: {', '.join(map(str, unused))}. No model of this kind uses them."
        return io.NodeOutput(concept, text, ui=ui.PreviewText(f"Type {text} in a prompt.\n{said}"))


def more_than_a_word(concept: Concept) -> list[str]:
    """What the embedding file alone does not hold, as lines for people."""
    lines = []
    if concept.lora:
        lines.append("It changed the model too: an embedding alone lacks that. Load Concept, or a LoRA loader, has it.")
    if concept.layer_vectors:
        lines.append("It has a vector for every layer: an embedding alone is their mean. Load Concept has them all.")
    return lines


def typed() -> Any:
    return io.String.Output(display_name="text", tooltip="What to type in a prompt: embedding:name.")


def saved_files() -> list[str]:
    """What LoadConcept offers: `<kind>/<path inside the folder>`."""
    return [f"{kind}/{name}" for kind in (BUNDLES, EMBEDDINGS) for name in files_of(kind)]


def saved_path(file: str) -> Path:
    """The path of one of `saved_files`. Raises ValueError where it is none of them."""
    kind, _, name = file.partition("/")
    path = folder_paths.get_full_path(kind, name) if file in saved_files() else None
    if path is None:
        raise not_there("saved concept", file)
    return Path(path)


def typeable(name: str) -> str:
    """A file's name as a word that can be typed: what would end or change the word becomes an underscore."""
    return re.sub(r"[^\w.+/-]", "_", name.replace("\\", "/"))
