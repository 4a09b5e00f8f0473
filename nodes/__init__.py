"""The ComfyUI side of the pack: the adapter of MODEL, CLIP and VAE, and thin nodes, one file a family."""

from __future__ import annotations

from typing import Any


def extension() -> Any:
    """The ComfyExtension that lists this pack's nodes; only ComfyUI can import what it needs."""
    from comfy_api.latest import ComfyExtension, io

    from .comfy import touched

    touched.report()  # before the imports, which may fail over what it names

    from . import (
        attention,
        concepts,
        contextualizers,
        demo,
        diagnosis,
        dual_path,
        evaluation,
        prediction,
        prompt_repair,
        prompts,
        refinement,
        regularizers,
        result_sheet,
        show_attention,
        training,
        tuning_encoders,
    )
    from .comfy import folders
    from .page import running, saved_files, templates
    from .schema.checking import checked

    running.add_routes()
    saved_files.add_routes()
    templates.add_routes()
    folders.clear_after_a_kill()

    class ContextualInversionExtension(ComfyExtension):
        async def get_node_list(self) -> list[type[io.ComfyNode]]:
            every = [
                demo.LoadDemoModel,
                demo.DemoImages,
                prompts.ContextPrompts,
                regularizers.CoReRegularizerNode,
                contextualizers.LoadContextualizer,
                contextualizers.PretrainContextualizer,
                contextualizers.SaveContextualizer,
                regularizers.MLMRegularizerNode,
                regularizers.NearestWordRegularizer,
                *regularizers.further_nodes(),
                training.TrainConcept,
                refinement.RefineConcept,
                prompt_repair.OptimizeForPrompt,
                concepts.ApplyConcept,
                concepts.SaveConcept,
                concepts.LoadConcept,
                tuning_encoders.LoadTuningEncoder,
                tuning_encoders.PretrainTuningEncoder,
                prediction.PredictConcept,
                prediction.TunePredictedConcept,
                dual_path.DualPathNode,
                evaluation.EvaluateConcept,
                attention.RecordAttention,
                attention.AttendImage,
                show_attention.ShowAttention,
                diagnosis.DiagnoseConcept,
                result_sheet.ResultSheet,
            ]
            return [checked(node) for node in every]

    return ContextualInversionExtension()
