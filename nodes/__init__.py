"""The ComfyUI side of the pack: the adapter of MODEL, CLIP and VAE, and thin nodes, one file a family."""

from __future__ import annotations

from typing import Any


def extension() -> Any:
    """The ComfyExtension that lists this pack's nodes; only ComfyUI can import what it needs."""
    from comfy_api.latest import ComfyExtension, io

    from . import concepts, demo, prompts, regularizers, training

    class ContextualInversionExtension(ComfyExtension):
        async def get_node_list(self) -> list[type[io.ComfyNode]]:
            return [
                demo.LoadDemoModel,
                demo.DemoImages,
                prompts.ContextPrompts,
                regularizers.CoReRegularizerNode,
                training.TrainConcept,
                concepts.ApplyConcept,
                concepts.SaveConcept,
                concepts.LoadConcept,
            ]

    return ContextualInversionExtension()
