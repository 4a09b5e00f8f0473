"""What a learned word does to the prompts around it, in figures."""

from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io

from ..core.concept import Concept
from ..core.files import check_widths
from ..core.inspection.diagnosis.context_similarity import ContextProbe
from ..core.inspection.diagnosis.diagnose import diagnose
from ..core.inspection.diagnosis.probes import parse_probes, place_probes
from ..core.inspection.diagnosis.report import markdown, plot
from ..core.inspection.diagnosis.verdict import verdicts
from ..core.inspection.world.world_evaluation import context_probes
from ..core.models.protocol import ImageSize
from .comfy.adapting import adapted
from .page.pictures import as_images, preview
from .schema import inputs
from .schema.before_run import why_refused
from .schema.sockets import MEASURE, PREFIX, ConceptSocket, searched_as

VERDICT = "contextual_inversion_verdict"
"""Key of the node's output in ComfyUI's history; js/extension.js shows it."""
BUILT_IN = {"concept_world": context_probes, "places": place_probes}


class DiagnoseConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "DiagnoseConcept",
            display_name="Diagnose Concept",
            category=MEASURE,
            search_aliases=searched_as(
                "prompt ignored, why is my prompt ignored, embedding similarity, overfitting, sim1, SKL"
            ),
            description="Why a prompt is ignored, in figures: sim1, sim2 and SKL of a learned word against its class "
            "word and against another word, the cosines of its neighbours, its norm and nearest words.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model that the concept was trained on, without it: a concept's LoRA comes into force "
                    "here.",
                ),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                ConceptSocket.Input("concept", tooltip="From TrainConcept or LoadConcept."),
                ConceptSocket.Input(
                    "compare_with",
                    optional=True,
                    tooltip="Another word for the same thing, for example plain textual inversion.",
                ),
                io.Combo.Input(
                    "prompts",
                    options=list(BUILT_IN),
                    default="places",
                    tooltip="Prompts with a place as the context word: of the demo model's world, or ordinary ones.",
                ),
                io.String.Input(
                    "own_prompts",
                    multiline=True,
                    default="",
                    tooltip="Your own instead, one a line: a {} in the snow | snow | a picture of the snow. The last "
                    "two parts, context word and the prompt without the concept, may be left out.",
                ),
                io.String.Input(
                    "class_word", default="", tooltip="The ordinary word for the thing, where the concept has none."
                ),
                io.Int.Input("most_prompts", default=8, min=1, max=1000, tooltip="Use only the first prompts."),
                io.Int.Input(
                    "images",
                    default=1,
                    min=0,
                    max=64,
                    tooltip="Pictures sampled for each prompt, for SKL. 0 leaves SKL out, which is fast.",
                ),
                io.Int.Input("steps", default=25, min=1, max=1000, tooltip="Sampling steps of those pictures."),
                io.Float.Input("guidance", default=7.5, min=0.0, max=30.0, step=0.1, tooltip="Guidance scale."),
                io.Int.Input(
                    "width", default=512, min=64, max=4096, step=8, tooltip="Of the pictures; 128 for the demo model."
                ),
                io.Int.Input(
                    "height", default=512, min=64, max=4096, step=8, tooltip="Of the pictures; 128 for the demo model."
                ),
                inputs.seed("Of the pictures; the same for every word that is compared."),
            ],
            outputs=[
                io.String.Output(display_name="table", tooltip="All figures as Markdown."),
                io.Image.Output(display_name="plot", tooltip="The figures drawn."),
                io.String.Output(display_name="json", tooltip="All figures as JSON."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, own_prompts: str | None = None) -> bool | str:
        return why_refused(chosen_probes, next(iter(BUILT_IN)), own_prompts)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        concept: Concept,
        prompts: str,
        own_prompts: str,
        class_word: str,
        most_prompts: int,
        images: int,
        steps: int,
        guidance: float,
        width: int,
        height: int,
        seed: int,
        compare_with: Concept | None = None,
    ) -> io.NodeOutput:
        subject = adapted(model, clip, None)
        widths = {name: encoder.width for name, encoder in subject.text_encoders.items()}
        for one in filter(None, (concept, compare_with)):
            check_widths(one, widths)
        found = diagnose(
            subject,
            concept,
            chosen_probes(prompts, own_prompts)[:most_prompts],
            other=compare_with,
            class_word=class_word.strip() or None,
            size=ImageSize(height, width),
            images=images,
            steps=steps,
            guidance=guidance,
            seed=seed,
        )
        table, picture = markdown(found), as_images(plot(found))
        shown = {**preview(cls, picture, table), VERDICT: [verdict._asdict() for verdict in verdicts(found)]}
        return io.NodeOutput(table, picture, json.dumps(found.figures(), indent=2), ui=shown)


def chosen_probes(built_in: str, own: str) -> list[ContextProbe]:
    """Own prompts where something is written, else a built-in set."""
    return parse_probes(own) if own.strip() else BUILT_IN[built_in]()
