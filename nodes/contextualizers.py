"""The network that guesses masked words, which MLM needs: loaded from a file, or saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui

from ..core.files.contextualizer import load_contextualizer, save_contextualizer
from ..core.models.tiny.contextualizer import load_contextualizer as load_bundled
from ..core.networks.contextualizer import Contextualizer
from .comfy.clip_session import encoders_of
from .comfy.folders import CONTEXTUALIZERS, first_folder, name_in, path_of, told, version
from .comfy.saving import checked_word, free_name, written_as
from .schema import inputs
from .schema.sockets import CATEGORY, PREFIX, ContextualizerSocket


class LoadContextualizer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "LoadContextualizer",
            display_name="Load Contextualizer",
            category=CATEGORY,
            description="A contextualizer for MLM: the small network that guesses masked words from what a text "
            "encoder says. Each belongs to one text encoder.",
            inputs=[
                inputs.network_file(CONTEXTUALIZERS),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Checks at once that the contextualizer was trained on this text encoder.",
                ),
            ],
            outputs=[ContextualizerSocket.Output(display_name="contextualizer", tooltip="For MLMRegularizer.")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: object) -> object:
        return version(contextualizer_path, file)

    @classmethod
    def execute(cls, file: str, clip: Any = None) -> io.NodeOutput:
        contextualizer = load_bundled() if file == inputs.BUNDLED else load_contextualizer(contextualizer_path(file))
        if clip is not None:
            encoders = encoders_of(clip)
            # By name where the CLIP has several; of a single one the error says how it differs.
            encoder = encoders.get(contextualizer.encoder.name, next(iter(encoders.values())))
            contextualizer.encoder.require(encoder)
        return io.NodeOutput(contextualizer)


class SaveContextualizer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "SaveContextualizer",
            display_name="Save Contextualizer",
            category=CATEGORY,
            description="Writes a contextualizer into models/contextualizers, with the text encoder that it belongs to "
            "and how it was trained. The file is written whole, read back and compared.",
            inputs=[
                ContextualizerSocket.Input("contextualizer", tooltip="From PretrainContextualizer."),
                io.String.Input(
                    "name",
                    default="contextualizer",
                    tooltip="File name. Letters, digits and _ - . + are allowed, and folders after a /.",
                ),
                inputs.if_taken("Where a file of this name exists: write name_2, overwrite it, or stop with an error."),
                inputs.half_precision(True),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="The file's name in models/contextualizers.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, name: str = "contextualizer") -> bool | str:
        # Before the graph runs: what is pretrained in it may take hours.
        try:
            checked_word(name.strip())
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, contextualizer: Contextualizer, name: str, if_taken: str, half_precision: bool) -> io.NodeOutput:
        root = first_folder(CONTEXTUALIZERS)
        free = free_name(name.strip(), [root], if_taken)
        path = save_contextualizer(contextualizer, root, free, **written_as(if_taken, half_precision))
        return io.NodeOutput(name_in(root, path), ui=ui.PreviewText(f"Saved {told(path)}"))


def contextualizer_path(file: str) -> Path:
    """The path of a file in models/contextualizers. Raises ValueError where there is none of that name."""
    return path_of(CONTEXTUALIZERS, file, "contextualizer")
